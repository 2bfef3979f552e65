"""The devices' fields in QEMU's migration stream, by the description that the stream ends with.

vmstate.py STREAM prints those of vCPUs and local APICs as JSON: {device: {instance: {field: number}}}.
"""
import json
import struct
import sys

SECTION_FULL, DESCRIPTION = b"\x04", b"\x06"
WANTED = ("cpu", "cpu_common", "apic")


def description(stream):
    """The JSON in the last section: a type, a length, the text"""
    start = stream.rindex(DESCRIPTION, 0, stream.rindex(b'"devices"')) + len(DESCRIPTION) + 4
    return json.loads(stream[start:])


def leaves(fields, prefix=""):
    """(name, size, type) of every field, in the order of the stream"""
    for field in fields:
        name = prefix + field["name"] + (f"[{field['index']}]" if "index" in field else "")
        for index in range(field.get("array_len", 1)):
            one = f"{name}[{index}]" if "array_len" in field else name
            if "struct" in field:
                yield from struct_leaves(field["struct"], one + ".")
            else:
                yield one, field["size"], field["type"]


def struct_leaves(description, prefix=""):
    yield from leaves(description["fields"], prefix)
    if description.get("subsections"):
        raise ValueError(f"a subsection in {prefix}")


def section(stream, name, instance):
    """Where a device's first field is"""
    tail = bytes([len(name)]) + name.encode() + struct.pack(">I", instance)
    position = 0
    while True:
        position = stream.index(tail, position)
        if stream[position - 5:position - 4] == SECTION_FULL and stream[position - 4:position - 2] == b"\0\0":
            return position + len(tail) + 4
        position += 1


def device_fields(stream, device):
    position = section(stream, device["name"], device["instance_id"])
    values = {}
    for name, size, kind in leaves(device["fields"]):
        data = stream[position:position + size]
        position += size
        if size <= 8 and kind not in ("buffer", "unused_buffer"):
            values[name] = int.from_bytes(data, "big")
    return values


def devices(path):
    with open(path, "rb") as file:
        stream = file.read()
    result = {}
    for device in description(stream)["devices"]:
        if device["name"] in WANTED:
            result.setdefault(device["name"], {})[device["instance_id"]] = device_fields(stream, device)
    return result


if __name__ == "__main__":
    print(json.dumps(devices(sys.argv[1]), indent=1))
