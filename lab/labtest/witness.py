#!/usr/bin/env python3
"""witness.py DUMP VMLINUX MODULES REGISTERS RESULT - a second opinion on what a host dump says of its guests.

Runs in the venv with drgn, and uses what vmcore-split must do without: the debug symbols of vmlinux and of the
kvm modules, and (for vCPUs that were running) the text of the outer hypervisor's `info registers -a`.  It serves
as the truth where the guests' own VMM wrote none, and says everywhere which pages the host had at all.

RESULT is JSON: guests by their VMM's pid (the second one of a process by PID-2), each with
  runs   [guest address, pages, kind, host address]; kind is page, zero, untouched, swap or lost
  vcpus  registers as registers.py names them; null where no witness knows a register
"""
import json
import os
import re
import struct
import sys
from collections import Counter

import drgn
from drgn import container_of
from drgn.helpers.linux.list import hlist_for_each_entry, list_for_each_entry
from drgn.helpers.linux.xarray import xa_for_each

from labtest.elfcore import PAGE, ElfCore
from labtest.registers import QEMU_SEGMENTS, QEMU_SIZE, note_names, qemu

PTE_PRESENT, PTE_LARGE, PTE_PROTNONE = 1, 0x80, 0x100
PTE_ADDRESS = 0x000ffffffffff000
IN_GUEST_MODE = 1
# The emulator keeps a descriptor's upper doubleword whole, with bits 16-19 of the limit in it; VMCB and KVM have
# the limit apart and these bits are zero in what a VMM writes of a KVM guest.
DESCRIPTOR_LIMIT = 0xf0000
KERNEL_MAP = 0xffffffff80000000
ARCH_REGS = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15 rip".split()
VMCB_SEGMENTS = {"ldt": "ldtr", "tr": "tr", "gdt": "gdtr", "idt": "idtr"}


# ---- memory -----------------------------------------------------------------------------------------------------

class PageTables:
    """A process's page tables, read from the dump file."""

    def __init__(self, core, top, levels, zero_page):
        self.core, self.top, self.levels, self.zero_page = core, top, levels, zero_page
        self.tables = {}

    def _table(self, address):
        if address not in self.tables:
            data = self.core.read(address, PAGE)
            self.tables[address] = struct.unpack("<512Q", data) if data else None
        return self.tables[address]

    def lookup(self, virtual):
        """(kind, host address, size of the mapping)"""
        address = self.top
        for level in reversed(range(self.levels)):
            shift = 12 + 9 * level
            table = self._table(address)
            if table is None:
                return "lost", None, 1 << shift
            entry = table[virtual >> shift & 511]
            if entry == 0:
                return "untouched", None, 1 << shift
            # PROTNONE marks a NUMA hinting fault: the page is still there
            if not entry & PTE_PRESENT and not entry & PTE_PROTNONE:
                return "swap", None, 1 << shift
            address = entry & PTE_ADDRESS
            if level == 0 or entry & PTE_LARGE and level < 3:
                base = address & ~((1 << shift) - 1)
                page = base + (virtual & (1 << shift) - 1 & -PAGE)
                return "zero" if page == self.zero_page else "page", page, 1 << shift
        raise AssertionError("unreachable")

    def pages(self, start, end):
        """(kind, host address) of every page of [start, end)"""
        virtual = start
        while virtual < end:
            kind, host, size = self.lookup(virtual)
            stop = min((virtual & -size) + size, end)
            for page in range(virtual, stop, PAGE):
                yield kind, None if host is None else host + page - virtual
            virtual = stop


def merge(pages):
    """[guest address, pages, kind, host address] runs out of (guest address, kind, host address)"""
    runs = []
    for guest, kind, host in pages:
        if runs:
            start, count, last_kind, last_host = runs[-1]
            if (start + count * PAGE == guest and last_kind == kind
                    and (kind != "page" or last_host + count * PAGE == host)):
                runs[-1][1] += 1
                continue
        runs.append([guest, 1, kind, host])
    return runs


def has_member(pointer, name):
    return pointer.type_.type.has_member(name)


