/* Guests of a few instructions: they load known values into every register and spin. */
#define _GNU_SOURCE
#include "vmm.h"
#include "tiny.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

struct code {
	const char *start, *spin, *end;
};
#define CODE_OF(name) extern const char name##_start[], name##_spin[], name##_end[]; \
	static const struct code name = { name##_start, name##_spin, name##_end }
CODE_OF(tiny64);
CODE_OF(tiny64_mmio);
CODE_OF(tiny16);

#define LOW_SIZE (8 * MIB)
#define HIGH_GPA 0x100000000ull
#define HIGH_SIZE (4 * MIB)
#define CODE 0x10000ull			/* where tiny.S is copied to */
#define KERNEL_HALF 0xffff888000000000ull	/* the low slot is mapped here too */
#define MMIO_CODE 0x11000ull		/* the same with another end, for the second vCPU of a guest with many slots */

/* The parameters that tiny.S reads, a block and more for each vCPU. */
static u64 block_of(int index) { return 0x20000 + index * 0x2000; }
static u64 gdt_of(int index) { return block_of(index) + 0x1000; }
static u64 idt_of(int index) { return 0x30000 + index * 0x1000; }

static int is_sync(const struct kvm_run *run)
{
	return (run->exit_reason == KVM_EXIT_IO && run->io.port == SYNC_PORT)
		|| (run->exit_reason == KVM_EXIT_MMIO && run->mmio.phys_addr == MMIO);
}

static void *vcpu_thread(void *argument)
{
	struct vcpu *vcpu = argument;

	for (;;) {
		int result = ioctl(vcpu->fd, KVM_RUN, 0);

		if (result < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (result < 0)
			die("KVM_RUN");
		if (!is_sync(vcpu->run) || vcpu->is_told) {
			printf("VMM %s: FAIL vCPU %d: exit %u, hardware's %llu\n", vm.name, vcpu->index, vcpu->run->exit_reason,
			       vcpu->run->hw.hardware_exit_reason);
			wait_forever();
		}
		tell_registers(vcpu);
		vcpu->is_told = 1;
		if (vcpu->is_stopped_at_truth)
			wait_forever();
	}
}

/* The last quarter of a slot is never touched: it has no host memory. */
static void fill(u8 *memory, u64 gpa, u64 size)
{
	for (u64 offset = 0; offset < size - size / 4; offset += PAGE) {
		memset(memory + offset, (gpa + offset) >> 12 & 0xff, PAGE);
		mark_page((u64 *)(memory + offset), gpa + offset);
	}
}

/* PML4 at 0x1000, PDPT at 0x2000, PDs of large pages at 0x3000 (0-1 GiB), 0x4000 (4-5 GiB) and 0x5000 (3-4 GiB). */
static void page_tables(u8 *low)
{
	u64 *pml4 = (u64 *)(low + 0x1000), *pdpt = (u64 *)(low + 0x2000);
	u64 *pd0 = (u64 *)(low + 0x3000), *pd4 = (u64 *)(low + 0x4000), *pd3 = (u64 *)(low + 0x5000);

	memset(pml4, 0, 5 * PAGE);
	pml4[0] = pml4[273] = 0x2003;
	pdpt[0] = 0x3003;
	pdpt[3] = 0x5003;
	pdpt[4] = 0x4003;
	for (u64 k = 0; k < 512; k++) {
		pd0[k] = k << 21 | 0x83;
		pd3[k] = ((3ull << 30) + (k << 21)) | 0x83;
		pd4[k] = (HIGH_GPA + (k << 21)) | 0x83;
	}
}

/* A GDT with TSS and LDT, whose descriptors take two entries each. */
static void write_gdt(u64 *gdt, int index)
{
	u64 tss = KERNEL_HALF + 0x40000 + index * 0x1000, ldt = KERNEL_HALF + 0x50000 + index * 0x1000;

	gdt[1] = descriptor(0x9b, 0xa, 0xfffff);
	gdt[2] = gdt[3] = descriptor(0x93, 0xc, 0xfffff);
	gdt[4] = descriptor(0xf3, 0xc, 0xfffff);
	gdt[5] = descriptor(0x89, 0, 0x67) | (tss & 0xffffff) << 16 | (tss >> 24 & 0xff) << 56;
	gdt[6] = tss >> 32;
	gdt[7] = descriptor(0x82, 0, 0x1f) | (ldt & 0xffffff) << 16 | (ldt >> 24 & 0xff) << 56;
	gdt[8] = ldt >> 32;
}

static void write_parameters(u8 *low, int index)
{
	u8 *block = low + block_of(index);
	u64 *general = (u64 *)block, own = vm.id * 16 + index;
	const u64 msrs[][2] = {
		{ 0xc0000100, 0x00007fab00000000 | vm.id << 8 | index },	/* FS_BASE */
		{ 0xc0000101, 0xffffc90000000000 | vm.id << 8 | index },	/* GS_BASE */
		{ 0xc0000102, 0x00007fcd00000000 | vm.id << 8 | index },	/* KERNEL_GS_BASE */
		{ 0xc0000081, 0x0023001000000000 },				/* STAR */
		{ 0xc0000082, 0xffffffff81a00000 + own },			/* LSTAR */
		{ 0xc0000084, 0x47700 },					/* SFMASK */
		{ 0x174, 0x10 },						/* SYSENTER_CS */
		{ 0x175, 0xfffffe0000002000 + own },				/* SYSENTER_ESP */
		{ 0x176, 0xffffffff81b00000 + own },				/* SYSENTER_EIP */
		{ 0x277, 0x0007040600070406 },					/* PAT */
	};

	memset(block, 0, 2 * PAGE);
	memset(low + idt_of(index), 0, PAGE);
	for (int k = 0; k < 16; k++)
		general[k] = vm.id << 56 | (u64)(index + 1) << 48 | 0x0000a1b2c3d4e500 | k;
	general[7] = KERNEL_HALF + 0x700000 + index * 0x10000 - 0x40;		/* RSP */
	write_gdt((u64 *)(low + gdt_of(index)), index);
	*(u16 *)(block + 0x100) = 0x57;
	*(u64 *)(block + 0x102) = KERNEL_HALF + gdt_of(index);
	*(u16 *)(block + 0x110) = 0xfef;
	*(u64 *)(block + 0x112) = KERNEL_HALF + idt_of(index);
	*(u64 *)(block + 0x120) = 0x1000;					/* CR3 */
	*(u64 *)(block + 0x128) = 0x6a0 | (index ? 0x80 : 0);			/* CR4: PAE PGE OSFXSR OSXMMEXCPT */
	*(u64 *)(block + 0x130) = 0x00007f00dead0000 + own;			/* CR2 */
	/* With IF: the emulator masks the host's interrupts too while a guest runs that was entered without. */
	*(u64 *)(block + 0x138) = 0x3283;					/* RFLAGS: IF SF CF IOPL 3 */
	*(u64 *)(block + 0x140) = KERNEL_HALF + 0x123456;			/* DR0 */
	*(u64 *)(block + 0x148) = KERNEL_HALF + 0x654321;			/* DR1 */
	*(u64 *)(block + 0x180) = sizeof msrs / sizeof *msrs;
	memcpy(block + 0x188, msrs, sizeof msrs);
}

static const struct kvm_segment code64 = { .limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .s = 1,
					   .l = 1, .g = 1 };
static const struct kvm_segment data64 = { .limit = 0xffffffff, .selector = 16, .type = 3, .present = 1, .s = 1,
					   .db = 1, .g = 1 };
static const struct kvm_segment tss64 = { .limit = 0x67, .type = 11, .present = 1 };

static void enter_at(const struct vcpu *vcpu, enum tiny kind)
{
	struct kvm_sregs s;
	struct kvm_regs r = { .rflags = 0x202 };

	if (ioctl(vcpu->fd, KVM_GET_SREGS, &s))
		die("KVM_GET_SREGS");
	if (kind == TINY_REAL_MODE) {
		s.cs.selector = CODE >> 4;
		s.cs.base = CODE;
		s.ds.selector = 0x2000;
		s.ds.base = 0x20000;
		s.es.selector = 0x2100;
		s.es.base = 0x21000;
		s.ss.selector = 0x3000;
		s.ss.base = 0x30000;
		r.rsp = 0x7ff0;
	} else {
		s.cr0 = 0x80050033;
		s.cr3 = 0x1000;
		s.cr4 |= 0x20;
		s.efer = 0xd01;
		s.cs = code64;
		s.ds = s.es = s.ss = data64;
		s.tr = tss64;
		r.rip = kind == TINY_64_SLOTS && vcpu->index == 1 ? MMIO_CODE : CODE;
		r.rsp = 0x8000;
		r.rdi = block_of(vcpu->index);
	}
	if (ioctl(vcpu->fd, KVM_SET_SREGS, &s) || ioctl(vcpu->fd, KVM_SET_REGS, &r))
		die("KVM_SET_SREGS");
}

/* Copies code to a place, and tells where RIP of a vCPU can be that went on after its registers were told. */
static void copy_code(u8 *low, u64 place, struct code code, u64 base)
{
	memcpy(low + place, code.start, code.end - code.start);
	printf("TRUTH %s - loop=0x%llx end=0x%llx\n", vm.name, (unsigned long long)(base + (code.spin - code.start)),
	       (unsigned long long)(base + (code.end - code.start)));
}

static void copy_codes(u8 *low, enum tiny kind)
{
	static const u8 jump_to_itself[] = { 0xeb, 0xfe };

	if (kind == TINY_REAL_MODE) {
		copy_code(low, CODE, tiny16, 0);
		return;
	}
	copy_code(low, CODE, tiny64, CODE);
	if (kind == TINY_64_SLOTS)
		copy_code(low, MMIO_CODE, tiny64_mmio, MMIO_CODE);
	/* Without PAUSE there are no exits because of it: this one stays in guest mode as long as it may. */
	if (kind == TINY_64_HUGE_PAGES)
		memcpy(low + CODE + (tiny64.spin - tiny64.start), jump_to_itself, sizeof jump_to_itself);
}

/* Memory as other VMMs have it: in a file of its own, seen in two places; read-only; that of system management mode,
 * which lies where the guest's own does; and a slot that is taken away again. */
static void add_more_slots(void)
{
	const u64 size = 2 * MIB + 5 * PAGE, rom_size = 64 * PAGE;
	int file = memfd_create("guest", MFD_CLOEXEC);
	u8 *shared, *rom, *management, *gone;

	if (file < 0 || ftruncate(file, size))
		die("memfd");
	shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (shared == MAP_FAILED)
		die("mmap");
	map_slot((struct slot){ .gpa = 16 * MIB, .size = size, .memory = shared });
	map_slot((struct slot){ .gpa = HIGH_GPA + 256 * MIB + PAGE, .size = size, .memory = shared });
	fill(shared, 16 * MIB, size);
	rom = anonymous_memory(rom_size, 0);
	fill(rom, HIGH_GPA - rom_size, rom_size);
	map_slot((struct slot){ .gpa = HIGH_GPA - rom_size, .size = rom_size, .memory = rom, .is_read_only = 1 });
	management = anonymous_memory(32 * PAGE, 0);
	memset(management, 0x5a, 32 * PAGE);
	map_slot((struct slot){ .gpa = 0xa0000, .size = 32 * PAGE, .memory = management, .space = 1 });
	gone = anonymous_memory(MIB, 0);
	memset(gone, 0xa5, MIB);
	take_away_slot((struct slot){ .gpa = 64 * MIB, .size = MIB, .memory = gone });
}

void run_tiny(enum tiny kind)
{
	u8 *low, *high;

	create_vm();
	low = add_slot(0, LOW_SIZE, kind == TINY_64_HUGE_PAGES);
	high = add_slot(HIGH_GPA, HIGH_SIZE, kind == TINY_64_HUGE_PAGES);
	if (kind == TINY_64_SLOTS)
		add_more_slots();
	fill(low, 0, LOW_SIZE);
	fill(high, HIGH_GPA, HIGH_SIZE);
	page_tables(low);
	copy_codes(low, kind);
	for (int k = 0; k < vm.vcpu_count; k++) {
		write_parameters(low, k);
		create_vcpu(k);
		enter_at(&vm.vcpus[k], kind);
	}
	for (int k = 0; k < vm.vcpu_count; k++)
		pthread_create(&vm.vcpus[k].thread, NULL, vcpu_thread, &vm.vcpus[k]);
	for (int k = 0; k < vm.vcpu_count; k++)
		while (!vm.vcpus[k].is_told)
			usleep(10000);
}
