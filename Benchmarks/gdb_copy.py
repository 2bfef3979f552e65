# Run by gdb with a core: copies the memory of its large writable segments to $OUTPUT, a page at a time, which is how
# QEMU's dump-guest-memory.py moves a guest's RAM.  Without QEMU's debug information that script itself finds nothing.
import os
import struct

import gdb

PAGE = 4096


def loads(path):
    with open(path, "rb") as file:
        header = file.read(64)
        start, = struct.unpack_from("<Q", header, 32)
        size, count = struct.unpack_from("<HH", header, 54)
        file.seek(start)
        for _ in range(count):
            kind, flags, _, address, _, stored, *_ = struct.unpack_from("<IIQQQQQQ", file.read(size))
            if kind == 1 and flags & 2 and stored >= 64 << 20:
                yield address, stored


core = gdb.execute("info files", to_string=True).split("`")[1].split("'")[0]
inferior = gdb.selected_inferior()
with open(os.environ["OUTPUT"], "wb") as output:
    for address, size in loads(core):
        for position in range(address, address + size, PAGE):
            output.write(inferior.read_memory(position, PAGE))
