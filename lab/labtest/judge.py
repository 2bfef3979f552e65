"""What the readers make of a result, compared with what they make of the truth."""
import hashlib

from .readers import crash_tasks


def content_key(core):
    """What the readers see of a vmcore: its memory and the notes that are not ours.  The provenance note names the
    source dump and so differs between results that are equal in everything else."""
    digest = hashlib.sha256()
    for name, kind, desc in core.notes:
        if name in ("CORE", "QEMU", "VMCOREINFO"):
            digest.update(f"{name} {kind}".encode() + desc)
    for load in core.loads:
        digest.update(f"{load.start:x} {load.filesz:x} {load.memsz:x}".encode())
        step = 1 << 20
        for offset in range(load.offset, load.offset + load.filesz, step):
            digest.update(core.map[offset:min(offset + step, load.offset + load.filesz)])
    return digest.hexdigest()


class ReaderTest:
    """Opens results in the readers, each distinct one once, and compares with what they say of the truth."""

    def __init__(self, readers):
        self.readers = readers
        self.truths, self.results = {}, {}

    def truth(self, guest):
        if guest.truth_path not in self.truths:
            answers = self.readers.crash(guest.truth_path, guest.vmlinux)
            self.truths[guest.truth_path] = answers, self.readers.volatility_banners(guest.truth_path)
        return self.truths[guest.truth_path]

    def judge(self, guest, path, core):
        """({reader: verdict}, [problem])"""
        key = guest.truth_path, content_key(core)
        if key not in self.results:
            self.results[key] = self._judge(guest, path)
        return self.results[key]

    def _judge(self, guest, path):
        true_answers, true_banners = self.truth(guest)
        if "error" in true_answers:
            return {}, [f"crash does not open the truth: {true_answers['error']}"]
        problems = {"crash": self._crash(guest, path, true_answers), "drgn": self._drgn(guest, path, true_answers),
                    "vol3": self._volatility(path, true_banners)}
        return ({name: "FAIL" if found else "ok" for name, found in problems.items()},
                [f"{name}: {problem}" for name, found in problems.items() for problem in found])

    def _crash(self, guest, path, true_answers):
        answers = self.readers.crash(path, guest.vmlinux)
        if "error" in answers:
            return [answers["error"]]
        return [f"`{command}` differs from the truth's:\n{first_difference(true_answers[command], answer)}"
                for command, answer in answers.items() if answer != true_answers[command]]

    def _drgn(self, guest, path, true_answers):
        found = self.readers.drgn(path, guest.vmlinux)
        if "error" in found:
            return [found["error"]]
        problems = []
        if found["release"] != guest.release:
            problems.append(f"release {found['release']} instead of {guest.release}")
        # crash's `ps` of the truth: another reader, another file
        tasks = crash_tasks(true_answers)
        if found["tasks"] != tasks:
            problems.append(f"{len(found['tasks'])} tasks instead of {len(tasks)}")
        return problems

    def _volatility(self, path, true_banners):
        found = self.readers.volatility_banners(path)
        return [] if found == true_banners else [f"banners {sorted(found)} instead of {sorted(true_banners)}"]


def first_difference(truth, found):
    for want, have in zip(truth.splitlines() + [""], found.splitlines() + [""]):
        if want != have:
            return f"    truth: {want}\n    found: {have}"
    return "    (one ends before the other)"
