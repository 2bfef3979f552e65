"""The registers in the notes of a guest vmcore, by name, and their comparison."""
import struct

NT_PRSTATUS = 1
PR_PID = 32
PR_REG = 112
PR_REGS = ("r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss "
           "fs_base gs_base ds es fs gs").split()
QEMU_GPRS = "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags".split()
QEMU_SEGMENTS = "cs ds es fs gs ss ldt tr gdt idt".split()
QEMU_SIZE = 440


def prstatus(desc):
    values = dict(zip(PR_REGS, struct.unpack_from(f"<{len(PR_REGS)}Q", desc, PR_REG)))
    values["pid"], = struct.unpack_from("<I", desc, PR_PID)
    return {f"prstatus.{name}": value for name, value in values.items()}


def qemu(desc):
    values = dict(zip(QEMU_GPRS, struct.unpack_from(f"<{len(QEMU_GPRS)}Q", desc, 8)))
    position = 8 + 8 * len(QEMU_GPRS)
    for name in QEMU_SEGMENTS:
        selector, limit, flags, _, base = struct.unpack_from("<IIIIQ", desc, position)
        values |= {f"{name}.selector": selector, f"{name}.limit": limit, f"{name}.flags": flags, f"{name}.base": base}
        position += 24
    names = ["cr0", "cr1", "cr2", "cr3", "cr4"] + ["kernel_gs_base"] * (len(desc) >= QEMU_SIZE)
    values |= dict(zip(names, struct.unpack_from(f"<{len(names)}Q", desc, position)))
    return {f"qemu.{name}": value for name, value in values.items()}


def note_names(gprs, segments, control):
    """Registers by the names that the two notes of a vCPU have."""
    values = {f"qemu.{name}": gprs[name] for name in QEMU_GPRS}
    values |= {f"qemu.{name}.{part}": value for name in QEMU_SEGMENTS for part, value in segments[name].items()}
    values |= {f"qemu.{name}": value for name, value in control.items()}
    user = gprs | {name: segments[name]["selector"] for name in ("cs", "ss", "ds", "es", "fs", "gs")}
    user |= dict(eflags=gprs["rflags"], orig_rax=0, fs_base=segments["fs"]["base"], gs_base=segments["gs"]["base"])
    return values | {f"prstatus.{name}": user[name] for name in PR_REGS}


def of_monitor(values):
    """Registers by the names of a vCPU's notes, out of those of the report, as a monitor (truth.py) tells them"""
    values = values | {"kernel_gs_base": values.get("kernel_gs_base", 0)}
    segments = {}
    for name in QEMU_SEGMENTS:
        report = REPORT_TABLES.get(name, name)
        segments[name] = dict(selector=values.get(f"{report}.selector", 0), limit=values[f"{report}.limit"],
                              flags=values.get(f"{report}.attributes", 0), base=values[f"{report}.base"])
    control = {name: values.get(name, 0) for name in ("cr0", "cr1", "cr2", "cr3", "cr4", "kernel_gs_base")}
    return note_names({name: values[name] for name in QEMU_GPRS}, segments, control)


def of_vcpus(core):
    """One dictionary a vCPU, of both its notes.  A vmcore may lack the QEMU notes, but all of them only."""
    status = [prstatus(desc) for desc in core.descriptions("CORE", NT_PRSTATUS)]
    full = [qemu(desc) for desc in core.descriptions("QEMU", 0)] or [{}] * len(status)
    return [one | other for one, other in zip(status, full, strict=True)]


def compare(truth, found):
    """(registers compared, [what differs]); None in the truth stands for a register that no witness knows."""
    if len(truth) != len(found):
        return 0, [f"{len(found)} vCPUs instead of {len(truth)}"]
    count, differences = 0, []
    for index, (want, have) in enumerate(zip(truth, found)):
        for name, value in want.items():
            if value is None:
                continue
            count += 1
            if have.get(name) != value:
                shown = "absent" if name not in have else f"{have[name]:#x}"
                differences.append(f"vcpu {index} {name}: {shown}, truth {value:#x}")
    return count, differences


# ---- the JSON of `vmcore-split registers` --------------------------------------------------------------------------

REPORT_TABLES = {"ldt": "ldtr", "gdt": "gdtr", "idt": "idtr"}


def of_report(processors):
    """The registers of a guest's JSON report under the names of the QEMU note; those it does not know are absent."""
    result = []
    for processor in processors:
        known = processor["registers"]
        values = {f"qemu.{name}": int(known[name]["value"], 16)
                  for name in QEMU_GPRS + ["cr0", "cr2", "cr3", "cr4", "kernel_gs_base"] if "value" in known[name]}
        for name in QEMU_SEGMENTS:
            report = known[REPORT_TABLES.get(name, name)]
            for part, key in (("selector", "selector"), ("limit", "limit"), ("flags", "attributes"), ("base", "base")):
                if key in report:
                    values[f"qemu.{name}.{part}"] = int(report[key], 16)
        result.append(values)
    return result


def as_reported(processor):
    """({register: value}, {register: why it is not known}) of a vCPU in the report, named as in truth.py"""
    values, unknown = {}, {}
    for name, register in processor["registers"].items():
        if "unknown" in register:
            unknown[name] = register["unknown"]
        elif "value" in register:
            values[name] = int(register["value"], 16)
        else:
            values |= {f"{name}.{part}": int(register[part], 16)
                       for part in ("selector", "base", "limit", "attributes") if part in register}
    return values, unknown


def in_prstatus(truth):
    return [{name: value for name, value in vcpu.items() if name.startswith("prstatus.")} for vcpu in truth]


def in_report(truth):
    """The part of the truth that a report tells: no selector and flags for GDTR and IDTR, which have none."""
    never = {f"qemu.{table}.{part}" for table in ("gdt", "idt") for part in ("selector", "flags")} | {"qemu.cr1"}
    return [{name: value for name, value in vcpu.items() if name.startswith("qemu.") and name not in never}
            for vcpu in truth]
