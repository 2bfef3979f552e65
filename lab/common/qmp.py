"""QEMU's machine protocol."""
import json
import socket


class Monitor:
    """A connection to the QMP socket at `path`."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.file = self.socket.makefile("rw")
        json.loads(self.file.readline())
        self("qmp_capabilities")

    def __call__(self, command, **arguments):
        self.file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.file.flush()
        while True:     # events come in between
            answer = json.loads(self.file.readline())
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise SystemExit(f"{command}: {answer['error']['desc']}")

    def human(self, line):
        return self("human-monitor-command", **{"command-line": line})
