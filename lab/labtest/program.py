"""Running the program under test."""
import json
import os
import shutil
import subprocess

EXIT_COMPLETE, EXIT_ERROR, EXIT_FINDINGS = 0, 1, 3
DEFAULT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../.build/release/vmcore-split")


class Program:
    def __init__(self):
        self.path = os.environ.get("VMCORE_SPLIT", DEFAULT)
        self.given = os.environ.get("OPTIONS", "").split()
        self.image = None

    @property
    def options(self):
        """For all that is done with a host's dump; `image` is one of the host's swap device."""
        return self.given + (["--swap", self.image] if self.image else [])

    def run(self, *words):
        return subprocess.run([self.path, *words], capture_output=True, text=True, errors="replace")

    def extract(self, dumps, folder, *options):
        """(exit status, peak memory in KiB, messages)"""
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        memory = folder + ".memory"
        done = subprocess.run(["/usr/bin/time", "-q", "-f", "%M", "-o", memory, self.path, *dumps, "-o", folder,
                               "--force", "--no-progress", *self.options, *options], capture_output=True, text=True, errors="replace")
        with open(memory) as file:
            kib = int(file.read().split()[-1])
        os.remove(memory)
        return done.returncode, kib, done.stderr

    def pipe(self, dumps, guest, path):
        """(exit status, messages) of writing a guest to a pipe, which goes into a file"""
        with open(path, "wb") as file:
            copy = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file)
            done = subprocess.run([self.path, *dumps, "--guest", guest.pid, "-o", "-", "--no-progress", *self.options],
                                  stdout=copy.stdin, stderr=subprocess.PIPE, text=True, errors="replace")
            copy.stdin.close()
            copy.wait()
        return done.returncode, done.stderr

    def report(self, dumps, *options):
        """{pid: the guest} of `vmcore-split registers`; the second one of a process is PID-2"""
        done = self.run("registers", "--json", *dumps, *self.options, *options)
        if done.returncode not in (EXIT_COMPLETE, EXIT_FINDINGS):
            return {}
        return {f"{guest['pid']}-{guest['number']}" if "number" in guest else str(guest["pid"]): guest
                for guest in json.loads(done.stdout)["guests"]}

    def check(self, vmcore):
        """None, or why the file breaks a rule"""
        done = self.run("check", vmcore)
        return None if done.returncode == EXIT_COMPLETE else f"check ended with {done.returncode}:\n{done.stdout}{done.stderr}"


def result_file(folder, guest):
    """The guest's vmcore.  A dump that lacks the VMM's command line (it lies in user memory: filtered by dump
    level, or swapped out) does not tell the guest's name; then the file is named after the process."""
    for name in sorted(os.listdir(folder)):
        if name == f"{guest.name}.vmcore" or name.endswith(f"-{guest.pid}.vmcore"):
            return os.path.join(folder, name)
    return None
