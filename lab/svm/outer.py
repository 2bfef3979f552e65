#!/usr/bin/env python3
"""outer.py - starts the outer QEMU, waits for lines on its console, and drives it over QMP.

outer.py run  DIR MARKER TIMEOUT OUTPUT -- command...  starts it, detached, and waits for MARKER
outer.py wait DIR MARKER TIMEOUT OUTPUT                waits for MARKER on the console; gives up if neither that nor a
                                                       file of the folder OUTPUT grows any more
outer.py qmp  DIR COMMAND                              one QMP command
outer.py hmp  DIR 'info registers -a'                  one monitor command
outer.py dump DIR FILE FORMAT                          stops the machine and dumps it (elf, kdump-zlib)
outer.py quit DIR
"""
import json
import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../common"))

from qmp import Monitor  # noqa: E402

SHOWN = ("HOST:", "GUEST:", "KDUMP:")
STILL = 300     # seconds without a sign of life


def size(folder):
    """Bytes of a file, or of all files of a folder."""
    if os.path.isfile(folder):
        return os.path.getsize(folder)
    return sum(os.path.getsize(os.path.join(place, name)) for place, _, names in os.walk(folder) for name in names)


def wait(folder, marker, timeout, output, process=None):
    """Shows the console's lines for us up to the one with the marker; 1 if it does not come."""
    start, seen = time.time(), 0
    last, grown = 0, start
    while time.time() - start < timeout:
        now = size(folder + "/console") + size(output)
        if now != last:
            last, grown = now, time.time()
        if time.time() - grown > STILL:
            print(f"no sign of life for {STILL} s")
            return 1
        with open(folder + "/console", errors="replace") as file:
            lines = file.read().splitlines(keepends=True)
        for line in lines[seen:]:
            if not line.endswith("\n"):
                break
            seen += 1
            if "Kernel panic" in line and "sysrq triggered" not in line:
                print(line.strip())
                return 1
            if line.startswith(SHOWN):
                print(f"{time.time() - start:7.1f}s {line.strip()}", flush=True)
                if marker in line:
                    return 0
                if "FAIL" in line:
                    return 1
        if process and process.poll() is not None:
            with open(folder + "/qemu.log") as file:
                print("qemu ended with", process.returncode, file.read())
            return 1
        time.sleep(0.3)
    print(f"no {marker} within {timeout:.0f} s")
    return 1


def run(folder, marker, timeout, output, command):
    os.makedirs(folder, exist_ok=True)
    with open(folder + "/console", "w"):
        pass
    command += ["-serial", f"file:{folder}/console", "-qmp", f"unix:{folder}/qmp,server=on,wait=off"]
    with open(folder + "/qemu.cmdline", "w") as file:
        file.write(" ".join(f"'{word}'" if " " in word or "," in word else word for word in command) + "\n")
    with open(folder + "/qemu.log", "w") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                   start_new_session=True)
    return wait(folder, marker, timeout, output, process)


def dump(monitor, path, form):
    monitor("stop")
    start = time.time()
    arguments = {} if form == "elf" else {"format": form}
    monitor("dump-guest-memory", paging=False, protocol="file:" + os.path.abspath(path), **arguments)
    print(f"{time.time() - start:7.1f}s {form} {os.path.getsize(path)} {path}")


def main(verb, folder, *rest):
    if verb == "run":
        return run(folder, rest[0], float(rest[1]), rest[2], list(rest[rest.index("--") + 1:]))
    if verb == "wait":
        return wait(folder, rest[0], float(rest[1]), rest[2])
    monitor = Monitor(folder + "/qmp")
    if verb == "dump":
        dump(monitor, *rest)
    elif verb == "hmp":
        print(monitor.human(rest[0]), end="")
    elif verb == "qmp":
        print(json.dumps(monitor(rest[0]), indent=1))
    elif verb == "quit":
        monitor("quit")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
