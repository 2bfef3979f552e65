"""Layouts of a VMCS as `VMCSINFO/1` text, and the other texts that a layout can be told in.

A layout is a dictionary from a field's encoding to the bits of the region that hold its value's bits, lowest first; None
for a bit that is not stored.
"""
import os
import re

FIELDS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../Sources/ControlBlocks/VMX/VMCSFields.tsv")


class Layout:
    def __init__(self, text):
        self.fields = {}
        match = re.search(r"^REVISION=(\w+)", text, flags=re.M)
        self.revision = int(match[1], 0) if match else None
        for keyword, encoding, size, value in re.findall(r"^(OFF|BITS)\((\w+)\)=(\d+):(\S+)", text, flags=re.M):
            if keyword == "OFF":
                bits = [int(value, 0) * 8 + bit for bit in range(int(size) * 8)]
            else:
                bits = [None if bit == "ffff" else int(bit, 16) for bit in value.split(",")]
            self.fields[int(encoding, 16)] = bits

    def read(self, region, encoding):
        return sum(1 << index for index, bit in enumerate(self.fields[encoding])
                   if bit is not None and region[bit >> 3] >> (bit & 7) & 1)

    def names(self):
        """(encoding, name, size, offset, whether it is stored rotated) of the fields that Linux has a name for"""
        with open(FIELDS) as file:
            known = {int(line.split("\t")[0], 16): line.split("\t")[1] for line in list(file)[1:]}
        for encoding, bits in sorted(self.fields.items()):
            if encoding in known:
                yield encoding, known[encoding], len(bits) // 8, min(bits) // 8, is_rotated(bits)


def is_rotated(bits):
    """Whether all bits are stored, in order, or rotated left by 8"""
    start, plain = min(bits), list(range(min(bits), min(bits) + len(bits)))
    if bits == plain:
        return False
    if start % 8 == 0 and bits == plain[8:] + plain[:8]:
        return True
    raise ValueError(f"a form of storing that only VMCSINFO/1 can tell: {bits}")


def table(layout):
    """As the program's own database has them."""
    rows = list(layout.names())
    yield f"# revision_id: {layout.revision} ({layout.revision:#x})\n"
    yield f"# access_rights_format: {'rotate8' if any(row[4] for row in rows) else 'plain'}\n"
    yield "# columns: encoding name offset_dec offset_hex bytes_stored sources\n"
    for encoding, name, size, offset, _ in rows:
        yield f"{encoding:#06x} {name} {offset} {offset:#05x} {size} lab\n"


def note(layout):
    """As the series of 2012 wrote it: what VMREAD reads from a region filled with indexes of its own bytes."""
    def index(offset):
        return (offset & 0x7f) << 1 | (offset & 0x3f80) << 2 | 0x100

    yield f"REVISION_ID={layout.revision:x}\n"
    for _, name, size, offset, rotated in layout.names():
        value = sum(index(offset + step) << 8 * step for step in range(0, size, 2))
        if rotated:
            value = (value >> 8 | value << 8 * size - 8) & (1 << 8 * size) - 1
        yield f"FIELD({name})={value:0{2 * size}x}\n"


def wrong(layout):
    """A VMCSINFO/1 text of another processor: every field lies elsewhere."""
    yield f"VMCSINFO/1\nREVISION={layout.revision:#x}\n"
    for encoding, bits in sorted(layout.fields.items()):
        yield f"OFF({encoding:04x})={len(bits) // 8}:{min(bits) // 8 ^ 0x40:#x}\n"
    yield "END\n"
