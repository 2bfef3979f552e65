#!/usr/bin/env python3
"""console.py CONSOLE FOLDER - what a host's console tells, into FOLDER:

truth.txt                       what the guests' monitor said of them (lab/vmm/truth.c)
truth.nested.txt                the same of the Linux guest's own guests, if it has any
vmcsinfo.txt                    the layout of the VMCS, measured while the guests ran
vmcsinfo.without-kvm.txt, ...   the same, measured at the other times
"""
import re
import sys


def main(console, folder):
    measured, truth, nested = {}, [], []
    with open(console, errors="replace", newline="\n") as file:
        for line in file:
            line = line.rstrip("\r\n")
            match = re.match(r"HOST:VMCSINFO (\S+) (.*)", line)
            if match:
                measured.setdefault(match[1], []).append(match[2])
            elif line.startswith("TRUTH "):
                truth.append(line)
            elif line.startswith("[vmL] TRUTH "):
                nested.append(line.partition(" ")[2])
    if not truth or "with-guests" not in measured:
        raise SystemExit(f"{console}: no truth, or no layout")
    measured["vmcsinfo"] = measured.pop("with-guests")
    for name, lines in measured.items():
        name = name if name == "vmcsinfo" else f"vmcsinfo.{name}"
        with open(f"{folder}/{name}.txt", "w") as file:
            file.writelines(line + "\n" for line in lines)
    for name, lines in (("truth", truth), ("truth.nested", nested)):
        if lines:
            with open(f"{folder}/{name}.txt", "w") as file:
                file.writelines(line + "\n" for line in lines)


if __name__ == "__main__":
    main(*sys.argv[1:])
