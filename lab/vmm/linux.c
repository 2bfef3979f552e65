/*
 * A Linux guest without firmware: an unpacked kernel (guestkernel.py) that is entered in 64-bit mode as by its own
 * decompressor, with a serial port, the in-kernel interrupt controllers, and nothing else.
 */
#define _GNU_SOURCE
#include "vmm.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define KERNEL 0x1000000ull
#define BOOT_PARAMETERS 0x10000ull
#define COMMAND_LINE 0x20000ull
#define GDT 0x8000ull
#define PAGE_TABLES 0x9000ull		/* PML4, PDPT, four PDs */
#define MP_TABLE 0xf0000ull

#define SERIAL_PORT 0x3f8
#define SERIAL_IRQ 4
#define CMOS_INDEX 0x70
#define CMOS_DATA 0x71

static volatile int is_ready, must_stop;
static pthread_mutex_t devices = PTHREAD_MUTEX_INITIALIZER;

/* ---- the serial port: an 8250 that is always ready; what it gets is shown line by line --------------------------- */

static struct {
	u8 registers[8], divisor;
	int has_transmit_interrupt;
	char line[256];
	unsigned length;
} uart;

static void uart_transmit(u8 byte)
{
	if (byte == '\n' || uart.length >= sizeof uart.line - 1) {
		uart.line[uart.length] = 0;
		printf("[%s] %s\n", vm.name, uart.line);
		if (strstr(uart.line, "GUEST:READY"))
			is_ready = 1;
		uart.length = 0;
	} else if (byte != '\r') {
		uart.line[uart.length++] = byte;
	}
}

static void interrupt(int line, int level)
{
	struct kvm_irq_level irq = { .irq = line, .level = level };

	ioctl(vm.fd, KVM_IRQ_LINE, &irq);
}

static void uart_write(int index, u8 byte)
{
	int sees_divisor = uart.registers[3] & 0x80;

	if (index == 0 && sees_divisor)
		uart.divisor = byte;
	else if (index == 0)
		uart_transmit(byte);
	else if (!(index == 1 && sees_divisor))
		uart.registers[index] = byte;
	if (!sees_divisor && index <= 1 && uart.registers[1] & 2) {
		uart.has_transmit_interrupt = 1;
		interrupt(SERIAL_IRQ, 1);
		interrupt(SERIAL_IRQ, 0);
	}
}

static u8 uart_read(int index)
{
	u8 *r = uart.registers, cause;

	switch (index) {
	case 0:
		return r[3] & 0x80 ? uart.divisor : 0;
	case 1:
		return r[3] & 0x80 ? 0 : r[1] & 0xf;
	case 2:
		cause = uart.has_transmit_interrupt ? 2 : 1;
		uart.has_transmit_interrupt = 0;
		return (r[2] & 1 ? 0xc0 : 0) | cause;
	case 5:
		return 0x60;			/* transmitter empty */
	case 6:					/* loopback, which the driver tests, or a modem that is there */
		return r[4] & 0x10 ? (r[4] & 2) << 3 | (r[4] & 1) << 5 | (r[4] & 0xc) << 4 : 0xb0;
	default:
		return r[index];
	}
}

/* ---- I/O ---------------------------------------------------------------------------------------------------------- */

static u8 cmos_index;

static u8 cmos_read(void)
{
	switch (cmos_index) {
	case 0xa: return 0;
	case 0xb: return 2;
	case 0xd: return 0x80;
	default:  return 1;
	}
}

static void input_output(struct kvm_run *run)
{
	u8 *data = (u8 *)run + run->io.data_offset;
	int port = run->io.port, is_out = run->io.direction == KVM_EXIT_IO_OUT;

	pthread_mutex_lock(&devices);
	for (u32 k = 0; k < run->io.count; k++, data += run->io.size) {
		if (port >= SERIAL_PORT && port < SERIAL_PORT + 8) {
			if (is_out)
				uart_write(port - SERIAL_PORT, *data);
			else
				*data = uart_read(port - SERIAL_PORT);
		} else if (port == CMOS_INDEX && is_out) {
			cmos_index = *data & 0x7f;
		} else if (!is_out) {
			memset(data, port == CMOS_DATA ? cmos_read() : 0xff, run->io.size);
		}
	}
	pthread_mutex_unlock(&devices);
}

static void on_signal(int signal) { (void)signal; }	/* ends KVM_RUN */

