"""A scenario's results as lab/vmx/build.sh leaves them."""
import os
import re

from . import truth, vmcsinfo
from .elfcore import PAGE, ElfCore
from .registers import of_monitor
from .scenario import GuestMemory, Scenario
from .witness_elf import write_witness_elf

DUMPS = re.compile(r"((host|scrubbed|noted|untyped(\.scrubbed)?)\.elf|vmcore|(host|vmcore|scrubbed)\..*\.d\d+)$")
HUGE = 2 << 20


class VmxGuest(GuestMemory):
    """A guest and the truth about it: its memory by the witness, whose pages must have the checksums that the monitor
    told; its registers by the monitor, and by the witness for vCPUs that were never asked for theirs.

    Slots that KVM makes for itself (for real mode without unrestricted guest, the page of the local APIC) are none of the
    guest's memory."""

    def __init__(self, scenario, told, witness, release):
        runs = [run for run in witness["runs"]
                if any(start <= run[0] < start + size for start, size in told.slots)]
        super().__init__(runs)
        self.name, self.pid, self.told, self.release = told.name, told.pid, told, release
        self.vmlinux = scenario.vmlinux(release) if release else None
        self.witnessed = witness["vcpus"]
        self.registers = [told.vcpus.get(index, vcpu) for index, vcpu in enumerate(self.witnessed)]
        self.truth_path = os.path.join(scenario.work, f"{self.name}.witness.elf")
        notes = [of_monitor(vcpu) | {"prstatus.pid": index + 1} for index, vcpu in enumerate(self.registers)]
        write_witness_elf(self.truth_path, ElfCore(scenario.base), {"runs": runs, "vcpus": notes})
        self.truth = ElfCore(self.truth_path)

    def is_still(self, index):
        """Whether a vCPU's registers are those that were told, but for RIP of one that spins."""
        return index in self.told.vcpus

    def spins(self, index):
        return self.told.stopped.get(index) is False

    def witness_differences(self):
        """(registers compared, [what differs]) between the monitor and the witness"""
        count, differences = 0, []
        for index, told in self.told.vcpus.items():
            for name, value in told.items():
                found = self.witnessed[index].get(name)
                if found is None:
                    continue
                count += 1
                is_moved = name == "rip" and self.spins(index) and self.told.loop[0] <= found < self.told.loop[1]
                if found != value and not is_moved:
                    differences.append(f"{self.name} vCPU {index} {name}: witness {found:#x}, monitor {value:#x}")
        return count, differences

    def memory_differences(self):
        """(pieces of 2 MiB compared, [what differs]) between the witness's pages and the monitor's checksums"""
        if not all(map(self.is_still, range(len(self.registers)))):
            return 0, []        # one goes on, and writes to memory
        differences = []
        for piece in self.told.pieces:
            pages = [self.truth.read(start + index * PAGE, PAGE) for start, count, kind, _ in self.runs
                     if kind in ("page", "zero") for index in range(count)
                     if piece.address <= start + index * PAGE < piece.address + HUGE]
            if len(pages) != piece.pages or truth.checksum(pages) != piece.checksum:
                differences.append(f"{self.name} 2 MiB at {piece.address:#x}: {len(pages)} pages, the monitor had "
                                   f"{piece.pages}, or another checksum")
        return len(self.told.pieces), differences


class VmxScenario(Scenario):
    def forms(self):
        return sorted(name for name in os.listdir(self.folder) if DUMPS.match(name))

    def host_release(self):
        return self.text("release").strip()

    def has_module_types(self, form):
        """Whether the host's kernel tells the types of its modules in this form of the dump: since 5.11, and of those kernels
        there are copies in which it does not."""
        return os.path.exists(self.file("untyped.elf")) and not form.startswith("untyped")

    def measured(self):
        """The layouts that the module measured: with guests running, and at the other times"""
        others = sorted(name for name in os.listdir(self.folder) if re.match(r"vmcsinfo\..*\.txt$", name))
        return self.text("vmcsinfo.txt"), {name: self.text(name) for name in others}

    def layout(self):
        return vmcsinfo.Layout(self.text("vmcsinfo.txt"))

    def note_page(self):
        """How an address in the module's note begins: all but its last three digits"""
        match = re.search(r"HOST:measured with-guests, note at (\w+)000 ", self.text("console"))
        return f"0x{match[1]}"

    def guests(self):
        witness = self.witness("witness_vmx", "vmcsinfo.txt")
        told = truth.read(self.text("truth.txt").splitlines())
        releases = dict(re.findall(r"GUEST:(\w+) (\S+) up", self.text("console")))
        return [VmxGuest(self, guest, witness[guest.pid], releases.get(name)) for name, guest in sorted(told.items())]
