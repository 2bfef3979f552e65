"""A scenario of the lab of QEMU's cores: its cores, and what is true of the guest."""
import json
import os
import re

from .elfcore import ElfCore

# Attributes of a segment in the upper half of its descriptor; emulation leaves the descriptor's other bits in there.
ATTRIBUTES = 0x00f0ff00
STATUS_FLAGS = 0x8d5
GENERAL = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
SEGMENTS = ["es", "cs", "ss", "ds", "fs", "gs"]
MSRS = dict(efer="efer", star="star", lstar="lstar", cstar="cstar", fmask="sfmask", kernelgsbase="kernel_gs_base",
            sysenter_cs="sysenter_cs", sysenter_esp="sysenter_esp", sysenter_eip="sysenter_eip", pat="pat", xcr0="xcr0",
            eip="rip", eflags="rflags")


def of_state(state):
    """One dictionary a vCPU, of the names of the JSON report, from the migration stream (see qemu/vmstate.py)"""
    result = []
    for instance, fields in sorted(state["cpu"].items(), key=lambda item: int(item[0])):
        env = {name[4:]: value for name, value in fields.items() if name.startswith("env.")}
        values = {name: env[f"regs[{index}]"] for index, name in enumerate(GENERAL)}
        values |= {name: env[member] for member, name in MSRS.items() if member in env}
        values |= {f"cr{index}": env[f"cr[{index}]"] for index in (0, 2, 3, 4)}
        values |= {f"dr{index}": env[f"dr[{index}]"] for index in (0, 1, 2, 3, 6, 7)}
        for member, name in [(f"segs[{index}]", name) for index, name in enumerate(SEGMENTS)] + [
                ("ldt", "ldtr"), ("tr", "tr"), ("gdt", "gdtr"), ("idt", "idtr")]:
            values |= {f"{name}.base": env[f"{member}.base"], f"{name}.limit": env[f"{member}.limit"]}
            if member not in ("gdt", "idt"):
                values[f"{name}.selector"] = env[f"{member}.selector"]
                values[f"{name}.attributes"] = env[f"{member}.flags"] & ATTRIBUTES
        apic = state["apic"][instance]
        result.append(values | {"apic_base": apic["apicbase"], "cr8": apic["tpr"] >> 4})
    return result


def of_report(processors):
    """({name: value} of the registers that a report of `vmcore-split registers` knows, a dictionary a vCPU)"""
    result = []
    for processor in processors:
        values = {}
        for name, reading in processor["registers"].items():
            if "value" in reading:
                values[name] = int(reading["value"], 16)
            values |= {f"{name}.{part}": int(reading[part], 16)
                       for part in ("selector", "base", "limit", "attributes") if part in reading}
        result.append(values)
    return result


def compare(truth, found, ignored_flags):
    """(equal, unknown, [what differs])"""
    if len(truth) != len(found):
        return 0, 0, [f"{len(found)} vCPUs instead of {len(truth)}"]
    equal, unknown, differences = 0, 0, []
    for index, (want, have) in enumerate(zip(truth, found)):
        for name, value in want.items():
            mask = ~ignored_flags if name == "rflags" else -1
            if name not in have:
                unknown += 1
            elif (have[name] ^ value) & mask:
                differences.append(f"vcpu {index} {name}: {have[name]:#x}, truth {value:#x}")
            else:
                equal += 1
    return equal, unknown, differences


class Scenario:
    """A guest with its cores; with the attributes that the readers' judge wants of a guest."""

    def __init__(self, out, name):
        self.out, self.name = out, name
        self.folder = os.path.join(out, "dumps", name)
        self.work = os.path.join(out, "test", name)
        os.makedirs(self.work, exist_ok=True)
        self.release = re.search(r"^GUEST:\S+ (\S+) up", self.text("console"), flags=re.M).group(1)
        self.truth_path = self.file("truth.elf")
        self.truth = ElfCore(self.truth_path) if os.path.exists(self.truth_path) else None
        self.state = json.loads(self.text("state.json")) if os.path.exists(self.file("state.json")) else None

    def file(self, name):
        return os.path.join(self.folder, name)

    def text(self, name):
        with open(self.file(name), errors="replace") as file:
            return file.read()

    @property
    def vmlinux(self):
        for folder in ("img", "svm/img"):
            path = os.path.join(self.out, folder, "debug/boot", f"vmlinux-{self.release}")
            if os.path.exists(path):
                return path
        raise FileNotFoundError(f"vmlinux-{self.release}")

    @property
    def program(self):
        """QEMU's file on this machine"""
        if "13" in self.name:
            return os.path.join(self.out, "qemu13/root/usr/bin/qemu-system-x86_64")
        return "/usr/bin/qemu-system-x86_64"

    def cores(self):
        return sorted(name for name in os.listdir(self.folder) if name.endswith(("core", ".gcore")))

    @property
    def is_stale(self):
        """KVM had the registers, and QEMU's copy of them is old"""
        return self.name.endswith(("-stopped", "-running"))

    def lacks_ram(self, core):
        """The core has no guest memory, by right"""
        return self.name.startswith("dontdump") or self.name.startswith("hugetlb")
