"""The core of a VMM that `vmcore-split qemu-core` writes, against /proc, drgn, gdb and the host's dump."""
import os
import re
import struct
import subprocess

from . import pages
from .elfcore import EHDR, NOTE, PAGE, PHDR, PT_LOAD, PT_NOTE, ElfCore, align4
from .program import EXIT_COMPLETE, EXIT_FINDINGS

NT_PRSTATUS, NT_FILE = 1, 0x46494c45
PF_READ, PF_WRITE, PF_EXECUTE = 4, 2, 1
PN_XNUM, SH_INFO = 0xffff, 44
# Why a PT_LOAD has no bytes (PF_MASKOS of p_flags): 1 is zero, from 2 on there is a reason for each number.
ZERO_CODE = 1
STATUS_PID, STATUS_REGISTERS, REGISTER_COUNT = 32, 112, 27
MISSING_KINDS = {"file", "swap", "lost"}


class ProcessCore:
    """By virtual address, as gdb reads it."""

    def __init__(self, path):
        self.file = open(path, "rb")
        header = EHDR.unpack(self.file.read(EHDR.size))
        count = header[10]
        if count == PN_XNUM:
            count, = struct.unpack("<I", self.at(header[6] + SH_INFO, 4))
        self.loads, self.notes = [], []
        for kind, flags, offset, address, _, filesz, memsz, _ in PHDR.iter_unpack(self.at(header[5], count * PHDR.size)):
            if kind == PT_LOAD:
                self.loads.append((address, address + memsz, flags, offset, filesz))
            elif kind == PT_NOTE:
                self._add_notes(self.at(offset, filesz))

    def at(self, offset, size):
        self.file.seek(offset)
        return self.file.read(size)

    def _add_notes(self, data):
        position = 0
        while position < len(data):
            namesz, descsz, kind = NOTE.unpack_from(data, position)
            position += NOTE.size
            name = data[position:position + namesz].rstrip(b"\0").decode()
            position += align4(namesz)
            self.notes.append((name, kind, data[position:position + descsz]))
            position += align4(descsz)

    def files(self):
        """{start: (end, offset in the file, name)}"""
        note = next(desc for name, kind, desc in self.notes if (name, kind) == ("CORE", NT_FILE))
        count, unit = struct.unpack_from("<QQ", note)
        names = note[16 + 24 * count:].decode(errors="replace").split("\0")
        entries = struct.iter_unpack("<QQQ", note[16:16 + 24 * count])
        return {start: (end, offset * unit, name) for (start, end, offset), name in zip(entries, names)}

    def threads(self):
        """{pid: registers}"""
        return {str(struct.unpack_from("<i", desc, STATUS_PID)[0]):
                list(struct.unpack_from(f"<{REGISTER_COUNT}Q", desc, STATUS_REGISTERS))
                for name, kind, desc in self.notes if (name, kind) == ("CORE", NT_PRSTATUS)}


def mappings_of_maps(text):
    """(start, end, access, offset in the file, name or None) of /proc/PID/maps; the vsyscall page is no mapping."""
    for line in text.splitlines():
        span, access, offset, _, inode, *name = line.split(None, 5)
        start, end = (int(number, 16) for number in span.split("-"))
        name = name[0] if name and not name[0].startswith("[") else None
        if start >> 63 == 0:
            flags = PF_READ * (access[0] == "r") | PF_WRITE * (access[1] == "w") | PF_EXECUTE * (access[2] == "x")
            yield start, end, flags, int(offset, 16) if name else None, name


def mappings_of_witness(witness):
    """The same of what drgn says; vm_flags has read, write and execute as bits 0 to 2."""
    for start, end, flags, page, name in witness["mappings"]:
        access = PF_READ * (flags & 1) | flags & 2 | (flags & 4) >> 2
        yield start, end, access, page * PAGE if name else None, name


def compare_mappings(core, truth):
    """(equal, problems): every mapping is covered by PT_LOADs of its own, in order, and named if it has a file"""
    equal, problems, files, index = 0, [], core.files(), 0
    for start, end, access, offset, name in truth:
        position = start
        while index < len(core.loads) and core.loads[index][0] == position and core.loads[index][1] <= end \
                and core.loads[index][2] & 7 == access:
            position = core.loads[index][1]
            index += 1
        found = files.pop(start, None)
        # drgn does not tell what was deleted.
        if found and name and found[2] == name + " (deleted)":
            found = found[0], found[1], name
        if position == end and found == ((end, offset, name) if name else None):
            equal += 1
        else:
            problems.append(f"mapping {start:#x}-{end:#x} {name}: found up to {position:#x}, {found}")
    problems += [f"a PT_LOAD at {load[0]:#x} is of no mapping" for load in core.loads[index:]]
    problems += [f"a mapping of {name} at {start:#x} that is none" for start, (_, _, name) in files.items()]
    return equal, problems


