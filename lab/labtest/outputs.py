"""The other forms that `extract` writes a guest in: the pipe, and makedumpfile's format."""
import filecmp
import os

from .program import EXIT_COMPLETE, EXIT_FINDINGS

COMPRESSIONS = ("zlib", "lzo", "snappy", "zstd")
# Debian builds makedumpfile without it.
UNKNOWN_TO_MAKEDUMPFILE = "snappy"


class OutputTest:
    """Holds them against the ELF file, which was compared with the truth, and against the readers."""

    def __init__(self, program, readers):
        self.program, self.readers = program, readers

    def judge(self, guest, path, dumps, is_complete):
        """({form: verdict}, [problem]) of a guest whose ELF vmcore is at `path`."""
        problems = {"pipe": self._pipe(guest, path, dumps)}
        # A reader without pages that the dump did not have proves nothing.
        answers = self._answers(guest, path) if is_complete else None
        for compression in COMPRESSIONS:
            problems[compression] = self._kdump(guest, path, dumps, compression, answers)
        return ({form: "FAIL" if found else "ok" for form, found in problems.items()},
                [f"{form}: {problem}" for form, found in problems.items() for problem in found])

    def _pipe(self, guest, path, dumps):
        piped = path + ".piped"
        status, messages = self.program.pipe(dumps, guest, piped)
        try:
            if status not in (EXIT_COMPLETE, EXIT_FINDINGS):
                return [f"ended with {status}: {messages.strip()[-300:]}"]
            return [] if filecmp.cmp(path, piped, shallow=False) else ["its bytes are not those of the file"]
        finally:
            os.remove(piped)

    def _kdump(self, guest, path, dumps, compression, answers):
        result = f"{path}.{compression}"
        done = self.program.run(*dumps, "--guest", guest.pid, "--format", f"kdump-{compression}", "-o", result,
                                "--force", "--no-progress", *self.program.options)
        if done.returncode not in (EXIT_COMPLETE, EXIT_FINDINGS):
            return [f"ended with {done.returncode}: {done.stderr.strip()[-300:]}"]
        try:
            problems = [problem for problem in [self.program.check(result)] if problem]
            counts = self.readers.same_pages(path, result)
            if "error" in counts or counts["different"] or counts["extra"] or answers and counts["absent"]:
                problems.append(f"pages: {counts}")
            if answers:
                found = self._answers(guest, result)
                problems += [f"{reader}: not what it says of the ELF file" for reader in answers
                             if found[reader] != answers[reader]
                             and (reader, compression) != ("makedumpfile", UNKNOWN_TO_MAKEDUMPFILE)]
            return problems
        finally:
            os.remove(result)

    def _answers(self, guest, path):
        """What the readers say of a file."""
        return {"crash": self.readers.crash(path, guest.vmlinux), "drgn": self.readers.drgn(path, guest.vmlinux),
                "makedumpfile": self.readers.dmesg(path)}
