"""What a guest's monitor (lab/vmm) said of it: TRUTH lines of the host's console.

Registers are named as in the report of `vmcore-split registers`: a name, or a segment's name and part (`cs.limit`).
"""
import struct
from dataclasses import dataclass, field

MASK64 = (1 << 64) - 1
MARK_MAGIC = 0xC0DE000000000000

# As KVM_GET_MSRS names them; None for what the program does not report.
MSRS = {"efer": "efer", "star": "star", "lstar": "lstar", "cstar": "cstar", "sfmask": "sfmask", "fs_base": "fs.base",
        "gs_base": "gs.base", "kernel_gs_base": "kernel_gs_base", "sysenter_cs": "sysenter_cs",
        "sysenter_esp": "sysenter_esp", "sysenter_eip": "sysenter_eip", "pat": "pat",
        "tsc": None, "debugctl": None, "tsc_aux": None}


@dataclass
class Piece:
    """2 MiB of a slot: how many of its pages the host had, how many of them began with their mark, their checksum"""
    address: int
    pages: int
    marked: int
    checksum: int


@dataclass
class GuestTruth:
    name: str
    pid: str = None
    vcpus: dict = field(default_factory=dict)       # index: {register: value}
    stopped: dict = field(default_factory=dict)     # index: whether it stood still after its registers were told
    loop: tuple = (0, 0)                            # where RIP of those can be that did not
    slots: list = field(default_factory=list)       # (guest address, size)
    pieces: list = field(default_factory=list)


def read(lines):
    """{name: GuestTruth}"""
    guests = {}
    for line in lines:
        _, name, who, *words = line.split()
        guest = guests.setdefault(name, GuestTruth(name))
        values = {key: int(value, 0) for key, _, value in (word.partition("=") for word in words)}
        if who != "-":
            tell_vcpu(guest, int(who), values)
        elif "slot" in values:
            guest.pid = str(values["pid"])
            guest.slots.append((values["gpa"], values["size"]))
        elif "loop" in values:
            guest.loop = values["loop"], values["end"]
        elif "piece" in values:
            guest.pieces.append(Piece(values["piece"], values["pages"], values["marked"], values["sum"]))
        else:
            raise ValueError(line)
    return guests


def tell_vcpu(guest, index, values):
    if "stopped" in values:
        guest.stopped[index] = bool(values["stopped"])
        return
    registers = guest.vcpus.setdefault(index, {})
    for name, value in values.items():
        name = MSRS[name[4:]] if name.startswith("msr.") else name
        if name and registers.setdefault(name, value) != value:
            raise ValueError(f"{guest.name} vCPU {index}: two values of {name}")


def checksum(pages):
    """Of the pages' words, as vmm/truth.c does it"""
    total = 0xcbf29ce484222325
    for page in pages:
        for word in struct.unpack("<512Q", page):
            total = (total ^ word) * 0x100000001b3 & MASK64
            total ^= total >> 32
    return total


def is_marked(page, address):
    """Whether a page begins with the mark that vmm/tiny.c puts on the page of this address"""
    magic, place, inverse, guest = struct.unpack_from("<4Q", page)
    return magic == MARK_MAGIC | guest << 40 and place == address and inverse == address ^ MASK64