class PageCounts:
    """pages = equal + different; missing ones are equal if the core says that they are missing."""

    def __init__(self):
        self.equal = self.different = self.missing = 0
        self.problems = []


def compare_pages(core, witness, host, has_swapped):
    """All pages of the process: where the witness found them in the host's dump, against the core's.  Of those that the
    host had swapped out it only knows that they were; where they can be had, they must not be missing."""
    counts = PageCounts()
    load = iter(core.loads)
    start, end, flags, offset, filesz = next(load)
    for address, pages, kind, physical in witness["runs"]:
        done = 0
        while done < pages:
            position = address + done * PAGE
            while position >= end:
                start, end, flags, offset, filesz = next(load)
            count = min(pages - done, (end - position) // PAGE, 256)
            code = flags >> 20 & 0xff
            if kind == "swap" and has_swapped:
                is_equal = filesz or code == ZERO_CODE
            elif filesz:
                data = core.at(offset + position - start, count * PAGE)
                want = host.read(physical + done * PAGE, count * PAGE) if kind == "page" else bytes(count * PAGE)
                is_equal = data == want and kind not in MISSING_KINDS
            elif code == ZERO_CODE:
                is_equal = kind in ("untouched", "zero")
            else:
                is_equal = code > ZERO_CODE and kind in MISSING_KINDS
                counts.missing += count
            if is_equal:
                counts.equal += count
            else:
                counts.different += count
                counts.problems.append(f"{count} pages from {position:#x} on ({kind}) differ")
            done += count
    return counts


def compare_threads(core, witness):
    """(equal registers, problems)"""
    found, equal, problems = core.threads(), 0, []
    truth = {pid: values for pid, values in witness["threads"].items() if values}
    if list(found) != list(truth):
        problems.append(f"threads {list(found)} instead of {list(truth)}")
    for pid, values in truth.items():
        for index, (want, have) in enumerate(zip(values, found.get(pid, []))):
            if want == have:
                equal += 1
            else:
                problems.append(f"thread {pid}: register {index} is {have:#x} instead of {want:#x}")
    return equal, problems


def gdb(core, program=None):
    """(threads, mappings of files) that gdb lists"""
    command = ["gdb", "-nx", "-batch", "-iex", "set debuginfod enabled off", "-iex", "set auto-load no",
               "-ex", "info threads", "-ex", "info proc mappings", *([program] if program else []), "-c", core]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    threads = re.findall(r"^[* ] \d+ +.*?LWP (\d+)", done.stdout, flags=re.M)
    return threads, len(re.findall(r"^ +0x[0-9a-f]+ +0x[0-9a-f]+ +0x", done.stdout, flags=re.M))


def compare_guests(dump, core, pid, folder, program, *swap):
    """(equal pages, different ones, problems): the guest out of the core, and out of the host's dump"""
    found = []
    for source, options in ((dump, ["--guest", pid, *swap]), (core, [])):
        path = os.path.join(folder, f"{pid}.{len(found)}.vmcore")
        done = program.run(source, *options, "-o", path, "--force", "--quiet")
        if done.returncode not in (EXIT_COMPLETE, EXIT_FINDINGS):
            return 0, 0, [f"the guest out of {source}: {done.stderr.strip()}"]
        found.append(ElfCore(path))
    counts = pages.compare(*found, lambda _: True)
    problems = counts.examples + (["pages of the core that the dump's guest has not"] if counts.extra else [])
    return counts.equal, counts.different, problems


def compare_registers(dump, core, pid, program):
    """(equal registers, different ones, problems): values, sources, and reasons of unknown ones"""
    first, second = (program.report([source], *options).get(pid, {"processors": []})["processors"]
                     for source, options in ((dump, ["--guest", pid]), (core, [])))
    names = [(index, name) for index, vcpu in enumerate(first) for name in vcpu["registers"]]
    problems = [f"vCPU {index} {name} is not the same" for index, name in names if len(first) != len(second)
                or first[index]["registers"][name] != second[index]["registers"].get(name)]
    return len(names) - len(problems), len(problems), problems
