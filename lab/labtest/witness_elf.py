"""An ELF dump of a guest from what the witness says, for guests that have no dump by their own VMM."""
import struct

from .elfcore import EHDR, NOTE, PAGE, PHDR, PT_LOAD, PT_NOTE, align4
from .registers import NT_PRSTATUS, PR_PID, PR_REG, PR_REGS, QEMU_GPRS, QEMU_SEGMENTS, QEMU_SIZE

PRSTATUS_SIZE = 336


def note(name, kind, desc):
    raw = name.encode() + b"\0"
    return NOTE.pack(len(raw), len(desc), kind) + raw.ljust(align4(len(raw)), b"\0") + desc.ljust(align4(len(desc)), b"\0")


def prstatus(values):
    desc = bytearray(PRSTATUS_SIZE)
    struct.pack_into("<I", desc, PR_PID, values["prstatus.pid"])
    struct.pack_into(f"<{len(PR_REGS)}Q", desc, PR_REG, *(values[f"prstatus.{name}"] for name in PR_REGS))
    return bytes(desc)


def qemu(values):
    def value(name):
        return values[f"qemu.{name}"] or 0
    desc = struct.pack(f"<II{len(QEMU_GPRS)}Q", 1, QEMU_SIZE, *map(value, QEMU_GPRS))
    for name in QEMU_SEGMENTS:
        desc += struct.pack("<IIIIQ", value(f"{name}.selector"), value(f"{name}.limit"), value(f"{name}.flags"), 0,
                            value(f"{name}.base"))
    return desc + struct.pack("<6Q", *(value(f"cr{index}") for index in range(5)), value("kernel_gs_base"))


def contiguous(runs):
    """(guest address, size) of the stretches of guest memory"""
    stretches = []
    for start, count, _, _ in sorted(runs):
        if stretches and sum(stretches[-1]) == start:
            stretches[-1][1] += count * PAGE
        else:
            stretches.append([start, count * PAGE])
    return stretches


def write_witness_elf(path, host, witness):
    """Of runs of guest memory in the host's"""
    write_elf(path, witness["vcpus"], contiguous(witness["runs"]),
              ((start, host.read(address, count * PAGE)) for start, count, kind, address in witness["runs"]
               if kind == "page"))


def write_noted_elf(path, memory, vcpus):
    """Of a file that has the guest's memory, and no notes"""
    write_elf(path, vcpus, [(load.start, load.memsz) for load in memory.loads],
              ((load.start, memory.read(load.start, load.filesz)) for load in memory.loads))


def write_elf(path, vcpus, stretches, contents):
    notes = b"".join([note("CORE", NT_PRSTATUS, prstatus(vcpu)) for vcpu in vcpus]
                     + [note("QEMU", 0, qemu(vcpu)) for vcpu in vcpus])
    first = EHDR.size + PHDR.size * (1 + len(stretches))
    offset = -(-(first + len(notes)) // PAGE) * PAGE
    headers = [PHDR.pack(PT_NOTE, 0, first, 0, 0, len(notes), 0, 0)]
    places = []
    for start, size in stretches:
        headers.append(PHDR.pack(PT_LOAD, 0, offset, start, start, size, size, 0))
        places.append((start, size, offset))
        offset += size
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    with open(path, "wb") as file:
        file.write(EHDR.pack(ident, 4, 62, 1, 0, EHDR.size, 0, 0, EHDR.size, PHDR.size, len(headers), 0, 0, 0))
        file.write(b"".join(headers) + notes)
        for start, data in contents:
            base, _, place = next(entry for entry in places if entry[0] <= start < entry[0] + entry[1])
            file.seek(place + start - base)
            file.write(data)
        file.truncate(offset)
