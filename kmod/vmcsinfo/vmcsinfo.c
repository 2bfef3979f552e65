// SPDX-License-Identifier: GPL-2.0
/*
 * vmcsinfo - measure where this processor keeps the fields of a VMCS
 *
 * A vmcore of a KVM host holds the VMCS of every vCPU, but the architecture
 * leaves the layout of a VMCS region to the processor.  This module measures
 * the layout and keeps it in memory as an ELF note, so that a later vmcore
 * brings its own explanation along.  The note and the sysfs file that tells
 * its address are those of the VMCSINFO series of 2012; the text in the note
 * is VMCSINFO/1, see docs/VMCSINFO.md.
 *
 * Each field that the architecture could have is measured in two ways:
 *
 * FILL  The region is filled with numbers that tell their own offset, and the
 *	 field is read.  This is all that can be done for a field which
 *	 VMWRITE may not change.
 * WALK  One bit of the field is set after the other, and the one bit of the
 *	 region that changes is where it went.  This also finds values that
 *	 are stored transformed, such as the access rights of the segments.
 *
 * What FILL has read must be what WALK foretells, or the field is left out.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bitmap.h>
#include <linux/cpu.h>
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/elf.h>
#include <linux/gfp.h>
#include <linux/kobject.h>
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/perf_event.h>
#include <linux/sched.h>
#include <linux/seq_buf.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/string.h>
#include <linux/sysfs.h>
#include <linux/workqueue.h>
#include <asm/asm.h>
#include <asm/hypervisor.h>
#include <asm/io.h>
#include <asm/msr.h>
#include <asm/processor.h>
#include <asm/tlbflush.h>

#define NOTE_NAME	"VMCSINFO"
#define NOTE_TYPE	0

/* A reader looks no further into a text. */
#define TEXT_LIMIT	SZ_64K

/* IA32_VMX_BASIC and IA32_VMX_VMCS_ENUM, SDM vol. 3, appendix A.1 and A.9 */
#define BASIC_REVISION(basic)	((u32)(basic) & 0x7fffffff)
#define BASIC_SIZE(basic)	((u32)((basic) >> 32) & 0x1fff)
#define BASIC_32BIT_ADDRESSES	BIT_ULL(48)
#define BASIC_MEMORY_TYPE(basic) ((u32)((basic) >> 50) & 0xf)
#define MEMORY_TYPE_WB		6
#define ENUM_HIGHEST_INDEX(enum) ((u32)((enum) >> 1) & 0x1ff)

/* The encoding of a field, SDM vol. 3, 25.11.2; bit 0 is the high half */
#define FIELD(width, type, index) ((width) << 13 | (type) << 10 | (index) << 1)
#define FIELD_WIDTH(field)	((field) >> 13)

/* Every region begins with its revision id and the VMX-abort indicator. */
#define REGION_HEAD	8

#define NO_VMCS		(~0ULL)
#define NO_BIT		0xffff

/* What the processor works on must be in pages of its own. */
#define PAGE_BITS	(PAGE_SIZE * BITS_PER_BYTE)
struct workspace {
	DECLARE_BITMAP(vmxon, PAGE_BITS);
	DECLARE_BITMAP(region, PAGE_BITS);	/* the VMCS that is measured */
	DECLARE_BITMAP(image, PAGE_BITS);	/* what it starts with */
	DECLARE_BITMAP(changed, PAGE_BITS);
};

struct measurement {
	struct workspace *ws;
	struct seq_buf text;
	int cpu;
	u32 revision;
	unsigned int size;	/* bytes of a region */
	unsigned int highest_index;
	unsigned int fields;
	unsigned int transformed;
	u64 longest;		/* ns with interrupts off */
};

static struct elf64_note *note;
static size_t note_size;

static char *note_text(void)
{
	return (char *)(note + 1) + ALIGN(sizeof(NOTE_NAME), 4);
}

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
static int __init visit(struct measurement *m, u32 field, u64 *value, bool write)
{
	unsigned int tries = 50;
	int ret;

	while ((ret = try_visit(m, field, value, write)) == -EBUSY && --tries)
		msleep(20);
	cond_resched();
	return ret;
}

/*
 * FILL: read the field from a region whose words are their own offsets, and
 * from one with all these bits turned, to know constants from what was filled.
 */
