#!/usr/bin/env python3
"""witness_vmx.py DUMP VMLINUX MODULES VMCSINFO RESULT - what witness.py is for AMD's hosts, for Intel's.

VMCSINFO is the layout of the VMCS as it was measured on this host.  RESULT is JSON: guests by their VMM's pid, each with
`runs` as witness.py has them, and `vcpus`: registers as truth.py names them, absent where this witness knows none.
"""
import json
import sys

from drgn import container_of

from labtest.elfcore import PAGE, ElfCore
from labtest.vmcsinfo import Layout
from labtest.witness import ARCH_REGS, has_member, machines, memory, open_program, vcpu_objects

MASK64 = (1 << 64) - 1
GUEST_CR0, GUEST_CR3, GUEST_CR4, GUEST_RFLAGS, GUEST_RSP, GUEST_RIP = 0x6800, 0x6802, 0x6804, 0x6820, 0x681c, 0x681e
SELECTOR, BASE, LIMIT, ACCESS_RIGHTS = 0x0800, 0x6806, 0x4800, 0x4814     # of ES; the others follow
SEGMENTS = "es cs ss ds fs gs ldtr tr".split()
VM86 = ("es", "cs", "ss", "ds", "fs", "gs", "tr")
GDTR_BASE, GDTR_LIMIT, IDTR_BASE, IDTR_LIMIT = 0x6816, 0x4810, 0x6818, 0x4812
SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP = 0x482a, 0x6824, 0x6826
UNUSABLE = 1 << 16
URET_MSRS = {"star": 0xc0000081, "lstar": 0xc0000082, "cstar": 0xc0000083, "sfmask": 0xc0000084}
TASK_PRIORITY = 0x80        # in the local APIC's page


class VirtualProcessor:
    def __init__(self, prog, vcpu, core, layout):
        self.prog, self.vcpu, self.arch, self.layout = prog, vcpu, vcpu.arch, layout
        self.vmx = container_of(vcpu, prog.type("struct vcpu_vmx"), "vcpu")
        address = self.vmx.loaded_vmcs.vmcs.value_() - prog["page_offset_base"].value_()
        self.region = core.read(address, PAGE)

    def field(self, encoding):
        return self.layout.read(self.region, encoding)

    def is_available(self, name):
        """Whether KVM has read this register since the last exit: what it has may be newer then."""
        return bool(self.arch.regs_avail.value_() >> self.prog.constant(f"VCPU_{name}") & 1)

    def general(self):
        values = {name: self.arch.regs[index].value_() for index, name in enumerate(ARCH_REGS)}
        if not self.is_available("REGS_RSP"):
            values["rsp"] = self.field(GUEST_RSP)
        if not self.is_available("REGS_RIP"):
            values["rip"] = self.field(GUEST_RIP)
        values["rflags"] = (self.vmx.rflags.value_() if self.is_available("EXREG_RFLAGS")
                            else self.field(GUEST_RFLAGS))
        return values

    def control(self):
        values = {name: getattr(self.arch, name).value_() for name in ("cr2", "efer", "pat", "xcr0", "apic_base", "dr6", "dr7")}
        values |= {f"dr{index}": self.arch.db[index].value_() for index in range(4)}
        for name, encoding in (("cr0", GUEST_CR0), ("cr4", GUEST_CR4)):
            owned = getattr(self.arch, f"{name}_guest_owned_bits").value_()
            if self.is_available(f"EXREG_{name.upper()}"):
                owned = 0
            values[name] = getattr(self.arch, name).value_() & ~owned | self.field(encoding) & owned
        # with shadow paging the VMCS has the shadow's root
        is_own = self.is_available("EXREG_CR3") or not self.prog["enable_ept"]
        values["cr3"] = self.arch.cr3.value_() if is_own else self.field(GUEST_CR3)
        values["cr8"] = self.arch.cr8.value_()
        if self.arch.apic:
            values["cr8"] = self.prog.read(self.arch.apic.regs.value_() + TASK_PRIORITY, 1)[0] >> 4
        return values

    def segment(self, index):
        rights = self.field(ACCESS_RIGHTS + 2 * index)
        return {"selector": self.field(SELECTOR + 2 * index), "base": self.field(BASE + 2 * index),
                "limit": self.field(LIMIT + 2 * index),
                "attributes": 0 if rights & UNUSABLE else (rights & 0xf0ff) << 8}

    def lazily_loaded(self):
        """(number, value) of MSRs: each entry tells its place in a list until 5.12, then they are in the list's order"""
        entries = self.vmx.guest_uret_msrs
        if has_member(entries[0].address_of_(), "slot"):
            numbers = self.prog["vmx_uret_msrs_list"]
            return [(numbers[entry.slot].value_(), entry.data.value_())
                    for entry in (entries[index] for index in range(self.vmx.nr_uret_msrs.value_()))]
        numbers = self.prog["kvm_uret_msrs_list"]
        return [(numbers[index].value_(), entries[index].data.value_())
                for index in range(self.prog["kvm_nr_uret_msrs"].value_())]

    def msrs(self):
        values = {"sysenter_cs": self.field(SYSENTER_CS), "sysenter_esp": self.field(SYSENTER_ESP),
                  "sysenter_eip": self.field(SYSENTER_EIP)}
        values |= {name: value for msr, value in self.lazily_loaded() for name, number in URET_MSRS.items() if number == msr}
        if not self.vmx.guest_state_loaded:
            values["kernel_gs_base"] = self.vmx.msr_guest_kernel_gs_base.value_()
        return values

    def registers(self):
        values = self.general() | self.control() | self.msrs()
        for index, name in enumerate(SEGMENTS):
            values |= {f"{name}.{part}": value for part, value in self.segment(index).items()}
        values |= {"gdtr.base": self.field(GDTR_BASE), "gdtr.limit": self.field(GDTR_LIMIT),
                   "idtr.base": self.field(IDTR_BASE), "idtr.limit": self.field(IDTR_LIMIT)}
        if self.vmx.rmode.vm86_active:
            # real mode as vm86: the VMCS has what vm86 needs, and KVM keeps what the guest sees
            values = {name: value for name, value in values.items() if name != "rflags" and name.split(".")[0] not in VM86}
        return {name: value & MASK64 for name, value in values.items()}


def vcpus(prog, kvm, core, layout):
    return [VirtualProcessor(prog, vcpu, core, layout).registers() for _, vcpu in vcpu_objects(prog, kvm)]


def main(dump, vmlinux, modules, vmcsinfo, result):
    core = ElfCore(dump)
    prog = open_program(dump, vmlinux, modules, "intel")
    with open(vmcsinfo) as file:
        layout = Layout(file.read())
    guests = {kvm.userspace_pid.value_(): {"runs": memory(kvm, tables), "vcpus": vcpus(prog, kvm, core, layout)}
              for kvm, tables in machines(prog, core)}
    with open(result, "w") as file:
        json.dump(guests, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
