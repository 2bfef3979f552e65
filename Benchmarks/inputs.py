"""What the cases work on.  Made once for a folder."""
import os
import subprocess
import time


def random_file(path, mib):
    """Bytes that compress to about half, as memory does: a page of random bytes, then one of a short pattern."""
    with open(path, "wb") as file:
        for number in range(mib << 7):
            file.write(os.urandom(4096) + number.to_bytes(8, "little") * 512)


def qemu_core(folder, mib, filled):
    """The core, by gdb's gcore, of a QEMU whose stopped guest has `filled` of `mib` MiB filled."""
    path = os.path.join(folder, f"qemu-{mib}-{filled}.core")
    if os.path.exists(path):
        return path
    ready = os.path.join(folder, "ready")
    content = os.path.join(folder, "content")
    random_file(content, filled)
    with open(os.path.join(folder, "qemu.log"), "w") as log:
        qemu = subprocess.Popen(
            ["qemu-system-x86_64", "-name", "bench", "-accel", "tcg", "-M", "q35", "-m", str(mib), "-S", "-nodefaults",
             "-display", "none", "-device", f"loader,file={content},addr=0x10000000,force-raw=on",
             "-serial", "none", "-pidfile", ready], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    while not os.path.exists(ready):
        if qemu.poll() is not None:
            raise SystemExit(f"QEMU ended with {qemu.returncode}: see {log.name}")
        time.sleep(0.1)
    subprocess.run(["gdb", "-nx", "-batch", "-p", str(qemu.pid), "-ex", f"generate-core-file {path}"],
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    qemu.kill()
    qemu.wait()
    os.remove(content)
    os.remove(ready)
    return path