static int __init fill(struct measurement *m, u32 field, u64 seen[2])
{
	u16 *word = (u16 *)m->ws->image;
	unsigned int turn, offset;
	int ret;

	for (turn = 0; turn < 2; turn++) {
		for (offset = 0; offset < PAGE_SIZE; offset += 2)
			word[offset / 2] = turn ? ~offset : offset;
		ret = visit(m, field, &seen[turn], false);
		if (ret)
			return ret;
	}
	return 0;
}

/*
 * WALK: find the bit of the region for each bit of the field.  Returns how many
 * were found; none at all if more than one bit of the region changed at a time.
 */
static int __init walk(struct measurement *m, u32 field, unsigned int bits, u16 *map)
{
	struct workspace *ws = m->ws;
	unsigned int size = m->size * BITS_PER_BYTE;
	unsigned int bit, found = 0;
	u64 value = 0;
	int ret;

	memset(ws->image, 0, PAGE_SIZE);
	ret = visit(m, field, &value, true);
	if (ret)
		return ret;
	memcpy(ws->image, ws->region, PAGE_SIZE);

	for (bit = 0; bit < bits; bit++) {
		value = BIT_ULL(bit);
		ret = visit(m, field, &value, true);
		if (ret)
			return ret;
		map[bit] = NO_BIT;
		bitmap_xor(ws->changed, ws->region, ws->image, size);
		if (bitmap_empty(ws->changed, size))
			continue;
		map[bit] = find_first_bit(ws->changed, size);
		if (map[bit] < REGION_HEAD * BITS_PER_BYTE ||
		    bitmap_weight(ws->changed, size) > 1)
			return 0;
		found++;
	}
	return found;
}

/* The offset that FILL alone tells, 0 if it does not. */
static unsigned int __init filled_offset(const u64 seen[2], unsigned int bytes,
					 unsigned int size)
{
	u16 offset = seen[0];
	unsigned int i;

	for (i = 0; i < bytes; i += 2) {
		u16 expected = offset + i;

		if ((u16)(seen[0] >> 8 * i) != expected ||
		    (u16)(~seen[1] >> 8 * i) != expected)
			return 0;
	}
	if (offset & 1 || offset < REGION_HEAD || offset + bytes > size)
		return 0;
	return offset;
}

/* Did FILL read what must be at the places that WALK found? */
static bool __init foretold(const u16 *map, unsigned int bits, const u64 seen[2])
{
	unsigned int bit;

	for (bit = 0; bit < bits; bit++) {
		bool expected;

		if (map[bit] == NO_BIT)
			continue;
		expected = (map[bit] / 16 * 2) & BIT(map[bit] % 16);
		if (!!(seen[0] & BIT_ULL(bit)) != expected ||
		    !!(seen[1] & BIT_ULL(bit)) == expected)
			return false;
	}
	return true;
}

static bool __init is_plain(const u16 *map, unsigned int bits)
{
	unsigned int bit;

	if (map[0] % BITS_PER_BYTE)
		return false;
	for (bit = 1; bit < bits; bit++)
		if (map[bit] != map[0] + bit)
			return false;
	return true;
}

/* Adds the line of a field to the text, or says why there is none. */
static int __init measure_field(struct measurement *m, u32 field)
{
	static const u8 width[] = { 2, 8, 4, 8 };
	unsigned int bytes = width[FIELD_WIDTH(field)], bits = bytes * BITS_PER_BYTE;
	unsigned int offset, bit;
	u16 map[64];
	u64 seen[2];
	int found;

	found = fill(m, field, seen);
	if (found == -EINVAL)
		return 0;	/* no such field */
	if (found < 0)
		return found;
	found = walk(m, field, bits, map);
	if (found < 0 && found != -EINVAL)
		return found;

	if (found > 0 && !foretold(map, bits, seen)) {
		pr_warn("left out field %04x: it reads as 0x%llx, not as it is written\n",
			field, seen[0]);
		return 0;
	}
	if (found > 0 && !is_plain(map, bits)) {
		seq_buf_printf(&m->text, "BITS(%04x)=%u:", field, bytes);
		for (bit = 0; bit < bits; bit++)
			seq_buf_printf(&m->text, bit ? ",%x" : "%x", map[bit]);
		seq_buf_printf(&m->text, "\n");
		m->fields++;
		m->transformed++;
		return 0;
	}
	if (!found)
		pr_warn("field %04x: writing does not tell where it is\n", field);
	offset = found > 0 ? map[0] / BITS_PER_BYTE : filled_offset(seen, bytes, m->size);
	if (!offset) {
		pr_warn("left out field %04x: it reads as 0x%llx\n", field, seen[0]);
		return 0;
	}
	seq_buf_printf(&m->text, "OFF(%04x)=%u:0x%x\n", field, bytes, offset);
	m->fields++;
	return 0;
}

