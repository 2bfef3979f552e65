"""same_pages.py VMCORE OTHER - compares each page of an ELF vmcore with what drgn reads of another form of it.

Prints {equal, different, absent, extra}.  absent: zero in the ELF file (a hole), not there in the other.  extra: pages
between the loads of the ELF file that the other has.
"""
import json
import sys

import drgn

from .elfcore import ElfCore, PAGE

CHUNK = 256 * PAGE


def read(program, address, size):
    try:
        return program.read(address, size, True)
    except drgn.FaultError:
        return None


def main(vmcore, other):
    core = ElfCore(vmcore)
    program = drgn.Program()
    program.set_core_dump(other)
    counts = dict.fromkeys(("equal", "different", "absent", "extra"), 0)
    end = 0
    for load in core.loads:
        for address in range(end, load.start, PAGE):
            # Between far loads there is nothing to be found: a few pages tell.
            if address - end >= CHUNK and load.start - address > CHUNK:
                continue
            counts["extra"] += read(program, address, PAGE) is not None
        end = load.start + load.filesz
        for start in range(load.start, end, CHUNK):
            size = min(CHUNK, end - start)
            want = core.read(start, size)
            if read(program, start, size) == want:
                counts["equal"] += size // PAGE
                continue
            for offset in range(0, size, PAGE):
                page, have = want[offset:offset + PAGE], read(program, start + offset, PAGE)
                counts["absent" if have is None and not any(page) else "equal" if have == page else "different"] += 1
    print(json.dumps(counts))


if __name__ == "__main__":
    main(*sys.argv[1:])
