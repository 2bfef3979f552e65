#!/usr/bin/env python3
"""witness_process.py DUMP VMLINUX MODULES PIDS RESULT - a second opinion on what a host dump says of VMMs' processes.

Runs in the venv with drgn and the debug symbols of vmlinux.  PIDS are numbers with commas between.

RESULT is JSON: processes by pid, each with
  mappings  [start, end, flags, file page, path or null]
  threads   {pid: values of struct user_regs_struct in its order, or null of a thread without user mode}
  runs      [address, pages, kind, host address]; kind is page, zero, untouched, file (a page of a file that is not in
            memory), swap or lost.  Mappings of devices have none.
"""
import json
import sys

from drgn import Object, cast
from drgn.helpers.linux.fs import d_path
from drgn.helpers.linux.mm import for_each_vma, page_to_pfn
from drgn.helpers.linux.pid import find_task
from drgn.helpers.linux.xarray import xa_is_value, xa_load

from labtest.elfcore import PAGE, ElfCore
from labtest.witness import KERNEL_MAP, PageTables, open_program

# THREAD_SIZE of x86-64 without KASAN.
STACK_SIZE = 4 * PAGE
VM_PFNMAP, VM_IO, VM_HUGETLB = 0x400, 0x4000, 0x400000
REGISTERS = "r15 r14 r13 r12 bp bx r11 r10 r9 r8 ax cx dx si di orig_ax ip cs flags sp ss".split()


def path(file):
    """The name that /proc shows, but for ` (deleted)`: drgn does not tell it."""
    dentry = file.f_path.dentry
    if dentry.d_op and dentry.d_op.d_dname:
        name = dentry.d_name.name.string_().decode(errors="replace")
        function = file.prog_.symbol(dentry.d_op.d_dname.value_()).name
        return f"anon_inode:{name}" if function == "anon_inodefs_dname" else f"/{name} (deleted)"
    return d_path(file.f_path).decode(errors="replace")


def registers(task):
    """Of the last entry into the kernel; nothing is padded above pt_regs in these kernels."""
    pt_regs = task.prog_.type("struct pt_regs")
    regs = Object(task.prog_, pt_regs, address=task.stack.value_() + STACK_SIZE - pt_regs.size)
    thread = task.thread
    if regs.ip == 0 and regs.sp == 0:
        return None
    return [getattr(regs, name).value_() for name in REGISTERS] + [
        thread.fsbase.value_(), thread.gsbase.value_(), thread.ds.value_(), thread.es.value_(),
        thread.fsindex.value_(), thread.gsindex.value_()]


def cached(vma, address):
    """(kind, host address) of a page of a mapping's file that is not mapped"""
    prog = vma.prog_
    index = vma.vm_pgoff.value_() + (address - vma.vm_start.value_()) // PAGE
    mapping = vma.vm_file.f_mapping
    entry = xa_load(mapping.i_pages.address_of_(), index)
    if not entry:
        shmem = mapping.a_ops == prog["shmem_aops"].address_of_()
        return ("untouched" if shmem else "file"), None
    if xa_is_value(entry):
        return "swap", None
    page = cast("struct page *", entry)
    # The entry of a large folio is its head.
    return "page", (page_to_pfn(page).value_() + index - page.index.value_()) * PAGE


def pages(vma, tables, image, base):
    """(address, kind, host address) of every page"""
    start, end = vma.vm_start.value_(), vma.vm_end.value_()
    is_vdso = start == vma.vm_mm.context.vdso.value_()
    for index, (kind, host) in enumerate(tables.pages(start, end)):
        address = start + index * PAGE
        if kind == "untouched":
            if is_vdso:
                kind, host = "page", image + index * PAGE - KERNEL_MAP + base
            elif vma.vm_file and not vma.vm_flags & VM_HUGETLB:
                kind, host = cached(vma, address)
        yield address, kind, host


def runs_of(found):
    runs = []
    for address, kind, host in found:
        if runs:
            start, count, last, first = runs[-1]
            if last == kind and start + count * PAGE == address and (host is None or first + count * PAGE == host):
                runs[-1][1] += 1
                continue
        runs.append([address, 1, kind, host])
    return runs


def process(prog, core, pid):
    info = dict(line.split("=", 1) for line in prog["VMCOREINFO"].string_().decode().splitlines() if "=" in line)
    base = int(info["NUMBER(phys_base)"])
    task = find_task(prog, pid)
    mm = task.mm
    tables = PageTables(core, mm.pgd.value_() - prog["page_offset_base"].value_(),
                        5 if info.get("NUMBER(pgtable_l5_enabled)") == "1" else 4,
                        prog.symbol("empty_zero_page").address - KERNEL_MAP + base)
    image = mm.context.vdso_image.data.value_()
    mappings, runs = [], []
    for vma in for_each_vma(mm):
        flags = vma.vm_flags.value_()
        mappings.append([vma.vm_start.value_(), vma.vm_end.value_(), flags, vma.vm_pgoff.value_(),
                         path(vma.vm_file) if vma.vm_file else None])
        if not flags & (VM_PFNMAP | VM_IO):
            runs += runs_of(pages(vma, tables, image, base))
    threads, node = {}, task.signal.thread_head.next
    while node != task.signal.thread_head.address_of_():
        thread = Object(prog, prog.type("struct task_struct"),
                        address=node.value_() - prog.type("struct task_struct").member("thread_node").offset)
        threads[thread.pid.value_()] = registers(thread)
        node = node.next
    return {"mappings": mappings, "threads": threads, "runs": runs}


def main(dump, vmlinux, modules, pids, result):
    core = ElfCore(dump)
    prog = open_program(dump, vmlinux, modules, "amd")
    with open(result, "w") as file:
        json.dump({pid: process(prog, core, int(pid)) for pid in pids.split(",")}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