/* Runs in a thread that is bound to a CPU, which stays online. */
static long __init measure(void *data)
{
	struct measurement *m = data;
	unsigned int width, type, index;
	int ret;

	for (width = 0; width < 4; width++)
		for (type = 0; type < 4; type++)
			for (index = 0; index <= m->highest_index; index++) {
				ret = measure_field(m, FIELD(width, type, index));
				if (ret)
					return ret;
			}
	return 0;
}

static int __init read_msr(int cpu, u32 msr, u64 *value)
{
	u32 low, high;
	int ret = rdmsr_safe_on_cpu(cpu, msr, &low, &high);

	*value = (u64)high << 32 | low;
	return ret;
}

static int __init check_processor(struct measurement *m)
{
	u64 basic, value = 0;

	if (!(cpuid_ecx(1) & BIT(5))) {
		pr_err("this processor has no VMX\n");
		return -ENODEV;
	}
	/* The kernel clears it if VMX is disabled or not locked as enabled. */
	if (!boot_cpu_has(X86_FEATURE_VMX)) {
		read_msr(m->cpu, MSR_IA32_FEAT_CTL, &value);
		pr_err("VMX is disabled, by the firmware (IA32_FEAT_CTL 0x%llx) or by an option\n",
		       value);
		return -ENODEV;
	}
	/* KVM may use enlightened VMCSs there, and their layout is published. */
	if (hypervisor_is_type(X86_HYPER_MS_HYPERV)) {
		pr_err("not measured on Hyper-V\n");
		return -ENODEV;
	}
	if (read_msr(m->cpu, MSR_IA32_VMX_BASIC, &basic) ||
	    read_msr(m->cpu, MSR_IA32_VMX_VMCS_ENUM, &value)) {
		pr_err("the VMX capabilities cannot be read\n");
		return -ENODEV;
	}
	m->revision = BASIC_REVISION(basic);
	m->size = BASIC_SIZE(basic);
	m->highest_index = ENUM_HIGHEST_INDEX(value);
	/* The same demands as KVM's */
	if (m->size <= REGION_HEAD || m->size > PAGE_SIZE ||
	    BASIC_MEMORY_TYPE(basic) != MEMORY_TYPE_WB || basic & BASIC_32BIT_ADDRESSES) {
		pr_err("cannot keep a VMCS as IA32_VMX_BASIC 0x%llx wants it\n", basic);
		return -ENODEV;
	}
	return 0;
}

/* A layout is that of one kind of core; there may be others. */
static int __init compare_cpus(struct measurement *m)
{
	cpumask_var_t others;
	u64 basic;
	int cpu;

	if (!zalloc_cpumask_var(&others, GFP_KERNEL))
		return -ENOMEM;
	cpus_read_lock();
	for_each_online_cpu(cpu)
		if (read_msr(cpu, MSR_IA32_VMX_BASIC, &basic) ||
		    BASIC_REVISION(basic) != m->revision)
			cpumask_set_cpu(cpu, others);
	cpus_read_unlock();
	if (!cpumask_empty(others)) {
		pr_warn("CPUs %*pbl have another revision id than CPU %d, which is measured\n",
			cpumask_pr_args(others), m->cpu);
		seq_buf_printf(&m->text, "# CPUs with another revision id: %*pbl\n",
			       cpumask_pr_args(others));
	}
	free_cpumask_var(others);
	return 0;
}

static int __init write_text(struct measurement *m)
{
	const struct cpuinfo_x86 *c = &cpu_data(m->cpu);
	int ret;

	seq_buf_printf(&m->text, "VMCSINFO/1\nREVISION=0x%x\nSIZE=%u\n",
		       m->revision, m->size);
	seq_buf_printf(&m->text, "CPU=%x.%x.%x\nMICROCODE=0x%x\nMODEL=%s\n", c->x86,
		       c->x86_model, c->x86_stepping, c->microcode, c->x86_model_id);
	ret = compare_cpus(m);
	if (ret)
		return ret;

	*(u32 *)m->ws->vmxon = m->revision;
	ret = work_on_cpu_safe(m->cpu, measure, m);
	if (ret == -EBUSY)
		pr_err("no VMX operation on CPU %d: in use by another hypervisor?\n", m->cpu);
	if (ret) {
		pr_err("measuring failed: %d\n", ret);
		return ret;
	}
	if (!m->fields) {
		pr_err("no field was found\n");
		return -EIO;
	}
	seq_buf_printf(&m->text, "END\n");
	return seq_buf_has_overflowed(&m->text) ? -E2BIG : 0;
}

