#!/usr/bin/env python3
"""scrub.py IN OUT - a copy of an ELF dump in which no layout of a VMCS is told: neither by the module's note nor by
what is left of it where it was printed or kept before."""
import mmap
import re
import subprocess
import sys

TEXTS = re.compile(rb"VMCSINFO|(?:OFF|BITS)\([0-9a-f]{4}\)=[0-9a-fx:, ]*|FIELDS?\([A-Z0-9_]+\)=[0-9a-f]*")


def main(source, target):
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", source, target], check=True)
    with open(target, "r+b") as file, mmap.mmap(file.fileno(), 0) as dump:
        places = [match.span() for match in TEXTS.finditer(dump)]
        for start, end in places:
            dump[start:end] = bytes(end - start)
    print(f"{target}: {len(places)} words of layouts removed")


if __name__ == "__main__":
    main(*sys.argv[1:])
