/* A small KVM monitor for guests whose every register and page is known. */
#ifndef VMM_H
#define VMM_H

#include <linux/kvm.h>
#include <pthread.h>
#include <stdint.h>

typedef uint64_t u64;
typedef uint32_t u32;
typedef uint16_t u16;
typedef uint8_t u8;

#define MIB (1ull << 20)
#define PAGE 4096ull
#define MAX_VCPUS 4

struct vcpu {
	int index, fd;
	struct kvm_run *run;
	pthread_t thread;
	int is_stopped_at_truth;	/* else it goes back into the guest when its registers were told */
	volatile int is_told;
};

#define MAX_SLOTS 8

struct slot {
	u64 gpa, size;
	u8 *memory;
	int is_read_only, space;	/* address space 1 is system management mode's */
};

struct vm {
	const char *name;
	u64 id;
	int kvm, fd;
	int vcpu_count, slot_count;
	struct vcpu vcpus[MAX_VCPUS];
	struct slot slots[MAX_SLOTS];
};

extern struct vm vm;

/* main.c */
_Noreturn void die(const char *what);
void create_vm(void);
void create_vcpu(int index);
u8 *anonymous_memory(u64 size, int has_huge_pages);
u8 *add_slot(u64 gpa, u64 size, int has_huge_pages);
/* A slot on memory that is there already. */
void map_slot(struct slot slot);
/* One that there was. */
void take_away_slot(struct slot slot);
_Noreturn void wait_forever(void);

/* truth.c: what KVM itself says, as lines "TRUTH vm vcpu key=value ..." */
void tell_registers(const struct vcpu *vcpu);
void tell_slot(const struct slot *slot, int number);
void tell_memory(void);
/* An ELF file with the memory of all slots of address space 0. */
void write_memory(const char *path);

/* tiny.c, linux.c: the guests */
enum tiny { TINY_64, TINY_64_HUGE_PAGES, TINY_64_SLOTS, TINY_REAL_MODE };
void run_tiny(enum tiny kind);
void run_linux(const char *image, u64 entry, const char *initrd, const char *command_line, u64 size);

/* Descriptor of a segment: access byte, flags (granularity, size, long), limit. */
static inline u64 descriptor(u32 access, u32 flags, u32 limit)
{
	return (limit & 0xffff) | (u64)access << 40 | (u64)(limit >> 16 & 0xf) << 48 | (u64)flags << 52;
}

/* Each page that tiny.c fills begins with these words: they tell a page's place, wherever it is found. */
#define MARK_MAGIC 0xC0DE000000000000ull
static inline void mark_page(u64 *page, u64 gpa)
{
	page[0] = MARK_MAGIC | vm.id << 40;
	page[1] = gpa;
	page[2] = ~gpa;
	page[3] = vm.id;
}

#endif