def slots(kvm):
    """(guest address, size, VMM's address) of the VM's ordinary memory slots"""
    memslots = kvm.memslots[0]
    if has_member(memslots, "used_slots"):     # until 5.16
        for slot in memslots.memslots[:memslots.used_slots.value_()]:
            yield slot.base_gfn.value_() * PAGE, slot.npages.value_() * PAGE, slot.userspace_addr.value_()
        return
    node = f"id_node[{memslots.node_idx.value_()}]"
    for bucket in memslots.id_hash:
        for slot in hlist_for_each_entry("struct kvm_memory_slot", bucket, node):
            yield slot.base_gfn.value_() * PAGE, slot.npages.value_() * PAGE, slot.userspace_addr.value_()


def memory(kvm, tables):
    # What a process that has ended does not map, it may have had.
    has_ended = kvm.mm.mm_users.counter.value_() == 0
    pages = []
    for guest, size, virtual in sorted(slots(kvm)):
        pages += [(guest + index * PAGE, "lost" if has_ended and kind == "untouched" else kind, host)
                  for index, (kind, host) in enumerate(tables.pages(virtual, virtual + size))]
    return merge(pages)


# ---- registers --------------------------------------------------------------------------------------------------

def segment(name, vmcb_segment, cpl):
    """A VMCB segment as KVM shows it to its VMM (svm_get_segment) and QEMU writes it into its notes."""
    attributes = vmcb_segment.attrib.value_()
    limit = vmcb_segment.limit.value_()
    kind, rest = attributes & 0xf, attributes & 0x7f0
    present = bool(attributes & 0x80)
    if name in ("gdt", "idt"):
        return dict(selector=0, limit=limit, flags=0, base=vmcb_segment.base.value_())
    if name == "tr":
        kind |= 2
    elif name in ("ds", "es", "fs", "gs"):
        kind |= 1
    elif name == "ss":
        rest = rest & ~0x60 | cpl << 5
    granular = 0x800 if limit > 0xfffff else 0
    attributes = kind | rest | granular
    flags = ((attributes & 0xff) << 8 | (attributes & 0xf00) << 12) if present else 0
    return dict(selector=vmcb_segment.selector.value_(), limit=limit, flags=flags, base=vmcb_segment.base.value_())


def registers_at_rest(vcpu, svm):
    """A vCPU that is not in guest mode: KVM has saved everything."""
    arch, save = vcpu.arch, svm.vmcb.save
    gprs = {name: arch.regs[index].value_() for index, name in enumerate(ARCH_REGS)}
    gprs["rflags"] = save.rflags.value_()
    segments = {name: segment(name, getattr(save, VMCB_SEGMENTS.get(name, name)), save.cpl.value_())
                for name in QEMU_SEGMENTS}
    control = dict(cr0=arch.cr0.value_(), cr1=0, cr2=arch.cr2.value_(), cr3=save.cr3.value_(),
                   cr4=arch.cr4.value_(), kernel_gs_base=save.kernel_gs_base.value_())
    return note_names(gprs, segments, control)


def monitor_registers(text):
    """The CPUs of `info registers -a`: (GPRs, segments, control registers) each."""
    cpus = []
    for block in re.split(r"^CPU#\d+$", text, flags=re.M)[1:]:
        plain = {name.lower(): int(value, 16) for name, value in re.findall(r"\b([A-Z0-9]+) ?=([0-9a-f]+)\b", block)}
        gprs = {name: plain[name] for name in ARCH_REGS} | {"rflags": plain["rfl"]}
        segments = {}
        for name, selector, base, limit, flags in re.findall(
                r"^(ES|CS|SS|DS|FS|GS|LDT|TR) *=(\w{4}) (\w{16}) (\w{8}) (\w{8})", block, flags=re.M):
            segments[name.lower()] = dict(selector=int(selector, 16), limit=int(limit, 16),
                                          flags=int(flags, 16) & ~DESCRIPTOR_LIMIT, base=int(base, 16))
        for name, base, limit in re.findall(r"^(GDT|IDT)= +(\w{16}) (\w{8})", block, flags=re.M):
            segments[name.lower()] = dict(selector=0, limit=int(limit, 16), flags=0, base=int(base, 16))
        cpus.append((gprs, segments, {f"cr{n}": plain.get(f"cr{n}", 0) for n in range(5)}))
    return cpus


