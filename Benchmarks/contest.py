"""Commands run in turn, and compared."""
import os
import subprocess
import sys
import time


class Contestant:
    def __init__(self, name, command, accepts, environment, rounds):
        self.name, self.command, self.accepts, self.environment = name, command, accepts, environment
        self.most_rounds = rounds
        self.seconds, self.kib = [], 0

    def run(self):
        start = time.monotonic()
        process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                   env={**os.environ, **self.environment})
        messages = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        self.seconds.append(time.monotonic() - start)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.kib = max(self.kib, usage.ru_maxrss)
        if process.returncode not in self.accepts:
            sys.exit(f"{' '.join(self.command)} ended with {process.returncode}:\n{messages.decode(errors='replace')}")


class Contest:
    """The first contestant is the one that the others are compared with."""

    def __init__(self, name, title, size):
        self.name, self.title, self.size = name, title, size
        self.contestants = []

    def add(self, name, command, accepts=frozenset({0}), environment=None, rounds=None):
        self.contestants.append(Contestant(name, command, accepts, environment or {}, rounds))

    def run(self, rounds):
        for number in range(rounds):
            for contestant in self.contestants:
                if contestant.most_rounds is None or number < contestant.most_rounds:
                    contestant.run()

    @property
    def result(self):
        base = min(self.contestants[0].seconds)
        return {"case": self.name, "title": self.title, "bytes": self.size, "contestants": [
            {"name": one.name, "seconds": one.seconds, "peak_kib": one.kib,
             "times_as_long": min(one.seconds) / base} for one in self.contestants]}


def contestants_table(contest):
    result = contest.result
    lines = [f"{contest.name}: {contest.title} ({contest.size >> 20} MiB)",
             f"  {'':24}{'seconds':>10}{'MiB/s':>10}{'peak MiB':>10}{'times as long':>16}"]
    for one in result["contestants"]:
        best = min(one["seconds"])
        lines.append(f"  {one['name']:24}{best:10.2f}{result['bytes'] / best / 2**20:10.0f}{one['peak_kib'] / 1024:10.0f}"
                     f"{one['times_as_long']:16.2f}")
    return "\n".join(lines) + "\n"
