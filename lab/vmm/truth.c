#define _GNU_SOURCE
#include "vmm.h"
#include <elf.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define VALUE(x) ((unsigned long long)(x))

static const struct {
	u32 index;
	const char *name;
} msrs[] = {
	{ 0xc0000080, "efer" }, { 0xc0000081, "star" }, { 0xc0000082, "lstar" }, { 0xc0000083, "cstar" },
	{ 0xc0000084, "sfmask" }, { 0xc0000100, "fs_base" }, { 0xc0000101, "gs_base" }, { 0xc0000102, "kernel_gs_base" },
	{ 0x174, "sysenter_cs" }, { 0x175, "sysenter_esp" }, { 0x176, "sysenter_eip" }, { 0x277, "pat" },
	{ 0x10, "tsc" }, { 0x1d9, "debugctl" }, { 0xc0000103, "tsc_aux" },
};

static pthread_mutex_t lines = PTHREAD_MUTEX_INITIALIZER;

static void tell_segment(const struct vcpu *vcpu, const char *name, const struct kvm_segment *s)
{
	/* attributes as in the second word of a descriptor, and none of a segment that cannot be used */
	u32 attributes = s->type << 8 | s->s << 12 | s->dpl << 13 | s->present << 15 | s->avl << 20 | s->l << 21 | s->db << 22
		| s->g << 23;

	printf("TRUTH %s %d %s.selector=0x%x %s.base=0x%llx %s.limit=0x%x %s.attributes=0x%x\n", vm.name, vcpu->index,
	       name, s->selector, name, VALUE(s->base), name, s->limit, name, s->unusable ? 0 : attributes);
}

static void tell_general(const struct vcpu *vcpu)
{
	struct kvm_regs r;

	if (ioctl(vcpu->fd, KVM_GET_REGS, &r))
		die("KVM_GET_REGS");
	printf("TRUTH %s %d rip=0x%llx rsp=0x%llx rflags=0x%llx rax=0x%llx rbx=0x%llx rcx=0x%llx\n", vm.name,
	       vcpu->index, r.rip, r.rsp, r.rflags, r.rax, r.rbx, r.rcx);
	printf("TRUTH %s %d rdx=0x%llx rsi=0x%llx rdi=0x%llx rbp=0x%llx r8=0x%llx r9=0x%llx\n", vm.name,
	       vcpu->index, r.rdx, r.rsi, r.rdi, r.rbp, r.r8, r.r9);
	printf("TRUTH %s %d r10=0x%llx r11=0x%llx r12=0x%llx r13=0x%llx r14=0x%llx r15=0x%llx\n", vm.name,
	       vcpu->index, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15);
}

static void tell_special(const struct vcpu *vcpu)
{
	struct kvm_sregs s;
	struct kvm_debugregs d;
	struct kvm_xcrs x;

	if (ioctl(vcpu->fd, KVM_GET_SREGS, &s) || ioctl(vcpu->fd, KVM_GET_DEBUGREGS, &d)
	    || ioctl(vcpu->fd, KVM_GET_XCRS, &x))
		die("KVM_GET_SREGS");
	printf("TRUTH %s %d cr0=0x%llx cr2=0x%llx cr3=0x%llx cr4=0x%llx cr8=0x%llx efer=0x%llx apic_base=0x%llx\n",
	       vm.name, vcpu->index, s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer, s.apic_base);
	tell_segment(vcpu, "cs", &s.cs);
	tell_segment(vcpu, "ds", &s.ds);
	tell_segment(vcpu, "es", &s.es);
	tell_segment(vcpu, "ss", &s.ss);
	tell_segment(vcpu, "fs", &s.fs);
	tell_segment(vcpu, "gs", &s.gs);
	tell_segment(vcpu, "tr", &s.tr);
	tell_segment(vcpu, "ldtr", &s.ldt);
	printf("TRUTH %s %d gdtr.base=0x%llx gdtr.limit=0x%x idtr.base=0x%llx idtr.limit=0x%x\n", vm.name,
	       vcpu->index, s.gdt.base, s.gdt.limit, s.idt.base, s.idt.limit);
	printf("TRUTH %s %d dr0=0x%llx dr1=0x%llx dr2=0x%llx dr3=0x%llx dr6=0x%llx dr7=0x%llx\n", vm.name,
	       vcpu->index, d.db[0], d.db[1], d.db[2], d.db[3], d.dr6, d.dr7);
	for (u32 k = 0; k < x.nr_xcrs; k++)
		printf("TRUTH %s %d xcr%u=0x%llx\n", vm.name, vcpu->index, x.xcrs[k].xcr, x.xcrs[k].value);
}

