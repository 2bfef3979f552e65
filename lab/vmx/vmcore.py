#!/usr/bin/env python3
"""vmcore.py whole|crashed MEMORY CONSOLE OUT - an ELF vmcore out of a machine's memory and its console.

whole    of a running host: System RAM and kernel text by /proc/iomem, with the host's VMCOREINFO as only note
crashed  of a host in its crash kernel: what /proc/vmcore is there (fs/proc/vmcore.c), by the ELF header that the
         panicked kernel prepared (elfcorehdr= tells where), with its notes
"""
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from labtest.elfcore import EHDR, NOTE, PAGE, PHDR, PT_LOAD, PT_NOTE, align4  # noqa: E402

ET_CORE, EM_X86_64, RWX = 4, 62, 7
NO_ADDRESS = (1 << 64) - 1
KERNEL_MAP = 0xffffffff80000000
KERNEL_TEXT = 0xffffffff81000000       # _text without KASLR
CHUNK = 1 << 20


class Memory:
    def __init__(self, path):
        self.file = open(path, "rb")
        self.size = os.path.getsize(path)

    def read(self, address, size):
        self.file.seek(address)
        return self.file.read(size)


def note_size(header):
    """Of the note that begins with these bytes; 0 behind the last one"""
    name, desc, _ = NOTE.unpack_from(header)
    return NOTE.size + align4(name) + align4(desc) if name else 0


def write(path, memory, notes, loads):
    """loads: (virtual address, physical address, size).  Those whose memory lies in another's have no data of their
    own, as in /proc/vmcore's file, where the kernel's text lies in System RAM."""
    count = 1 + len(loads)
    position = -(-(EHDR.size + PHDR.size * count + len(notes)) // PAGE) * PAGE
    places = {}
    for _, start, size in sorted(loads, key=lambda load: -load[2]):
        if not any(start >= other and start + size <= other + length for other, (_, length) in places.items()):
            places[start] = position, size
            position += -(-size // PAGE) * PAGE

    def offset(start, size):
        for other, (place, length) in places.items():
            if other <= start and start + size <= other + length:
                return place + start - other
        raise AssertionError("unreachable")

    first_note = EHDR.size + PHDR.size * count
    headers = [PHDR.pack(PT_NOTE, 0, first_note, 0, 0, len(notes), len(notes), 0)]
    headers += [PHDR.pack(PT_LOAD, RWX, offset(start, size), virtual, start, size, size, 0)
                for virtual, start, size in loads]
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    with open(path, "wb") as file:
        file.write(EHDR.pack(ident, ET_CORE, EM_X86_64, 1, 0, EHDR.size, 0, 0, EHDR.size, PHDR.size, count, 0, 0, 0))
        file.write(b"".join(headers) + notes)
        for start, (place, size) in places.items():
            for step in range(0, size, CHUNK):
                data = memory.read(start + step, min(CHUNK, size - step))
                if any(data):
                    file.seek(place + step)
                    file.write(data)
        file.truncate(position)


def whole(memory, console):
    def ranges(name):
        return [(int(start, 16), int(end, 16) + 1)
                for start, end in re.findall(rf"HOST:IOMEM +([0-9a-f]+)-([0-9a-f]+) : {name}", console)]

    address, _ = (int(word, 16) for word in re.search(r"HOST:VMCOREINFO (\S+) (\S+)", console).groups())
    note = memory.read(address, note_size(memory.read(address, NOTE.size)))
    info = dict(line.split("=", 1) for line in note[24:].decode("latin-1").splitlines() if "=" in line)
    text = KERNEL_TEXT + int(info["KERNELOFFSET"], 16)
    physical = text - KERNEL_MAP + int(info["NUMBER(phys_base)"])
    end = max(end for _, end in ranges("Kernel"))
    ram = [(start, min(end, memory.size)) for start, end in ranges("System RAM") if start < memory.size]
    return note, [(text, physical, end - physical)] + [(NO_ADDRESS, start, end - start) for start, end in ram]


def crashed(memory, console):
    number, unit = re.search(r"CRASH:CMDLINE .*elfcorehdr=(0x[0-9a-f]+)(K?)", console).groups()
    address = int(number, 16) << (10 if unit else 0)
    header = EHDR.unpack(memory.read(address, EHDR.size))
    phoff, count = header[5], header[10]
    notes, loads = b"", []
    for index in range(count):
        kind, _, place, virtual, physical, size, _, _ = PHDR.unpack(
            memory.read(address + phoff + index * PHDR.size, PHDR.size))
        if kind == PT_NOTE:
            while size > NOTE.size and (length := note_size(memory.read(place, NOTE.size))):
                notes += memory.read(place, length)
                place, size = place + length, size - length
        elif kind == PT_LOAD:
            # /proc/vmcore has whole pages
            start = place & -PAGE
            end = -(-(place + size) // PAGE) * PAGE
            loads.append(((virtual - (place - start)) & NO_ADDRESS, start, end - start))
    return notes, loads


def main(kind, memory, console, out):
    with open(console, errors="replace") as file:
        notes, loads = {"whole": whole, "crashed": crashed}[kind](Memory(memory), file.read())
    write(out, Memory(memory), notes, loads)


if __name__ == "__main__":
    main(*sys.argv[1:])
