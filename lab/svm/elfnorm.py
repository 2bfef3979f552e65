#!/usr/bin/env python3
"""elfnorm.py IN OUT - a QEMU ELF dump with its program headers right behind the ELF header, as a sparse file.

QEMU 7.2 and later write the section headers first (e_phoff 192); makedumpfile insists on e_phoff 64.  Notes and
memory are copied as they are, memory at page-aligned offsets, pages of zeros as holes.
"""
import struct
import sys

PAGE = 4096
PHDR = struct.Struct("<IIQQQQQQ")
PT_LOAD = 1
CHUNK = 1 << 20


def copy(source, target, size):
    while size:
        data = source.read(min(size, CHUNK))
        if not data:
            raise SystemExit("the dump is truncated")
        if any(data):
            target.write(data)
        else:
            target.seek(len(data), 1)
        size -= len(data)


def main(source_path, target_path):
    with open(source_path, "rb") as source, open(target_path, "wb") as target:
        ehdr = bytearray(source.read(64))
        phoff, = struct.unpack_from("<Q", ehdr, 32)
        count, = struct.unpack_from("<H", ehdr, 56)
        source.seek(phoff)
        old = [PHDR.unpack(source.read(PHDR.size)) for _ in range(count)]

        struct.pack_into("<QQ", ehdr, 32, len(ehdr), 0)     # e_phoff, no section headers
        struct.pack_into("<HHH", ehdr, 58, 0, 0, 0)
        position, new = len(ehdr) + PHDR.size * count, []
        for kind, flags, _, vaddr, paddr, filesz, memsz, align in old:
            if kind == PT_LOAD:
                position = -(-position // PAGE) * PAGE
            new.append((kind, flags, position, vaddr, paddr, filesz, memsz, align))
            position += filesz

        target.write(ehdr + b"".join(PHDR.pack(*header) for header in new))
        for before, after in zip(old, new):
            source.seek(before[2])
            target.seek(after[2])
            copy(source, target, before[5])
        target.truncate(position)


if __name__ == "__main__":
    main(*sys.argv[1:])
