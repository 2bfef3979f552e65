#!/usr/bin/env python3
"""guestkernel.py VMLINUZ SLIDE OUT - unpacks a bzImage and relocates it to a virtual slide, as its decompressor does
with KASLR.  OUT is a flat image for physical address 16 MiB, OUT.entry has the address of its entry (startup_64).

Done here because the emulator takes minutes to do it in a guest, and because the decompressor runs with interrupts
off, which the emulator then masks for the host too.
"""
import lzma
import struct
import subprocess
import sys

PHYSICAL_START = 0x1000000
KERNEL_MAP = 0xffffffff80000000
SETUP_SECTS, PAYLOAD_OFFSET = 0x1f1, 0x248      # Documentation/arch/x86/boot.rst
ENTRY = 24          # e_entry
PT_LOAD = 1
MASK64 = (1 << 64) - 1


def payload(image):
    offset, size = struct.unpack_from("<II", image, PAYLOAD_OFFSET)
    data = image[((image[SETUP_SECTS] or 4) + 1) * 512 + offset:][:size]
    if data.startswith(b"\xfd7zXZ"):
        return lzma.LZMADecompressor().decompress(data)
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        # the size that the kernel's build puts behind the frame is left over
        return subprocess.run(["zstd", "-dcq"], input=data[:-4], stdout=subprocess.PIPE, check=True).stdout
    raise SystemExit(f"a kernel in an unknown compression: {data[:6].hex()}")


def flat(vmlinux):
    phoff, = struct.unpack_from("<Q", vmlinux, 32)
    count, = struct.unpack_from("<H", vmlinux, 56)
    loads = [header for header in (struct.unpack_from("<IIQQQQQQ", vmlinux, phoff + 56 * index) for index in range(count))
             if header[0] == PT_LOAD]
    image = bytearray(max(physical + memsz for _, _, _, _, physical, _, memsz, _ in loads) - PHYSICAL_START)
    for _, _, offset, _, physical, filesz, _, _ in loads:
        start = physical - PHYSICAL_START
        image[start:start + filesz] = vmlinux[offset:offset + filesz]
    return image


def relocate(image, vmlinux, slide):
    """The tables lie behind the ELF file and are read from the end, each up to a 0: 32 bits, inverse 32 bits (of
    per-CPU variables), 64 bits (arch/x86/boot/compressed/misc.c, handle_relocations)."""
    position = len(vmlinux) - 4
    for form, sign in (("<I", 1), ("<i", -1), ("<Q", 1)):
        mask = MASK64 if form == "<Q" else 0xffffffff
        while (entry := struct.unpack_from("<i", vmlinux, position)[0]) != 0:
            place = ((entry & MASK64) - KERNEL_MAP & 0xffffffff) - PHYSICAL_START
            value = struct.unpack_from(form, image, place)[0] + sign * slide & mask
            struct.pack_into("<Q" if form == "<Q" else "<I", image, place, value)
            position -= 4
        position -= 4


def main(source, slide, target):
    with open(source, "rb") as file:
        vmlinux = payload(file.read())
    image = flat(vmlinux)
    relocate(image, vmlinux, int(slide, 0))
    image = image.rstrip(b"\0")
    with open(target, "wb") as file:
        file.write(image + b"\0" * (-len(image) % 4096))
    with open(target + ".entry", "w") as file:
        file.write(f"{struct.unpack_from('<Q', vmlinux, ENTRY)[0]:#x}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
