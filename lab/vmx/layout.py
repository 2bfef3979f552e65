#!/usr/bin/env python3
"""layout.py table|note|wrong VMCSINFO - a measured layout (VMCSINFO/1) in another of the texts that layouts come in, or a
layout that is not this one."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from labtest import vmcsinfo  # noqa: E402


def main(kind, path):
    with open(path) as file:
        layout = vmcsinfo.Layout(file.read())
    sys.stdout.writelines({"table": vmcsinfo.table, "note": vmcsinfo.note, "wrong": vmcsinfo.wrong}[kind](layout))


if __name__ == "__main__":
    main(*sys.argv[1:])
