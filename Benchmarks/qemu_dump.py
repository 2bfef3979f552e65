"""qemu_dump.py MONITOR COMMAND - gives a command to a QEMU's monitor, and waits until it is done."""
import socket
import sys


def answer(monitor):
    text = b""
    while not text.rstrip().endswith(b"(qemu)"):
        piece = monitor.recv(4096)
        if not piece:
            sys.exit("QEMU has gone")
        text += piece
    return text.decode(errors="replace")


with socket.socket(socket.AF_UNIX) as monitor:
    monitor.connect(sys.argv[1])
    answer(monitor)
    monitor.sendall(sys.argv[2].encode() + b"\n")
    said = answer(monitor)
    if "rror" in said:
        sys.exit(said.splitlines()[-2])
