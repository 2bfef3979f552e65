"""Commands run in turn, and compared."""
import os
import re
import subprocess
import sys
import time


class Contestant:
    def __init__(self, name, command, accepts, environment, rounds):
        self.name, self.command, self.accepts, self.environment = name, command, accepts, environment
        self.most_rounds = rounds
        self.seconds, self.processor_seconds, self.kib = [], [], 0

    def run(self):
        start = time.monotonic()
        process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                   env={**os.environ, **self.environment})
        messages = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        self.seconds.append(time.monotonic() - start)
        self.processor_seconds.append(usage.ru_utime + usage.ru_stime)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.kib = max(self.kib, usage.ru_maxrss)
        if process.returncode not in self.accepts:
            sys.exit(f"{' '.join(self.command)} ended with {process.returncode}:\n{messages.decode(errors='replace')}")


class Codec(Contestant):
    """What the decompression alone of a number of bytes would take, with all processors at the rate that the codec's
    library has here and now: `codec` runs on all of them at once."""

    def __init__(self, name, library, tool, path, size, processors, rounds):
        super().__init__(name, [tool, path, "0.5"], frozenset({0}), {}, rounds)
        self.library, self.size, self.processors = library, size, processors

    def run(self):
        running = [subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True) for _ in range(self.processors)]
        rates = [float(re.search(rf"^{self.library} .* (\d+)$", process.communicate()[0], re.M)[1])
                 for process in running]
        self.seconds.append(self.size / (sum(rates) * 1e6))
        self.processor_seconds.append(self.seconds[-1] * self.processors)


class Contest:
    """The first contestant is the one that the others are compared with."""

    def __init__(self, name, title, size):
        self.name, self.title, self.size = name, title, size
        self.contestants = []

    def add(self, name, command, accepts=frozenset({0}), environment=None, rounds=None):
        self.contestants.append(Contestant(name, command, accepts, environment or {}, rounds))

    def add_codec(self, library, tool, path, size, rounds=None):
        processors = len(os.sched_getaffinity(0))
        self.contestants.append(
            Codec(f"{library} on {processors} cores", library, tool, path, size, processors, rounds))

    def run(self, rounds):
        for number in range(rounds):
            for contestant in self.contestants:
                if contestant.most_rounds is None or number < contestant.most_rounds:
                    contestant.run()

    @property
    def result(self):
        base = self.contestants[0]
        return {"case": self.name, "title": self.title, "bytes": self.size, "contestants": [
            {"name": one.name, "seconds": one.seconds, "processor_seconds": one.processor_seconds, "peak_kib": one.kib,
             "times_as_long": min(one.seconds) / min(base.seconds),
             "times_the_work": min(one.processor_seconds) / min(base.processor_seconds)} for one in self.contestants]}

    @property
    def table(self):
        result = self.result
        lines = [f"{self.name}: {self.title} ({self.size >> 20} MiB)",
                 f"  {'':24}{'seconds':>10}{'MiB/s':>10}{'cpu s':>8}{'peak MiB':>10}{'times as long':>16}{'times the cpu':>16}"]
        for one in result["contestants"]:
            best = min(one["seconds"])
            lines.append(f"  {one['name']:24}{best:10.2f}{result['bytes'] / best / 2**20:10.0f}"
                         f"{min(one['processor_seconds']):8.2f}{one['peak_kib'] / 1024:10.0f}"
                         f"{one['times_as_long']:16.2f}{one['times_the_work']:16.2f}")
        return "\n".join(lines) + "\n"


class Counts:
    """Numbers that are the same each time."""

    def __init__(self, name, title):
        self.name, self.title = name, title
        self.counts = {}

    def add(self, name, count):
        self.counts[name] = count

    def run(self, rounds):
        pass

    @property
    def result(self):
        return {"case": self.name, "title": self.title, "counts": self.counts}

    @property
    def table(self):
        return "\n".join([f"{self.name}: {self.title}",
                          *(f"  {name:24}{count:10.0f}" for name, count in self.counts.items())]) + "\n"
