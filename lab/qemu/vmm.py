#!/usr/bin/env python3
"""vmm.py FOLDER MARKER "CORE..." -- qemu-argument...

Starts a QEMU, waits for MARKER on its guest's console, and writes into FOLDER:

running.gcore    gdb's gcore while the guest runs (if wanted)
stopped.gcore    the same when it is stopped (if wanted)
stopped.core     the kernel's core, by SIGABRT, of the stopped guest (if wanted)
truth.elf        QEMU's own dump of the stopped guest
registers.txt    `info registers -a` of the stopped guest
state.json       the vCPUs' and APICs' fields in QEMU's migration stream of the stopped guest: the registers that
                 neither dump nor monitor tells
cmdline pid maps smaps mtree.txt ramblock.txt console qemu.log
"""
import json
import os
import resource
import signal
import subprocess
import sys
import time

import vmstate

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../common"))

from qmp import Monitor  # noqa: E402

PATTERN = "/proc/sys/kernel/core_pattern"


def write(name, text):
    with open(name, "w") as file:
        file.write(text)


def start(command):
    def unlimited():
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        # What a process has by default, whatever this one was given.
        write("/proc/self/coredump_filter", "0x33")
    command += ["-serial", "file:console", "-qmp", "unix:qmp,server=on,wait=off"]
    write("cmdline", " ".join(command) + "\n")
    write("console", "")
    with open("qemu.log", "w") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                preexec_fn=unlimited)


def wait(process, marker, seconds=300):
    for _ in range(seconds * 2):
        with open("console", errors="replace") as file:
            if os.path.exists("qmp") and marker in file.read():
                return
        if process.poll() is not None:
            raise SystemExit(open("qemu.log").read() + f"QEMU ended with {process.returncode}")
        time.sleep(0.5)
    raise SystemExit(f"no '{marker}' within {seconds} s")


def gcore(process, name):
    subprocess.run(["gdb", "-nx", "-batch", "-p", str(process.pid), "-ex", f"gcore {name}"], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    sparse(name)


def kernel_core(process, name):
    with open(PATTERN) as file:
        before = file.read()
    write(PATTERN, os.path.abspath("core.%p"))
    try:
        process.send_signal(signal.SIGABRT)
        process.wait()
    finally:
        write(PATTERN, before)
    os.rename(f"core.{process.pid}", name)
    sparse(name)


def sparse(name):
    subprocess.run(["fallocate", "--dig-holes", name], check=True)


def save_state(monitor):
    monitor("migrate", uri="exec:cat > state")
    while monitor("query-migrate")["status"] not in ("completed", "failed"):
        time.sleep(0.2)
    write("state.json", json.dumps(vmstate.devices("state"), indent=1))
    os.remove("state")      # it has the whole RAM, too


def truth(monitor, process):
    for name in ("maps", "smaps"):
        with open(f"/proc/{process.pid}/{name}") as file:
            write(name, file.read())
    write("registers.txt", monitor.human("info registers -a"))
    write("mtree.txt", monitor.human("info mtree -f"))
    write("ramblock.txt", monitor.human("info ramblock"))


def main(folder, marker, wanted, _, *command):
    os.makedirs(folder)
    os.chdir(folder)
    process = start(list(command))
    write("pid", f"{process.pid}\n")
    try:
        wait(process, marker)
        monitor = Monitor("qmp")
        if "running.gcore" in wanted:
            gcore(process, "running.gcore")
        monitor("stop")
        if "stopped.gcore" in wanted:
            gcore(process, "stopped.gcore")
        truth(monitor, process)
        # Reading every page for the truth gives QEMU pages of zeros, which do not matter: gcore came first.
        monitor("dump-guest-memory", paging=False, protocol="file:" + os.path.abspath("truth.elf"))
        sparse("truth.elf")
        save_state(monitor)
        if "stopped.core" in wanted:
            kernel_core(process, "stopped.core")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if os.path.exists("qmp"):
            os.remove("qmp")


if __name__ == "__main__":
    main(*sys.argv[1:])
