#!/usr/bin/env python3
"""addnote.py IN OUT NAME FILE - a copy of an ELF dump with one more note, whose description is the file.

All notes move to the end of the copy, where there is room for them.
"""
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from labtest.elfcore import EHDR, PHDR, PT_NOTE  # noqa: E402
from labtest.witness_elf import note  # noqa: E402


def main(source, target, name, path):
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", source, target], check=True)
    with open(path, "rb") as file:
        added = note(name, 0, file.read())
    with open(target, "r+b") as file:
        header = EHDR.unpack(file.read(EHDR.size))
        phoff, count = header[5], header[10]
        file.seek(phoff)
        headers = [PHDR.unpack(file.read(PHDR.size)) for _ in range(count)]
        index, = (index for index, one in enumerate(headers) if one[0] == PT_NOTE)
        offset, size = headers[index][2], headers[index][5]
        file.seek(offset)
        notes = file.read(size) + added
        file.seek(phoff + index * PHDR.size)
        end = os.path.getsize(target)
        file.write(PHDR.pack(PT_NOTE, 0, end, 0, 0, len(notes), len(notes), 0))
        file.seek(end)
        file.write(notes)


if __name__ == "__main__":
    main(*sys.argv[1:])