static int __init make_note(const char *text, size_t length)
{
	/* A header of zeros ends the notes for a reader of the whole memory. */
	note_size = PAGE_ALIGN(sizeof(*note) + ALIGN(sizeof(NOTE_NAME), 4) +
			       ALIGN(length, 4) + sizeof(*note));
	note = alloc_pages_exact(note_size, GFP_KERNEL | __GFP_ZERO);
	if (!note)
		return -ENOMEM;
	note->n_namesz = sizeof(NOTE_NAME);
	note->n_descsz = length;
	note->n_type = NOTE_TYPE;
	strcpy((char *)(note + 1), NOTE_NAME);
	memcpy(note_text(), text, length);
	return 0;
}

static void destroy_note(void)
{
	/* A later dump must not find a note that nobody keeps right. */
	memzero_explicit(note, note_size);
	free_pages_exact(note, note_size);
}

static int __init measure_layout(void)
{
	struct measurement m = { .cpu = raw_smp_processor_id() };
	char *text;
	int ret;

	ret = check_processor(&m);
	if (ret)
		return ret;

	m.ws = alloc_pages_exact(sizeof(*m.ws), GFP_KERNEL | __GFP_ZERO);
	if (!m.ws)
		return -ENOMEM;
	ret = -ENOMEM;
	text = kvzalloc(TEXT_LIMIT, GFP_KERNEL);
	if (!text)
		goto free_workspace;
	seq_buf_init(&m.text, text, TEXT_LIMIT);

	ret = write_text(&m);
	if (!ret)
		ret = make_note(text, m.text.len);
	if (!ret)
		pr_info("revision 0x%x: %u fields, %u of them transformed; interrupts were off for at most %llu ns\n",
			m.revision, m.fields, m.transformed, m.longest);

	/* Leave neither a second text nor what looks like a VMCS in memory. */
	kvfree_sensitive(text, TEXT_LIMIT);
free_workspace:
	memzero_explicit(m.ws, sizeof(*m.ws));
	free_pages_exact(m.ws, sizeof(*m.ws));
	return ret;
}

/* /sys/kernel/vmcsinfo: where the note is, in the style of vmcoreinfo */
static ssize_t vmcsinfo_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%llx %zx\n", (u64)virt_to_phys(note), note_size);
}

static struct kobj_attribute vmcsinfo_attr = __ATTR_RO_MODE(vmcsinfo, 0400);

/* /sys/module/vmcsinfo/layout: the text of the note */
static ssize_t layout_read(struct file *file, struct kobject *kobj,
			   CONST_BIN_ATTRIBUTE struct bin_attribute *attr, char *buf,
			   loff_t offset, size_t count)
{
	return memory_read_from_buffer(buf, count, &offset, note_text(), note->n_descsz);
}

static struct bin_attribute layout_attr = __BIN_ATTR(layout, 0400, layout_read, NULL, 0);

static int __init vmcsinfo_init(void)
{
	int ret;

	ret = measure_layout();
	if (ret)
		return ret;
	ret = sysfs_create_bin_file(&THIS_MODULE->mkobj.kobj, &layout_attr);
	if (ret)
		goto destroy;
	ret = sysfs_create_file(kernel_kobj, &vmcsinfo_attr.attr);
	if (ret)
		goto remove_layout;
	return 0;

remove_layout:
	sysfs_remove_bin_file(&THIS_MODULE->mkobj.kobj, &layout_attr);
destroy:
	destroy_note();
	return ret;
}

static void __exit vmcsinfo_exit(void)
{
	sysfs_remove_file(kernel_kobj, &vmcsinfo_attr.attr);
	sysfs_remove_bin_file(&THIS_MODULE->mkobj.kobj, &layout_attr);
	destroy_note();
}

module_init(vmcsinfo_init);
module_exit(vmcsinfo_exit);

MODULE_DESCRIPTION("Measures the layout of VMCS regions and keeps it for vmcores");
MODULE_LICENSE("GPL");
