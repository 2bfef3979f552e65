"""What the cases work on.  Made once for a folder."""
import contextlib
import os
import subprocess
import sys
import time


def random_file(path, mib):
    """Bytes that compress to about half, as memory does: a page of random bytes, then one of a short pattern."""
    with open(path, "wb") as file:
        for number in range(mib << 7):
            file.write(os.urandom(4096) + number.to_bytes(8, "little") * 512)


def tool(name):
    """A program of this folder's: bench-host, which `make bench` builds, and codec, which cc builds in no time."""
    here = os.path.dirname(os.path.abspath(__file__))
    path = os.path.join(here, "../.build/release", name)
    if name == "codec":
        subprocess.run(["cc", "-O2", "-o", path, os.path.join(here, "codec.c"),
                        "-ldeflate", "-llzo2", "-lsnappy", "-lz", "-lzstd"], check=True)
    elif not os.path.exists(path):
        sys.exit(f"{path} is not there: run `make bench`")
    return path


def host(folder, mib, guests=1, small=4, content="filled", form="elf"):
    """The dump of a made-up host with guests of `mib` MiB each: see Host/main.swift."""
    path = os.path.join(folder, f"host-{mib}x{guests}-{small}-{content}.{form}")
    if not os.path.exists(path):
        if form == "elf":
            command = ["make", path, str(mib), str(guests), str(small), content]
        else:
            command = ["compress", host(folder, mib, guests, small, content), path, form]
        subprocess.run([tool("bench-host"), *command], check=True)
    return path


def qemu_core(folder, mib, filled):
    """The core, by gdb's gcore, of a QEMU whose stopped guest has `filled` of `mib` MiB filled."""
    path = os.path.join(folder, f"qemu-{mib}-{filled}.core")
    if not os.path.exists(path):
        with qemu(folder, mib, filled) as (process, _):
            subprocess.run(["gdb", "-nx", "-batch", "-p", str(process.pid), "-ex", f"generate-core-file {path}"],
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return path


@contextlib.contextmanager
def qemu(folder, mib, filled):
    """A QEMU with such a guest, and the path of its monitor."""
    content, monitor, log = (os.path.join(folder, name) for name in ("content", "monitor", "qemu.log"))
    random_file(content, filled)
    with open(log, "w") as output:
        process = subprocess.Popen(
            ["qemu-system-x86_64", "-name", "bench", "-accel", "tcg", "-M", "q35", "-m", str(mib), "-S", "-nodefaults",
             "-display", "none", "-device", f"loader,file={content},addr=0x10000000,force-raw=on", "-serial", "none",
             "-monitor", f"unix:{monitor},server=on,wait=off", "-pidfile", f"{content}.pid"],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            while not os.path.exists(f"{content}.pid"):
                if process.poll() is not None:
                    raise SystemExit(f"QEMU ended with {process.returncode}: see {log}")
                time.sleep(0.1)
            os.remove(content)
            yield process, monitor
        finally:
            process.kill()
            process.wait()
            for path in (content, f"{content}.pid", monitor):
                if os.path.exists(path):
                    os.remove(path)
