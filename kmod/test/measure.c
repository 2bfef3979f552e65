// SPDX-License-Identifier: GPL-2.0
/*
 * Measures processors that do not exist: each has one field, stored or behaving in a way of its own, and the text that
 * comes out is compared with the one that is right.
 */
#include "../vmcsinfo/measure.c"

struct processor {
	const char *name;
	u32 field;
	void (*store)(u8 *region, u64 value);	/* NULL: VMWRITE refuses */
	u64 (*load)(const u8 *region);
	const char *text;
	unsigned int warnings;
	int error;
};

static const struct processor *running;

int visit(struct measurement *m, u32 field, u64 *value, bool write)
{
	u8 *region = (u8 *)m->ws->region;

	memcpy(region, m->ws->image, m->size);
	memcpy(region, &m->revision, sizeof(m->revision));
	memset(region + 8, 0, 4);	/* the launch state */
	if (running->error)
		return running->error;
	if (field != running->field)
		return -EINVAL;
	if (!write)
		*value = running->load(region);
	else if (running->store)
		running->store(region, *value);
	else
		return -EINVAL;
	return 0;
}

#define STORED(name, type, offset, to_stored, to_value)				\
static void store_##name(u8 *region, u64 value)					\
{										\
	type v = value;								\
	type stored = to_stored;						\
										\
	memcpy(region + (offset), &stored, sizeof(stored));			\
}										\
										\
static u64 load_##name(const u8 *region)					\
{										\
	type v;									\
										\
	memcpy(&v, region + (offset), sizeof(v));				\
	return (type)(to_value);						\
}

STORED(word, u16, 0x3fe, v, v)
STORED(dword, u32, 0x102, v, v)
STORED(quad, u64, 0x10, v, v)
STORED(rotated, u32, 0x8e8, v << 8 | v >> 24, v >> 8 | v << 24)
STORED(address, u64, 0x200, v & 0xfffffffff000, v)
STORED(elsewhere, u32, 0x300, v, v)
STORED(shifted, u64, 0x40, v << 4, (u32)(v >> 4))
STORED(head, u32, 4, v, v)

static void store_packed(u8 *region, u64 value)
{
	u16 stored = (value & 0xf0ff) | (value >> 5 & 0x800);

	memcpy(region + 0x102, &stored, sizeof(stored));
}

static u64 load_packed(const u8 *region)
{
	u16 stored;

	memcpy(&stored, region + 0x102, sizeof(stored));
	return (stored & 0xf0ff) | (u64)(stored & 0x800) << 5;
}

static void store_twice(u8 *region, u64 value)
{
	store_dword(region, value);
	store_elsewhere(region, value);
}

static void store_nowhere(u8 *region, u64 value)
{
}

static u64 load_constant(const u8 *region)
{
	return 0x20;
}

#define BITS_31_TO_16 ",ffff,ffff,ffff,ffff,ffff,ffff,ffff,ffff,ffff,ffff,ffff,ffff,ffff,ffff,ffff"

static const struct processor processors[] = {
	{ "16 bits", 0x0802, store_word, load_word, "OFF(0802)=2:0x3fe\n" },
	{ "32 bits", 0x4000, store_dword, load_dword, "OFF(4000)=4:0x102\n" },
	{ "64 bits", 0x2800, store_quad, load_quad, "OFF(2800)=8:0x10\n" },
	{ "natural width", 0x6c16, store_quad, load_quad, "OFF(6c16)=8:0x10\n" },
	{ "read-only", 0x4402, NULL, load_dword, "OFF(4402)=4:0x102\n" },
	{ "rotated", 0x4816, store_rotated, load_rotated,
	  "BITS(4816)=4:4748,4749,474a,474b,474c,474d,474e,474f,4750,4751,4752,4753,4754,4755,4756,"
	  "4757,4758,4759,475a,475b,475c,475d,475e,475f,4740,4741,4742,4743,4744,4745,4746,4747\n" },
	{ "packed", 0x4814, store_packed, load_packed,
	  "BITS(4814)=4:810,811,812,813,814,815,816,817,ffff,ffff,ffff,ffff,81c,81d,81e,81f,81b"
	  BITS_31_TO_16 "\n" },
	{ "shifted", 0x4824, store_shifted, load_shifted,
	  "BITS(4824)=4:204,205,206,207,208,209,20a,20b,20c,20d,20e,20f,210,211,212,213,214,215,216,"
	  "217,218,219,21a,21b,21c,21d,21e,21f,220,221,222,223\n" },
	{ "part of the bits stored", 0x2004, store_address, load_address,
	  "BITS(2004)=8:ffff,ffff,ffff,ffff,ffff,ffff,ffff,ffff,ffff,ffff,ffff,ffff,100c,100d,100e,"
	  "100f,1010,1011,1012,1013,1014,1015,1016,1017,1018,1019,101a,101b,101c,101d,101e,101f,"
	  "1020,1021,1022,1023,1024,1025,1026,1027,1028,1029,102a,102b,102c,102d,102e,102f,"
	  "ffff" BITS_31_TO_16 "\n" },
	{ "stored twice", 0x4000, store_twice, load_dword, "OFF(4000)=4:0x102\n", 1 },
	{ "not written back", 0x4000, store_nowhere, load_dword, "OFF(4000)=4:0x102\n", 1 },
	{ "read from elsewhere", 0x4000, store_dword, load_elsewhere, "", 1 },
	{ "read as a constant", 0x0802, store_word, load_constant, "", 1 },
	{ "read-only constant", 0x0802, NULL, load_constant, "", 1 },
	{ "read-only rotated", 0x4402, NULL, load_rotated, "", 1 },
	{ "in the head", 0x4000, store_head, load_head, "", 2 },
	{ "beyond the enumeration", 0x4042, store_dword, load_dword, "" },
	{ "another hypervisor's", 0x4000, store_dword, load_dword, "", 0, -EBUSY },
};

int main(void)
{
	static struct workspace ws;
	unsigned int failed = 0;

	for (unsigned int i = 0; i < sizeof(processors) / sizeof(*processors); i++) {
		struct measurement m = {
			.ws = &ws, .revision = 0x2b, .size = 0xa00, .highest_index = 0x20,
		};
		int error;

		running = &processors[i];
		warnings = 0;
		error = measure_fields(&m);
		if (error != running->error || warnings != running->warnings ||
		    strcmp(m.text.text, running->text)) {
			printf("%s: error %d, %u warnings, text %s", running->name, error,
			       warnings, m.text.text);
			failed++;
		}
	}
	printf("%zu processors, %u failed\n", sizeof(processors) / sizeof(*processors), failed);
	return failed != 0;
}