static void *vcpu_thread(void *argument)
{
	struct vcpu *vcpu = argument;

	for (;;) {
		int result = ioctl(vcpu->fd, KVM_RUN, 0);

		if (must_stop && vcpu->is_stopped_at_truth) {
			tell_registers(vcpu);
			vcpu->is_told = 1;
			wait_forever();
		}
		if (result < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (result < 0)
			die("KVM_RUN");
		if (vcpu->run->exit_reason == KVM_EXIT_IO) {
			input_output(vcpu->run);
		} else if (vcpu->run->exit_reason == KVM_EXIT_MMIO) {
			if (!vcpu->run->mmio.is_write)
				memset(vcpu->run->mmio.data, 0xff, 8);
		} else {
			printf("VMM %s: FAIL vCPU %d: exit %u, hardware's %llu\n", vm.name, vcpu->index, vcpu->run->exit_reason,
			       vcpu->run->hw.hardware_exit_reason);
			wait_forever();
		}
	}
}

/* ---- what the kernel finds ---------------------------------------------------------------------------------------- */

static u64 read_file(const char *path, u8 *memory, u64 room)
{
	int file = open(path, O_RDONLY);
	u64 size = 0;
	ssize_t count;

	if (file < 0)
		die(path);
	while ((count = read(file, memory + size, room - size)) > 0)
		size += count;
	close(file);
	return size;
}

static u8 checksum(const u8 *bytes, unsigned size)
{
	u8 sum = 0;

	while (size--)
		sum += *bytes++;
	return -sum;
}

static u8 *mp_processor(u8 *entry, int index)
{
	entry[0] = 0;
	entry[1] = index;
	entry[2] = 0x14;
	entry[3] = index ? 1 : 3;		/* enabled, boot processor */
	*(u32 *)(entry + 4) = 0x600;
	*(u32 *)(entry + 8) = 0x201;
	return entry + 20;
}

static u8 *mp_interrupt(u8 *entry, u8 kind, u8 type, u8 source, u8 apic, u8 pin)
{
	entry[0] = kind;
	entry[1] = type;
	entry[5] = source;
	entry[6] = apic;
	entry[7] = pin;
	return entry + 8;
}

/* Intel MultiProcessor Specification 1.4: processors, the ISA bus, one I/O APIC and its interrupts. */
static void mp_table(u8 *low)
{
	u8 *pointer = low + MP_TABLE, *table = pointer + 0x100, *entry = table + 44;
	int count = vm.vcpu_count + 2;

	memset(pointer, 0, PAGE);
	for (int k = 0; k < vm.vcpu_count; k++)
		entry = mp_processor(entry, k);
	entry[0] = 1;
	memcpy(entry + 2, "ISA   ", 6);
	entry += 8;
	entry[0] = 2;
	entry[1] = vm.vcpu_count;
	entry[2] = 0x11;
	entry[3] = 1;
	*(u32 *)(entry + 4) = 0xfec00000;
	entry += 8;
	for (int irq = 0; irq < 16; irq++) {
		if (irq == 2)
			continue;		/* the other 8259 */
		entry = mp_interrupt(entry, 3, 0, irq, vm.vcpu_count, irq);
		count++;
	}
	entry = mp_interrupt(entry, 4, 3, 0, 0, 0);
	entry = mp_interrupt(entry, 4, 1, 0, 0xff, 1);
	count += 2;
	memcpy(table, "PCMP", 4);
	*(u16 *)(table + 4) = entry - table;
	table[6] = 4;
	memcpy(table + 8, "LAB     VMX LAB     ", 20);
	*(u16 *)(table + 34) = count;
	*(u32 *)(table + 36) = 0xfee00000;
	table[7] = checksum(table, entry - table);
	memcpy(pointer, "_MP_", 4);
	*(u32 *)(pointer + 4) = MP_TABLE + 0x100;
	pointer[8] = 1;
	pointer[9] = 4;
	pointer[10] = checksum(pointer, 16);
}

/* struct boot_params, Documentation/arch/x86/boot.rst and zero-page.rst. */
static void boot_parameters(u8 *low, u64 memory, u64 initrd, u64 initrd_size, const char *command_line)
{
	u8 *p = low + BOOT_PARAMETERS;
	struct {
		u64 start, size;
		u32 type;
	} __attribute__((packed)) e820[] = {
		{ 0, 0x9fc00, 1 }, { MP_TABLE, 0x10000, 2 }, { MIB, memory - MIB, 1 },
	};

	memset(p, 0, PAGE);
	*(u16 *)(p + 0x1fe) = 0xaa55;
	memcpy(p + 0x202, "HdrS", 4);
	*(u16 *)(p + 0x206) = 0x20f;
	p[0x210] = 0xff;			/* type_of_loader */
	p[0x211] = 1;				/* LOADED_HIGH */
	*(u32 *)(p + 0x218) = initrd;
	*(u32 *)(p + 0x21c) = initrd_size;
	*(u32 *)(p + 0x228) = COMMAND_LINE;
	strcpy((char *)low + COMMAND_LINE, command_line);
	*(u32 *)(p + 0x22c) = 0x7fffffff;	/* initrd_addr_max */
	*(u32 *)(p + 0x230) = 0x200000;		/* kernel_alignment */
	*(u32 *)(p + 0x238) = 2047;		/* cmdline_size */
	p[0x1e8] = sizeof e820 / sizeof *e820;
	memcpy(p + 0x2d0, e820, sizeof e820);
}

static void page_tables(u8 *low)
{
	u64 *pml4 = (u64 *)(low + PAGE_TABLES), *pdpt = pml4 + 512, *pd = pdpt + 512;

	memset(pml4, 0, 2 * PAGE);
	pml4[0] = (PAGE_TABLES + PAGE) | 3;
	for (u64 k = 0; k < 4; k++)
		pdpt[k] = (PAGE_TABLES + (2 + k) * PAGE) | 3;
	for (u64 k = 0; k < 4 * 512; k++)
		pd[k] = k << 21 | 0x83;
}

static void enter_kernel(const struct vcpu *vcpu, u8 *low, u64 entry)
{
	u64 *gdt = (u64 *)(low + GDT);
	struct kvm_sregs s;
	struct kvm_regs r = { .rflags = 2, .rip = entry, .rsi = BOOT_PARAMETERS, .rsp = 0x7000 };

	page_tables(low);
	gdt[0] = gdt[1] = 0;
	gdt[2] = descriptor(0x9b, 0xa, 0xfffff);
	gdt[3] = descriptor(0x93, 0xc, 0xfffff);
	if (ioctl(vcpu->fd, KVM_GET_SREGS, &s))
		die("KVM_GET_SREGS");
	s.cr0 |= 0x80000001;
	s.cr3 = PAGE_TABLES;
	s.cr4 |= 0x20;
	s.efer |= 0x500;
	s.gdt.base = GDT;
	s.gdt.limit = 0x1f;
	s.cs = (struct kvm_segment){ .limit = 0xffffffff, .selector = 0x10, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1 };
	s.ds = (struct kvm_segment){ .limit = 0xffffffff, .selector = 0x18, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1 };
	s.es = s.fs = s.gs = s.ss = s.ds;
	if (ioctl(vcpu->fd, KVM_SET_SREGS, &s) || ioctl(vcpu->fd, KVM_SET_REGS, &r))
		die("KVM_SET_SREGS");
}

void run_linux(const char *image, u64 entry, const char *initrd, const char *command_line, u64 size)
{
	struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };
	struct sigaction action = { .sa_handler = on_signal };
	struct stat status;
	u64 initrd_at;
	u8 *low;

	create_vm();
	if (ioctl(vm.fd, KVM_CREATE_IRQCHIP, 0) || ioctl(vm.fd, KVM_CREATE_PIT2, &pit))
		die("KVM_CREATE_IRQCHIP");
	low = add_slot(0, size, 0);
	read_file(image, low + KERNEL, size - KERNEL);
	if (stat(initrd, &status))
		die(initrd);
	initrd_at = (size - status.st_size - PAGE) & ~(PAGE - 1);
	boot_parameters(low, size, initrd_at, read_file(initrd, low + initrd_at, size - initrd_at), command_line);
	mp_table(low);
	sigaction(SIGUSR1, &action, NULL);
	for (int k = 0; k < vm.vcpu_count; k++)
		create_vcpu(k);
	enter_kernel(&vm.vcpus[0], low, entry);
	for (int k = 0; k < vm.vcpu_count; k++)
		pthread_create(&vm.vcpus[k].thread, NULL, vcpu_thread, &vm.vcpus[k]);
	while (!is_ready)
		usleep(100000);
	usleep(500000);				/* both vCPUs come to rest */
	must_stop = 1;
	for (int k = 0; k < vm.vcpu_count; k++)
		while (vm.vcpus[k].is_stopped_at_truth && !vm.vcpus[k].is_told) {
			pthread_kill(vm.vcpus[k].thread, SIGUSR1);
			usleep(20000);
		}
}
