/*
 * vmm [OPTION...] NAME ID MODES tiny|tiny-huge|tiny-slots|real
 * vmm [OPTION...] NAME ID MODES linux IMAGE ENTRY INITRD COMMAND-LINE MIB
 *
 * MODES has a letter for each vCPU: s stays outside the guest once its registers were told, r goes back into it; - is
 * a VM without vCPUs.
 *
 * --truth=FILE    all memory of the guest goes into an ELF file
 * --second=FILE   the process has a second VM, of 2 MiB and without vCPUs, whose memory goes into this file
 * --orphan        when all is told the process ends, and leaves the VM to a child
 */
#define _GNU_SOURCE
#include "vmm.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

struct vm vm;

void die(const char *what)
{
	printf("VMM %s: FAIL %s: %s\n", vm.name, what, strerror(errno));
	exit(1);
}

void wait_forever(void)
{
	for (;;)
		pause();
}

void create_vm(void)
{
	u64 identity_map = 0xfffbc000;

	vm.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vm.kvm < 0)
		die("/dev/kvm");
	vm.fd = ioctl(vm.kvm, KVM_CREATE_VM, 0);
	if (vm.fd < 0)
		die("KVM_CREATE_VM");
	/* where KVM puts what it needs for real mode without unrestricted guest */
	if (ioctl(vm.fd, KVM_SET_TSS_ADDR, 0xfffbd000ul) || ioctl(vm.fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map))
		die("KVM_SET_TSS_ADDR");
}

void create_vcpu(int index)
{
	struct vcpu *vcpu = &vm.vcpus[index];
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[100];
	} cpuid = { .head.nent = 100 };
	int run_size = ioctl(vm.kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	vcpu->index = index;
	vcpu->fd = ioctl(vm.fd, KVM_CREATE_VCPU, index);
	if (vcpu->fd < 0)
		die("KVM_CREATE_VCPU");
	vcpu->run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (vcpu->run == MAP_FAILED || ioctl(vm.kvm, KVM_GET_SUPPORTED_CPUID, &cpuid))
		die("KVM_GET_SUPPORTED_CPUID");
	for (u32 k = 0; k < cpuid.head.nent; k++) {
		struct kvm_cpuid_entry2 *entry = &cpuid.entries[k];

		if (entry->function == 1) {
			entry->ebx = (entry->ebx & 0xffff) | vm.vcpu_count << 16 | index << 24;
			entry->ecx |= 1u << 31;		/* there is a hypervisor */
		} else if (entry->function == 0xb) {
			entry->edx = index;
		}
	}
	if (ioctl(vcpu->fd, KVM_SET_CPUID2, &cpuid))
		die("KVM_SET_CPUID2");
}

u8 *anonymous_memory(u64 size, int has_huge_pages)
{
	const u64 huge = 2 * MIB;
	u8 *memory = mmap(NULL, size + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		die("mmap");
	memory = (u8 *)(((u64)memory + huge - 1) & ~(huge - 1));
	madvise(memory, size, has_huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	return memory;
}

static void set_slot(const struct slot *slot, u64 size)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot->space << 16 | vm.slot_count, .flags = slot->is_read_only ? KVM_MEM_READONLY : 0,
		.guest_phys_addr = slot->gpa, .memory_size = size, .userspace_addr = (u64)slot->memory,
	};

	if (vm.slot_count == MAX_SLOTS || ioctl(vm.fd, KVM_SET_USER_MEMORY_REGION, &region))
		die("KVM_SET_USER_MEMORY_REGION");
}

void map_slot(struct slot slot)
{
	set_slot(&slot, slot.size);
	vm.slots[vm.slot_count] = slot;
	if (!slot.space)
		tell_slot(&slot, vm.slot_count);
	vm.slot_count++;
}

void take_away_slot(struct slot slot)
{
	set_slot(&slot, slot.size);
	set_slot(&slot, 0);
}

u8 *add_slot(u64 gpa, u64 size, int has_huge_pages)
{
	u8 *memory = anonymous_memory(size, has_huge_pages);

	map_slot((struct slot){ .gpa = gpa, .size = size, .memory = memory });
	return memory;
}

/* Another VM of this process. The first one's vCPUs go on to be what they are. */
static void run_second(const char *path)
{
	u8 *memory;

	memset(vm.slots, 0, sizeof vm.slots);
	vm.slot_count = 0;
	vm.id++;
	create_vm();
	memory = add_slot(0, 2 * MIB, 0);
	for (u64 offset = 0; offset < MIB; offset += PAGE)
		mark_page((u64 *)(memory + offset), offset);
	write_memory(path);
}

/* The VM lives on as long as its file is open somewhere; its memory was this process's. */
static void leave_to_child(void)
{
	pid_t child = fork();

	if (child < 0)
		die("fork");
	if (child == 0)
		wait_forever();
	exit(0);
}

int main(int count, char **words)
{
	const char *truth = NULL, *second = NULL;
	int is_orphan = 0;

	for (; count > 1 && !strncmp(words[1], "--", 2); words++, count--) {
		if (!strncmp(words[1], "--truth=", 8))
			truth = words[1] + 8;
		else if (!strncmp(words[1], "--second=", 9))
			second = words[1] + 9;
		else if (!strcmp(words[1], "--orphan"))
			is_orphan = 1;
		else
			return 2;
	}
	if (count < 5)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	vm.name = words[1];
	vm.id = strtoul(words[2], NULL, 0);
	for (const char *mode = words[3]; *mode && *mode != '-' && vm.vcpu_count < MAX_VCPUS; mode++)
		vm.vcpus[vm.vcpu_count++].is_stopped_at_truth = *mode == 's';
	if (!strcmp(words[4], "tiny"))
		run_tiny(TINY_64);
	else if (!strcmp(words[4], "tiny-huge"))
		run_tiny(TINY_64_HUGE_PAGES);
	else if (!strcmp(words[4], "tiny-slots"))
		run_tiny(TINY_64_SLOTS);
	else if (!strcmp(words[4], "real"))
		run_tiny(TINY_REAL_MODE);
	else if (!strcmp(words[4], "linux") && count == 10)
		run_linux(words[5], strtoull(words[6], NULL, 0), words[7], words[8], strtoull(words[9], NULL, 0) * MIB);
	else
		return 2;
	if (truth)
		write_memory(truth);
	if (second)
		run_second(second);
	else
		tell_memory();
	printf("VMM %s: READY\n", vm.name);
	if (is_orphan)
		leave_to_child();
	wait_forever();
}
