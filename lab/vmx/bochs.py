#!/usr/bin/env python3
"""bochs.py RUN MARKER TIMEOUT --memory MIB --ips N --model CPU - boots RUN/boot.iso in Bochs, waits for a line with
MARKER on its console (RUN/console), writes the machine's memory to RUN/memory and ends it.

Lines that are for us ("HOST:...", "GUEST:...", "CRASH:...") are shown, except those that console.py reads.
"""
import argparse
import os
import re
import signal
import subprocess
import sys
import time
from array import array

HERE = os.path.dirname(os.path.abspath(__file__))
SHOWN = re.compile(r"(\[\w+\] )?(HOST:(?!IOMEM|VMCSINFO|VMCOREINFO)|GUEST:|CRASH:)|VMM ")
BLOCK = 128 << 10         # Bochs 2.7 has the machine's memory in blocks of this size


# ---- the machine --------------------------------------------------------------------------------------------------

def start(run, memory, ips, model):
    with open(os.path.join(HERE, "bochsrc.in")) as file:
        text = file.read()
    for name, value in {"RUN": run, "MEMORY": memory, "IPS": ips, "MODEL": model}.items():
        text = text.replace(f"@{name}@", str(value))
    with open(f"{run}/bochsrc", "w") as file:
        file.write(text)
    with open(f"{run}/debugger", "w") as file:
        file.write("c\n")       # Debian's build has the debugger, which waits for a command: continue
    open(f"{run}/console", "w").close()
    # The terminal that it draws on is a file.
    with open(f"{run}/screen", "w") as screen:
        return subprocess.Popen(["bochs", "-q", "-f", f"{run}/bochsrc", "-rc", f"{run}/debugger"],
                                stdin=subprocess.DEVNULL, stdout=screen, stderr=subprocess.STDOUT,
                                env=os.environ | {"TERM": "vt100"}, start_new_session=True)


def wait(run, marker, timeout, process):
    """Shows the console's lines for us up to the one with the marker; why it does not come, or None"""
    begin, seen = time.time(), 0
    while time.time() - begin < timeout:
        with open(f"{run}/console", errors="replace", newline="\n") as file:
            lines = file.read().splitlines(keepends=True)
        for line in lines[seen:]:
            if not line.endswith("\n"):
                break
            seen += 1
            if SHOWN.match(line):
                print(f"{time.time() - begin:7.1f}s {line.strip()}", flush=True)
                if marker in line:
                    return None
            if "FAIL" in line or "Kernel panic" in line and marker != "CRASH:READY":
                time.sleep(5)
                return "the console says: " + line.strip()
        if process.poll() is not None:
            return f"bochs ended with {process.returncode}; see {run}/bochs.log"
        time.sleep(0.5)
    return f"no {marker} within {timeout:.0f} s"


# ---- its memory ---------------------------------------------------------------------------------------------------

def writable_mappings(pid):
    with open(f"/proc/{pid}/maps") as file:
        for line in file:
            match = re.match(r"(\w+)-(\w+) rw\S+ \S+ \S+ \d+\s*(.*)", line)
            if match and not match[3].startswith("[v"):
                yield int(match[1], 16), int(match[2], 16)


def block_pointers(words, count, low, high):
    """The array of block pointers among these words, if it is there: `count` in a row, each of them null or in
    [low, high) at a multiple of the block's size from the smallest, no two equal."""
    start = 0
    while start < len(words):
        if not low <= words[start] < high:
            start += 1
            continue
        end = start
        while end < len(words) and end - start < count and (words[end] == 0 or low <= words[end] < high):
            end += 1
        used = [word for word in words[start:end] if word]
        if (end - start == count and len(used) > count // 8 and len(set(used)) == len(used)
                and all((word - min(used)) % BLOCK == 0 for word in used)):
            return words[start:end]
        start = end
    return None


def find_blocks(pid, size):
    """Where each block is in the emulator, 0 for one that was never touched.  The blocks are placed in the order in
    which they were touched, and found by an array (BX_MEM_C::blocks)."""
    mappings = list(writable_mappings(pid))
    large = [(low, high) for low, high in mappings if high - low >= size]
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for low, high in mappings:
            if (low, high) in large:
                continue
            memory.seek(low)
            try:
                data = memory.read(high - low)
            except OSError:
                continue
            words = array("Q", data[:len(data) // 8 * 8])
            for bounds in large:
                found = block_pointers(words, size // BLOCK, *bounds)
                if found:
                    return found
    raise SystemExit("the emulated machine's memory was not found in the emulator")


def save_memory(pid, size, path):
    blocks = find_blocks(pid, size)
    with open(f"/proc/{pid}/mem", "rb", 0) as memory, open(path, "wb") as file:
        for index, address in enumerate(blocks):
            if not address:
                continue
            memory.seek(address)
            data = memory.read(BLOCK)
            if any(data):
                file.seek(index * BLOCK)
                file.write(data)
        file.truncate(size)
    print(f"memory written: {size >> 20} MiB, {sum(map(bool, blocks))} of {len(blocks)} blocks were used")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("marker")
    parser.add_argument("timeout", type=float)
    parser.add_argument("--memory", type=int)
    parser.add_argument("--ips", type=int)
    parser.add_argument("--model")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))      # so that the emulator does not stay behind
    process = start(options.run, options.memory, options.ips, options.model)
    try:
        problem = wait(options.run, options.marker, options.timeout, process)
        if problem:
            raise SystemExit(problem)
        process.send_signal(signal.SIGSTOP)
        save_memory(process.pid, options.memory << 20, f"{options.run}/memory")
    finally:
        process.kill()                  # it does not heed SIGTERM
        process.wait()


if __name__ == "__main__":
    main()
