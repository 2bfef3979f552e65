"""A scenario's results as lab/svm/build.sh leaves them: the host's dumps, the guests, and what is true of them."""
import bisect
import json
import os
import re
import subprocess

from . import registers, truth
from .elfcore import ElfCore, PAGE
from .hostdump import open_held
from .witness_elf import write_noted_elf, write_witness_elf

DUMPS = re.compile(r"(vmcore|host\.(sparse\.)?elf|host\.kdump-zlib(\.rearranged)?|(host|vmcore)\..*\.d\d+(\.1)?)$")
CR0_PAGING = 1 << 31


class GuestMemory:
    """Where the host had a guest's pages: runs of [guest address, pages, kind, host address], see witness.py."""

    # Whether pages that the host had swapped out can be had: from its memory, or an image of the device.
    has_swapped = False

    def __init__(self, runs):
        self.runs = sorted(runs)
        self.starts = [run[0] for run in self.runs]

    def pages_held(self, held):
        """How many pages of the guest a dump file has."""
        swapped = sum(count for _, count, kind, _ in self.runs if kind == "swap") if self.has_swapped else 0
        return swapped + sum(held.holds(host + index * PAGE) for _, count, kind, host in self.runs if kind == "page"
                             for index in range(count))

    def held_by(self, held):
        """The function that says whether a dump file has the page of a guest address.

        An untouched page has no host page: it is zero, and counts as held, so that anything else in the truth
        shows as a difference.
        """
        def function(address):
            index = bisect.bisect_right(self.starts, address) - 1
            if index < 0:
                return True
            start, count, kind, host = self.runs[index]
            if address >= start + count * PAGE:
                return True
            if kind == "page":
                return held.holds(host + address - start)
            return self.has_swapped if kind == "swap" else kind != "lost"
        return function


class Guest(GuestMemory):
    """A guest and the truth about it.

    `truth` is the dump by the guest's own VMM.  Where there is none (the guest was running when the host was
    dumped or panicked) it is a file of the same form made by the witness.
    """

    def __init__(self, scenario, name, pid, release, witness):
        super().__init__(witness["runs"])
        self.name, self.pid, self.release = name, pid, release
        self.vmlinux = scenario.vmlinux(release)
        path = scenario.file(f"{name}.truth.elf")
        self.has_own_truth = os.path.exists(path)
        if not self.has_own_truth:
            path = os.path.join(scenario.work, f"{name}.witness.elf")
            write_witness_elf(path, ElfCore(scenario.base), witness)
        self.truth_path = path
        self.truth = ElfCore(path)
        self.registers = registers.of_vcpus(self.truth) if self.has_own_truth else witness["vcpus"]
        self.told, self.has_paging = None, True


class OwnGuest(GuestMemory):
    """A guest of the lab's own VMM, which told its registers and wrote its memory into a file."""

    def __init__(self, scenario, name, pid, release, witness):
        super().__init__(witness["runs"])
        self.name, self.pid, self.release = name, pid, release
        self.vmlinux = scenario.vmlinux(release) if release else None
        self.truth_path = scenario.file(f"{name}.truth.elf")
        self.truth = ElfCore(self.truth_path)
        told = truth.read(scenario.text(f"{name}.truth.txt").splitlines())
        vcpus = told[name].vcpus if told else {}
        self.told = [vcpus[index] for index in sorted(vcpus)]
        self.has_paging = any(vcpu["cr0"] & CR0_PAGING for vcpu in self.told)
        self.registers = [registers.of_monitor(vcpu) | {"prstatus.pid": index + 1}
                          for index, vcpu in enumerate(self.told)]
        if release:
            # crash opens no dump without notes
            self.truth_path = os.path.join(scenario.work, f"{name}.noted.elf")
            write_noted_elf(self.truth_path, self.truth, self.registers)


class Scenario:
    def __init__(self, out, name, tools):
        self.out, self.name, self.tools = out, name, tools
        self.folder = os.path.join(out, "dumps", name)
        self.work = os.path.join(out, "test", name)
        self.base = self.file("vmcore") if os.path.exists(self.file("vmcore")) else self.file("host.elf")
        os.makedirs(self.work, exist_ok=True)

    def file(self, name):
        return os.path.join(self.folder, name)

    def text(self, name):
        with open(self.file(name), errors="replace") as file:
            return file.read()

    def vmlinux(self, release):
        return os.path.join(self.out, "img/debug/boot", f"vmlinux-{release}")

    def forms(self):
        """The file name of every form of the host's dump; of a split one, the first."""
        return sorted(name for name in os.listdir(self.folder) if DUMPS.match(name))

    def parts(self, form):
        """The files of a form, in an order that is not theirs."""
        if not form.endswith(".1"):
            return [self.file(form)]
        stem = form.removesuffix("1")
        return sorted((self.file(name) for name in os.listdir(self.folder) if re.fullmatch(re.escape(stem) + r"\d", name)),
                      reverse=True)

    def swap_images(self):
        """The images of the host's swap device to try a dump with: none, and if there is one, that.  The witness does not
        know which pages of a memfd were swapped out, as those of g2 in zswap: that is tried with the image alone."""
        image = self.file("swap.img")
        if not os.path.exists(image):
            return [None]
        return [image] if self.name == "zswap" else [None, image]

    def has_swapped(self, image):
        """Whether all that the host had swapped out is in that image, or in its memory."""
        return image is not None or self.name == "zram"

    def has_capture_kernel(self):
        return os.path.exists(self.file("kdump.iomem"))

    def live(self):
        """What vmcore-split saved in the capture kernel: (folder, exit status, peak memory in KiB, messages); None
        where it was not there."""
        if not os.path.exists(self.file("live.status")):
            return None
        status = re.fullmatch(r"status (\d+)\s*", self.text("live.status")).group(1)
        kib = re.search(r"kib (\d+)", self.text("live.cost")).group(1)
        return self.file("live"), int(status), int(kib), self.text("live/guests.log")

    def host_pages(self):
        return open_held(self.base).pages

    def witness(self, program="witness", told="host.registers.txt"):
        """What a witness says of the unfiltered dump, given the file that `told` names; asked once, kept."""
        result = os.path.join(self.work, "witness.json")
        if not os.path.exists(result) or os.path.getmtime(result) < os.path.getmtime(self.base):
            release = self.host_release()
            here = os.path.dirname(os.path.abspath(__file__))
            subprocess.run([f"{self.tools}/venv/bin/python", "-m", f"labtest.{program}", self.base, self.vmlinux(release),
                            os.path.join(self.out, "img/debug/lib/modules", release), self.file(told), result],
                           env=os.environ | {"PYTHONPATH": os.path.dirname(here)}, check=True)
        with open(result) as file:
            return json.load(file)

    def host_release(self):
        return self.text("host.info").split()[2]

    def guests(self):
        witness = self.witness()
        result = []
        for name, pid in re.findall(r"HOST:guest (\w+) started pid (\d+(?:-\d+)?)", self.text("console")):
            console = self.text(f"{name}.console") if os.path.exists(self.file(f"{name}.console")) else ""
            release = re.search(rf"^GUEST:{name} (\S+) up", console, flags=re.M)
            kind = OwnGuest if os.path.exists(self.file(f"{name}.truth.txt")) else Guest
            result.append(kind(self, name, pid, release and release.group(1), witness[pid]))
        return result
