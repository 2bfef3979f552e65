#!/usr/bin/env python3
"""untype.py IN OUT VMLINUX - a copy of an ELF dump whose kernel has no types of its modules, as before 5.11: the list of
them is empty.  VMLINUX is the host's, with symbols.  A kernel without such a list needs no copy, and gets none."""
import os
import re
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from labtest.elfcore import ElfCore  # noqa: E402

KERNEL_MAP = 0xffffffff80000000


def physical_address(symbol, vmlinux, core):
    """Where the kernel's own image has a symbol, or None"""
    symbols = subprocess.run(["nm", vmlinux], capture_output=True, text=True, check=True).stdout
    match = re.search(rf"^(\w+) \w {symbol}$", symbols, re.MULTILINE)
    if not match:
        return None
    text = core.descriptions("VMCOREINFO", 0)[0].decode()
    offset = int(re.search(r"^KERNELOFFSET=(\w+)", text, re.MULTILINE)[1], 16)
    base = int(re.search(r"^NUMBER\(phys_base\)=(-?\d+)", text, re.MULTILINE)[1])
    return int(match[1], 16) + offset - KERNEL_MAP + base, int(match[1], 16) + offset


def main(source, target, vmlinux):
    core = ElfCore(source)
    place = physical_address("btf_modules", vmlinux, core)
    if not place:
        print(f"{target} not made: the kernel has no types of modules")
        return
    physical, virtual = place
    loads = [load for load in core.loads if load.start <= physical < load.start + load.filesz]
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", source, target], check=True)
    with open(target, "r+b") as file:
        for load in loads:
            file.seek(load.offset + physical - load.start)
            # a list head that leads to itself
            file.write(virtual.to_bytes(8, "little") * 2)
    print(f"{target}: the list of modules' types emptied in {len(loads)} places")


if __name__ == "__main__":
    main(*sys.argv[1:])
