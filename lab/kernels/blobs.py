#!/usr/bin/env python3
"""blobs.py ROOT RESULT - takes BTF out of a kernel's packages, unpacked at ROOT: of vmlinux, packed into vmlinuz, and
of the modules of KVM, into RESULT/vmlinux.btf, kvm.btf and so on. A module without BTF (before 5.11) leaves no file."""
import glob
import lzma
import os
import struct
import subprocess
import sys
import zlib

XZ, ZSTD, GZIP = b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x1f\x8b"


def unpack(data):
    if data.startswith(XZ):
        return lzma.LZMADecompressor().decompress(data)
    if data.startswith(GZIP):
        return zlib.decompressobj(31).decompress(data)
    if data.startswith(ZSTD):
        # What follows the compressed data makes zstd complain, behind what is wanted.
        return subprocess.run(["zstd", "-dc"], input=data, capture_output=True).stdout
    return data


def kernel(bzimage):
    """The ELF file in a bzImage (Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length)."""
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = ((bzimage[0x1f1] or 4) + 1) * 512 + offset
    return unpack(bzimage[start:start + length])


def section(elf, wanted):
    start = struct.unpack_from("<Q", elf, 0x28)[0]
    size, count, names = struct.unpack_from("<HHH", elf, 0x3a)
    headers = [struct.unpack_from("<IIQQQQ", elf, start + index * size) for index in range(count)]
    strings = headers[names][4]
    for name, _, _, _, offset, length in headers:
        if elf[strings + name:elf.index(b"\0", strings + name)] == wanted:
            return elf[offset:offset + length]
    return None


def main(root, result):
    os.makedirs(result, exist_ok=True)
    images = glob.glob(f"{root}/boot/vmlinuz-*") + glob.glob(f"{root}/usr/lib/modules/*/vmlinuz")
    files = {"vmlinux": kernel(open(images[0], "rb").read())}
    for path in glob.glob(f"{root}/**/kernel/arch/x86/kvm/*.ko*", recursive=True):
        files[os.path.basename(path).split(".ko")[0]] = unpack(open(path, "rb").read())
    for name, elf in files.items():
        types = section(elf, b".BTF")
        print(f"  {name}: " + (f"{len(types)} bytes" if types else "no BTF"))
        if types:
            with open(f"{result}/{name}.btf", "wb") as file:
                file.write(types)


if __name__ == "__main__":
    main(*sys.argv[1:])
