#!/usr/bin/env python3
"""snappy.py IN OUT - a kdump-compressed dump with raw pages, rewritten with snappy pages.

Debian builds makedumpfile without snappy, whose -p then silently writes raw pages.  This writes what
makedumpfile -p does: the same header, bitmaps and page descriptors; a page that snappy makes smaller is
compressed, any other stays raw.  crash, which reads such dumps, judges the result.
"""
import ctypes
import struct
import sys

PAGE = 4096
COMPRESSED_SNAPPY = 4
DESCRIPTOR = struct.Struct("<qIIQ")     # offset, size, flags, page_flags
HEADER_STATUS = 424                     # offset of disk_dump_header.status; block_size and the sizes of the parts follow

libsnappy = ctypes.CDLL("libsnappy.so.1")


def compress(page):
    length = ctypes.c_size_t(libsnappy.snappy_max_compressed_length(ctypes.c_size_t(len(page))))
    buffer = ctypes.create_string_buffer(length.value)
    if libsnappy.snappy_compress(page, ctypes.c_size_t(len(page)), buffer, ctypes.byref(length)) != 0:
        raise SystemExit("snappy failed")
    return buffer.raw[:length.value]


def main(source, target):
    with open(source, "rb") as file:
        dump = file.read()
    if dump[:8] != b"KDUMP   ":
        raise SystemExit(f"{source}: not a kdump-compressed dump")
    status, block_size, sub_blocks, bitmap_blocks = struct.unpack_from("<IiiI", dump, HEADER_STATUS)
    descriptors = (1 + sub_blocks + bitmap_blocks) * block_size
    bitmap = dump[descriptors - bitmap_blocks // 2 * block_size:descriptors]
    count = sum(byte.bit_count() for byte in bitmap)

    header = bytearray(dump[:descriptors])
    struct.pack_into("<I", header, HEADER_STATUS, status | COMPRESSED_SNAPPY)
    table, data, placed = [], [], {}
    position = descriptors + count * DESCRIPTOR.size
    for index in range(count):
        offset, size, flags, page_flags = DESCRIPTOR.unpack_from(dump, descriptors + index * DESCRIPTOR.size)
        if size != PAGE or flags:
            raise SystemExit(f"{source}: page {index} is not raw")
        if offset not in placed:        # all zero pages share one place
            page = dump[offset:offset + PAGE]
            small = compress(page)
            body = small if len(small) < PAGE else page
            placed[offset] = position, len(body), COMPRESSED_SNAPPY if body is small else 0
            data.append(body)
            position += len(body)
        table.append(DESCRIPTOR.pack(*placed[offset], page_flags))
    with open(target, "wb") as file:
        file.write(header)
        file.writelines(table)
        file.writelines(data)


if __name__ == "__main__":
    main(*sys.argv[1:])