static void tell_msrs(const struct vcpu *vcpu)
{
	for (unsigned k = 0; k < sizeof msrs / sizeof *msrs; k++) {
		struct {
			struct kvm_msrs head;
			struct kvm_msr_entry entry;
		} one = { .head.nmsrs = 1, .entry.index = msrs[k].index };

		if (ioctl(vcpu->fd, KVM_GET_MSRS, &one) == 1)
			printf("TRUTH %s %d msr.%s=0x%llx\n", vm.name, vcpu->index, msrs[k].name, one.entry.data);
	}
}

void tell_registers(const struct vcpu *vcpu)
{
	struct kvm_mp_state state = {};

	pthread_mutex_lock(&lines);
	ioctl(vcpu->fd, KVM_GET_MP_STATE, &state);
	printf("TRUTH %s %d stopped=%d mp_state=%u\n", vm.name, vcpu->index, vcpu->is_stopped_at_truth, state.mp_state);
	tell_general(vcpu);
	tell_special(vcpu);
	tell_msrs(vcpu);
	pthread_mutex_unlock(&lines);
}

void tell_slot(const struct slot *slot, int number)
{
	printf("TRUTH %s - slot=%d gpa=0x%llx size=0x%llx pid=%d\n", vm.name, number, VALUE(slot->gpa), VALUE(slot->size),
	       getpid());
}

/* Whether a page of this process has memory.  One that has none is not touched, which would give it some. */
static int has_memory(int pagemap, const void *page)
{
	u64 entry;

	if (pread(pagemap, &entry, sizeof entry, (u64)page / PAGE * sizeof entry) != sizeof entry)
		die("pagemap");
	return entry >> 63;
}

static int open_pagemap(void)
{
	int file = open("/proc/self/pagemap", O_RDONLY);

	if (file < 0)
		die("pagemap");
	return file;
}

/*
 * For each 2 MiB of a slot: how many pages have host memory, how many of them begin with their mark, and a checksum
 * of them.  The checksum is over the 64-bit words w in ascending order: h = (h ^ w) * 0x100000001b3; h ^= h >> 32.
 */
static void tell_piece(int pagemap, int number, u64 offset)
{
	const struct slot *slot = &vm.slots[number];
	u64 sum = 0xcbf29ce484222325;
	int pages = 0, marked = 0;

	for (u64 position = offset; position < offset + 2 * MIB && position < slot->size; position += PAGE) {
		const u64 *page = (const u64 *)(slot->memory + position);
		u64 mark[4];

		if (!has_memory(pagemap, page))
			continue;
		for (unsigned k = 0; k < PAGE / sizeof *page; k++) {
			sum = (sum ^ page[k]) * 0x100000001b3;
			sum ^= sum >> 32;
		}
		mark_page(mark, slot->gpa + position);
		marked += page[0] == mark[0] && page[1] == mark[1] && page[2] == mark[2] && page[3] == mark[3];
		pages++;
	}
	printf("TRUTH %s - piece=0x%llx pages=%d marked=%d sum=0x%llx\n", vm.name, VALUE(slot->gpa + offset), pages, marked,
	       VALUE(sum));
}

void tell_memory(void)
{
	int pagemap = open_pagemap();

	for (int number = 0; number < vm.slot_count; number++)
		for (u64 offset = 0; offset < vm.slots[number].size && !vm.slots[number].space; offset += 2 * MIB)
			tell_piece(pagemap, number, offset);
	close(pagemap);
}

static void write_at(int file, const void *data, u64 size, u64 offset)
{
	if (pwrite(file, data, size, offset) != (ssize_t)size)
		die("truth");
}

/* A page without host memory is a hole in the file. */
void write_memory(const char *path)
{
	int pagemap = open_pagemap(), file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600), count = 0;
	Elf64_Phdr headers[MAX_SLOTS] = {};
	u64 end = PAGE;

	for (int number = 0; number < vm.slot_count; number++) {
		const struct slot *slot = &vm.slots[number];

		if (slot->space)
			continue;
		headers[count++] = (Elf64_Phdr){ .p_type = PT_LOAD, .p_offset = end, .p_paddr = slot->gpa,
						 .p_filesz = slot->size, .p_memsz = slot->size };
		for (u64 offset = 0, run; offset < slot->size; offset += run + PAGE) {
			for (run = 0; offset + run < slot->size && has_memory(pagemap, slot->memory + offset + run);)
				run += PAGE;
			if (run)
				write_at(file, slot->memory + offset, run, end + offset);
		}
		end += slot->size;
	}
	Elf64_Ehdr header = { .e_ident = { ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB, EV_CURRENT },
			      .e_type = ET_CORE, .e_machine = EM_X86_64, .e_version = EV_CURRENT,
			      .e_phoff = sizeof header, .e_ehsize = sizeof header, .e_phentsize = sizeof *headers,
			      .e_phnum = count };
	write_at(file, &header, sizeof header, 0);
	write_at(file, headers, sizeof headers, sizeof header);
	if (ftruncate(file, end))
		die("truth");
	close(file);
	close(pagemap);
}
