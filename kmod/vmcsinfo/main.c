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
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpu.h>
#include <linux/cpumask.h>
#include <linux/elf.h>
#include <linux/gfp.h>
#include <linux/kobject.h>
#include <linux/module.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/string.h>
#include <linux/sysfs.h>
#include <linux/workqueue.h>
#include <asm/hypervisor.h>
#include <asm/io.h>
#include <asm/msr.h>
#include <asm/processor.h>

#include "vmcsinfo.h"

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

/* A reader of a vmcore finds the note by the name of this variable. */
static struct elf64_note *vmcsinfo_note;
static size_t note_size;

static char *note_text(void)
{
	return (char *)(vmcsinfo_note + 1) + ALIGN(sizeof(NOTE_NAME), 4);
}

/* Runs in a thread that is bound to a CPU, which stays online. */
static long __init measure_on_cpu(void *m)
{
	return measure_fields(m);
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
	if (!m->size || m->size > PAGE_SIZE ||
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
	ret = work_on_cpu_safe(m->cpu, measure_on_cpu, m);
	if (ret) {
		pr_err("measuring on CPU %d failed: error %d%s\n", m->cpu, ret,
		       ret == -EBUSY ? ", does another hypervisor use VMX?" : "");
		return ret;
	}
	if (!m->fields) {
		pr_err("no field was found\n");
		return -EIO;
	}
	seq_buf_printf(&m->text, "END\n");
	if (seq_buf_has_overflowed(&m->text)) {
		pr_err("the text is too long\n");
		return -E2BIG;
	}
	return 0;
}

static int __init make_note(const char *text, size_t length)
{
	/* A header of zeros ends the notes for a reader of the whole memory. */
	note_size = PAGE_ALIGN(sizeof(*vmcsinfo_note) + ALIGN(sizeof(NOTE_NAME), 4) +
			       ALIGN(length, 4) + sizeof(*vmcsinfo_note));
	vmcsinfo_note = alloc_pages_exact(note_size, GFP_KERNEL | __GFP_ZERO);
	if (!vmcsinfo_note)
		return -ENOMEM;
	vmcsinfo_note->n_namesz = sizeof(NOTE_NAME);
	vmcsinfo_note->n_descsz = length;
	vmcsinfo_note->n_type = NOTE_TYPE;
	strcpy((char *)(vmcsinfo_note + 1), NOTE_NAME);
	memcpy(note_text(), text, length);
	return 0;
}

static void destroy_note(void)
{
	/* A later dump must not find a note that nobody keeps right. */
	memzero_explicit(vmcsinfo_note, note_size);
	free_pages_exact(vmcsinfo_note, note_size);
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
		pr_info("CPU %d, revision 0x%x: %u fields, %u of them transformed; interrupts were off for at most %llu ns\n",
			m.cpu, m.revision, m.fields, m.transformed, m.longest);

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
	return sysfs_emit(buf, "%llx %zx\n", (u64)virt_to_phys(vmcsinfo_note), note_size);
}

static struct kobj_attribute vmcsinfo_attr = __ATTR_RO_MODE(vmcsinfo, 0400);

/* /sys/module/vmcsinfo/layout: the text of the note */
static ssize_t layout_read(struct file *file, struct kobject *kobj,
			   CONST_BIN_ATTRIBUTE struct bin_attribute *attr, char *buf,
			   loff_t offset, size_t count)
{
	return memory_read_from_buffer(buf, count, &offset, note_text(), vmcsinfo_note->n_descsz);
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
