// SPDX-License-Identifier: GPL-2.0
/* Visits to VMX operation, beside KVM: the part that must be safe */
#include <linux/delay.h>
#include <linux/init.h>
#include <linux/ktime.h>
#include <linux/perf_event.h>
#include <linux/sched.h>
#include <linux/string.h>
#include <asm/asm.h>
#include <asm/io.h>
#include <asm/tlbflush.h>

#include "vmcsinfo.h"

#define NO_VMCS		(~0ULL)

/*
 * Each VMX instruction returns 0 if it was carried out, -EINVAL if the
 * processor refused, and -EFAULT if it raised an exception.
 */
#define VMX_INSTRUCTION(name, template, parameters, ...)		\
static int __init name parameters					\
{									\
	asm goto("1: " template "\n\t"					\
		 "jbe %l[refused]\n\t"					\
		 _ASM_EXTABLE(1b, %l[faulted])				\
		 : : __VA_ARGS__ : "cc", "memory" : refused, faulted);	\
	return 0;							\
refused:								\
	return -EINVAL;							\
faulted:								\
	return -EFAULT;							\
}

VMX_INSTRUCTION(vmxon, "vmxon %0", (u64 pa), "m" (pa))
VMX_INSTRUCTION(vmxoff, "vmxoff", (void))
VMX_INSTRUCTION(vmclear, "vmclear %0", (u64 pa), "m" (pa))
VMX_INSTRUCTION(vmptrld, "vmptrld %0", (u64 pa), "m" (pa))
VMX_INSTRUCTION(vmptrst, "vmptrst %0", (u64 *pa), "m" (*pa))
VMX_INSTRUCTION(vmread, "vmread %1, %0", (u64 field, u64 *value),
		"m" (*value), "r" (field))
VMX_INSTRUCTION(vmwrite, "vmwrite %1, %0", (u64 field, u64 value),
		"r" (field), "rm" (value))

static int __init vmx_enter(struct workspace *ws)
{
	int ret;

	/* Processor Trace cannot go on in VMX operation on some CPUs. */
	intel_pt_handle_vmx(1);
	cr4_set_bits_irqsoff(X86_CR4_VMXE);
	ret = vmxon(virt_to_phys(ws->vmxon));
	if (ret) {
		cr4_clear_bits_irqsoff(X86_CR4_VMXE);
		intel_pt_handle_vmx(0);
	}
	return ret;
}

static void __init vmx_leave(void)
{
	vmxoff();
	cr4_clear_bits_irqsoff(X86_CR4_VMXE);
	intel_pt_handle_vmx(0);
}

static int __init access_region(struct measurement *m, u32 field, u64 *value,
				bool write)
{
	struct workspace *ws = m->ws;
	u64 region = virt_to_phys(ws->region);
	int ret;

	/* Have the processor forget the region before it is changed. */
	if (vmclear(region))
		return -EIO;
	memcpy(ws->region, ws->image, m->size);
	*(u32 *)ws->region = m->revision;
	if (vmptrld(region))
		return -EIO;
	ret = write ? vmwrite(field, *value) : vmread(field, value);
	vmclear(region);
	return ret;
}

/*
 * One visit to VMX operation: read or write one field of a VMCS that starts as
 * ws->image, and have the processor put it back to ws->region.  -EINVAL if the
 * processor refuses the access, -EBUSY if it is not to be had.
 *
 * If CR4.VMXE is set, this CPU is in the VMX operation of KVM, and all there is
 * to keep is the current VMCS.  Otherwise it enters VMX operation for the visit
 * alone.
 *
 * Nothing of a visit stays in the processor, and none relies on an earlier one:
 * KVM may come, go, and run guests in between.  During a visit
 *
 * - interrupts are off, so this CPU neither schedules nor answers the IPIs by
 *   which KVM takes a VMCS from a CPU.  The VMCS that was current is still
 *   active here when it is loaded again, and what KVM takes for the current one
 *   (its per-CPU current_vmcs) stays right;
 * - the CPU is in a thread of the kernel, not in an IPI that might have hit a
 *   vCPU on the way out of its guest: perf, whose NMI asks KVM for the RIP of
 *   a guest that it interrupted, finds none and does no VMREAD;
 * - an NMI that takes the CPU down for a crash does VMCLEAR for the VMCSs of
 *   KVM by their addresses, whichever is current, then VMXOFF if CR4.VMXE is
 *   set.  Since 6.6 this is done by KVM, and without KVM in use the CPU stays
 *   in VMX operation.  That matters only if it is itself the one that panics,
 *   from an NMI or a machine check within these microseconds;
 * - whatever exception a VMX instruction raises is handled.
 *
 * The values do no harm, as the VMCS is never entered.
 */
static int __init try_visit(struct measurement *m, u32 field, u64 *value, bool write)
{
	u64 current_vmcs = NO_VMCS;
	unsigned long flags;
	ktime_t start;
	bool own;
	int ret;

	local_irq_save(flags);
	start = ktime_get();
	own = !(__read_cr4() & X86_CR4_VMXE);
	if (own ? vmx_enter(m->ws) : vmptrst(&current_vmcs)) {
		ret = -EBUSY;
	} else {
		ret = access_region(m, field, value, write);
		if (own)
			vmx_leave();
		else if (current_vmcs != NO_VMCS)
			WARN_ON_ONCE(vmptrld(current_vmcs));
	}
	m->longest = max_t(u64, m->longest, ktime_sub(ktime_get(), start));
	local_irq_restore(flags);
	return ret;
}

/*
 * Since 6.12, a thread of KVM's can be preempted between setting CR4.VMXE and
 * VMXON, and between VMXOFF and clearing it.  Let it go on then.
 */
int __init visit(struct measurement *m, u32 field, u64 *value, bool write)
{
	unsigned int tries = 50;
	int ret;

	while ((ret = try_visit(m, field, value, write)) == -EBUSY && --tries)
		msleep(20);
	cond_resched();
	return ret;
}
