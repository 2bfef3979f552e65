"""The readers that must accept a guest vmcore: crash, drgn, Volatility 3."""
import json
import os
import re
import subprocess
import tempfile

TIMEOUT = 300
CRASH_COMMANDS = ("sys", "ps", "bt -a")
DRGN_PROGRAM = """
import json, sys
import drgn
from drgn.helpers.linux.pid import for_each_task
prog = drgn.Program()
prog.set_core_dump(sys.argv[1])
prog.load_debug_info([sys.argv[2]])
print(json.dumps({"release": prog["init_uts_ns"].name.release.string_().decode(),
                  "tasks": sorted(task.pid.value_() for task in for_each_task(prog))}))
"""


def run(command, **options):
    """(exit status, output, messages); a reader that hangs has failed."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                              timeout=TIMEOUT, **options)
    except subprocess.TimeoutExpired:
        return -1, "", f"no end after {TIMEOUT} s"
    return done.returncode, done.stdout, done.stderr


class Readers:
    def __init__(self, tools):
        self.crash_program = f"{tools}/bin/crash"
        self.makedumpfile = f"{tools}/bin/makedumpfile"
        self.python = f"{tools}/venv/bin/python"
        self.volatility = f"{tools}/venv/bin/vol"

    def crash(self, dump, vmlinux):
        """What crash says, by command; or the reason why it does not open the dump, under "error"."""
        with tempfile.TemporaryDirectory() as folder:
            files = {command: os.path.join(folder, command.replace(" ", "")) for command in CRASH_COMMANDS}
            script = os.path.join(folder, "script")
            with open(script, "w") as file:
                file.writelines(f"{command} > {answer}\n" for command, answer in files.items())
                file.write("quit\n")
            status, output, messages = run([self.crash_program, "-s", "-i", script, vmlinux, dump],
                                           env=os.environ | {"HOME": folder, "TERM": "dumb"})
            answers = {command: normalised(read_text(answer), dump) for command, answer in files.items()}
        if status != 0 or not all(answers.values()):
            return {"error": f"crash ended with {status}: {(output + messages).strip()[-300:]}"}
        return answers

    def drgn(self, dump, vmlinux):
        """{release, tasks} or {error}"""
        status, output, messages = run([self.python, "-c", DRGN_PROGRAM, dump, vmlinux])
        return json.loads(output) if status == 0 else {"error": messages.strip()[-300:]}

    def same_pages(self, vmcore, other):
        """The counts of same_pages.py, or {error}"""
        here = os.path.dirname(os.path.abspath(__file__))
        status, output, messages = run([self.python, "-m", "labtest.same_pages", vmcore, other],
                                       env=os.environ | {"PYTHONPATH": os.path.dirname(here)})
        return json.loads(output) if status == 0 else {"error": messages.strip()[-300:]}

    def dmesg(self, dump):
        """The kernel's messages that makedumpfile finds in a dump, or None"""
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "dmesg")
            status, _, _ = run([self.makedumpfile, "--dump-dmesg", dump, path])
            return read_text(path) if status == 0 else None

    def volatility_banners(self, dump):
        """The kernel banners that Volatility finds in the memory."""
        status, output, messages = run([self.volatility, "-q", "--offline", "-f", dump, "banners.Banners"])
        if status != 0:
            return {f"volatility ended with {status}: {messages.strip()[-300:]}"}
        return set(re.findall(r"Linux version .*", output))


def read_text(path):
    if not os.path.exists(path):
        return ""
    with open(path, errors="replace") as file:
        return file.read()


def normalised(text, dump):
    """crash's answer without what must differ between two dumps of one guest: the dump's name."""
    return "\n".join(line.rstrip() for line in text.replace(dump, "DUMP").splitlines()
                     if not line.lstrip().startswith("DUMPFILE:"))


def crash_tasks(answers):
    """The pids that `ps` lists, without the idle tasks."""
    pids = [int(match.group(1)) for match in re.finditer(r"^[> ]\s*(\d+)\s+\d+\s+\d+\s", answers["ps"], flags=re.M)]
    return sorted(pid for pid in pids if pid)
