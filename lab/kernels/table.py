#!/usr/bin/env python3
"""table.py MEMBERS KERNEL... - which of the members that the program needs has which kernel.

KERNEL is a folder with vmlinux.btf and, of the kernels that have them, kvm.btf, kvm-amd.btf and kvm-intel.btf, as
blobs.py took them out of packages. Prints a line for each member: of each kernel its name or place there, with the
offset, `-` where it can be done without, `MISSING` where it cannot. Where types of a module are missing as a whole,
`no types` says so.
"""
import os
import struct
import sys

PLAIN = {1: 4, 2: 0, 3: 12, 7: 0, 8: 0, 9: 0, 10: 0, 11: 0, 12: 0, 14: 4, 16: 0, 17: 4, 18: 0}
PER_ELEMENT = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
STRUCT, UNION, FORWARD = 4, 5, 7
SAME = (8, 9, 10, 11, 18)       # typedef, volatile, const, restrict, type tag


class Btf:
    """The types of a kernel, or those of a module behind them."""

    def __init__(self, data, base=None):
        self.base = base
        _, _, _, header, type_offset, type_length, string_offset, string_length = struct.unpack_from("<HBBIIIII", data)
        self.first_string = base.last_string if base else 0
        self.strings = data[header + string_offset:header + string_offset + string_length]
        self.last_string = self.first_string + string_length
        self.types = list(base.types) if base else [(0, 0, 0, False, 0, b"")]
        self.named = {}
        position, end = header + type_offset, header + type_offset + type_length
        while position < end:
            name, info, size = struct.unpack_from("<III", data, position)
            kind, count = info >> 24 & 0x7f & 0x1f, info & 0xffff
            length = PLAIN[kind] if kind in PLAIN else PER_ELEMENT[kind] * count
            self.types.append((name, kind, count, info >> 31 == 1, size, data[position + 12:position + 12 + length]))
            if kind in (STRUCT, UNION) and name:
                self.named.setdefault(self.string(name), len(self.types) - 1)
            position += 12 + length

    def string(self, offset):
        if offset < self.first_string:
            return self.base.string(offset)
        start = offset - self.first_string
        return self.strings[start:self.strings.index(0, start)].decode()

    def find(self, name):
        found = self.named.get(name)
        return found if found is not None or not self.base else self.base.find(name)

    def resolve(self, number):
        while self.types[number][1] in SAME:
            number = self.types[number][4]
        return number

    def member(self, number, name):
        """(type, offset in bits) of a member, also of an anonymous one inside."""
        _, kind, count, bits, _, rest = self.types[self.resolve(number)]
        if kind not in (STRUCT, UNION):
            return None
        for index in range(count):
            label, target, offset = struct.unpack_from("<III", rest, index * 12)
            offset &= 0xffffff if bits else 0xffffffff
            if label and self.string(label) == name:
                return target, offset
            if not label:
                inner = self.member(target, name)
                if inner:
                    return inner[0], offset + inner[1]
        return None

    def place(self, structure, path):
        """Offset in bytes, or None"""
        number, offset = self.find(structure), 0
        for name in path.split("."):
            found = number is not None and self.member(number, name)
            if not found:
                return None
            number, offset = found[0], offset + found[1]
        return offset // 8


class Kernel:
    def __init__(self, folder):
        self.name = os.path.basename(folder.rstrip("/"))
        self.vmlinux = Btf(self.read(folder, "vmlinux"))
        self.modules = {}
        for module in ("kvm", "kvm-amd", "kvm-intel"):
            data = self.read(folder, module)
            if data:
                self.modules[module] = Btf(data, self.vmlinux)

    @staticmethod
    def read(folder, name):
        path = os.path.join(folder, name + ".btf")
        if not os.path.exists(path):
            return None
        with open(path, "rb") as file:
            return file.read()

    def types(self, structure):
        """Where the structure is defined: modules first, as the program looks."""
        for types in [*self.modules.values(), self.vmlinux]:
            if types.find(structure) is not None:
                return types
        return None

    def cell(self, structure, places, needs, optional):
        if needs and not self.types(needs):
            return "-"
        for place in places:
            # A place in another structure is written with its name.
            first, _, rest = place.partition(".")
            owner, path = (first, rest) if rest and self.types(first) and first != structure and "_" in first else (structure, place)
            types = self.types(owner)
            offset = types.place(owner, path) if types else None
            if offset is not None:
                return place if place == places[0] else f"={place}"
        if not self.types(structure):
            return "-" if optional else "no types"
        return "-" if optional else "MISSING"


def members(path):
    with open(path) as file:
        for line in file:
            words = line.split("#")[0].split()
            if not words:
                continue
            needs = next((word[1:] for word in words if word.startswith("@")), None)
            optional = "?" in words
            rest = [word for word in words[1:] if word != "?" and not word.startswith("@")]
            yield words[0], [word for word in rest if word != "|"], needs, optional


def main(path, *folders):
    kernels = [Kernel(folder) for folder in folders]
    rows = [["structure", "member", *[kernel.name for kernel in kernels]]]
    counts = {kernel.name: {"found": 0, "MISSING": 0, "no types": 0, "-": 0} for kernel in kernels}
    for structure, places, needs, optional in members(path):
        row = [structure, places[0]]
        for kernel in kernels:
            cell = kernel.cell(structure, places, needs, optional)
            counts[kernel.name][cell if cell in ("MISSING", "no types", "-") else "found"] += 1
            row.append("yes" if cell == places[0] else cell)
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    print()
    for kernel in kernels:
        print(kernel.name + ": " + ", ".join(f"{count} {what}" for what, count in counts[kernel.name].items()))
    return 1 if any(count["MISSING"] for count in counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