class PhysicalCpus:
    """The outer hypervisor's view of the host's CPUs: the guest's registers while a CPU is in guest mode."""

    def __init__(self, path, core):
        self.cpus = []
        if os.path.exists(path):
            with open(path) as file:
                self.cpus = monitor_registers(file.read())
        # `info registers` does not show this one
        self.notes = [qemu(desc) for desc in core.descriptions("QEMU", 0) if len(desc) >= QEMU_SIZE]

    def guest_registers(self, cpu, host_page_table):
        """None while the CPU runs host code: KVM sets the mode a little before it enters the guest."""
        if cpu >= len(self.cpus):
            return None
        gprs, segments, control = self.cpus[cpu]
        if control["cr3"] & PTE_ADDRESS == host_page_table:
            return None
        kernel_gs_base = self.notes[cpu]["qemu.kernel_gs_base"] if cpu < len(self.notes) else None
        return note_names(gprs, segments, control | {"kernel_gs_base": kernel_gs_base})


def vcpu_objects(prog, kvm):
    """(index, struct kvm_vcpu *) of each vCPU"""
    if has_member(kvm, "vcpus"):     # until 5.16
        entries = [(index, kvm.vcpus[index]) for index in range(kvm.online_vcpus.counter.value_())]
    else:
        entries = xa_for_each(kvm.vcpu_array.address_of_())
    return [(index, drgn.Object(prog, "struct kvm_vcpu *", value=entry.value_())) for index, entry in entries]


def vcpus(prog, kvm, cpus, page_table):
    result = []
    for index, vcpu in vcpu_objects(prog, kvm):
        svm = container_of(vcpu, prog.type("struct vcpu_svm"), "vcpu")
        running = None
        if vcpu.mode.value_() == IN_GUEST_MODE:
            running = cpus.guest_registers(vcpu.cpu.value_(), page_table)
        values = running or registers_at_rest(vcpu, svm)
        values["prstatus.pid"] = index + 1
        result.append(values)
    return result


# ---- the dump ---------------------------------------------------------------------------------------------------

def open_program(dump, vmlinux, modules, vendor):
    prog = drgn.Program()
    prog.set_core_dump(dump)
    found = [os.path.join(folder, name) for folder, _, names in os.walk(modules)
             for name in names if name in ("kvm.ko", f"kvm-{vendor}.ko")]
    prog.load_debug_info([vmlinux] + found)
    return prog


def machines(prog, core):
    """(struct kvm, its VMM's page tables) of each VM"""
    info = dict(line.split("=", 1) for line in prog["VMCOREINFO"].string_().decode().splitlines() if "=" in line)
    levels = 5 if info.get("NUMBER(pgtable_l5_enabled)") == "1" else 4
    zero_page = prog.symbol("empty_zero_page").address - KERNEL_MAP + int(info["NUMBER(phys_base)"])
    for kvm in list_for_each_entry("struct kvm", prog["vm_list"].address_of_(), "vm_list"):
        top = kvm.mm.pgd.value_() - prog["page_offset_base"].value_()
        yield kvm, PageTables(core, top, levels, zero_page)


def main(dump, vmlinux, modules, registers, result):
    core = ElfCore(dump)
    prog = open_program(dump, vmlinux, modules, "amd")
    cpus = PhysicalCpus(registers, core)
    guests, processes = {}, Counter()
    # the list has the newest first
    for kvm, tables in reversed(list(machines(prog, core))):
        pid = kvm.userspace_pid.value_()
        processes[pid] += 1
        name = f"{pid}-{processes[pid]}" if processes[pid] > 1 else str(pid)
        guests[name] = {"runs": memory(kvm, tables), "vcpus": vcpus(prog, kvm, cpus, tables.top)}
    with open(result, "w") as file:
        json.dump(guests, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
