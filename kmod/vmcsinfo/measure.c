// SPDX-License-Identifier: GPL-2.0
/*
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

#include <linux/init.h>
#include <linux/printk.h>
#include <linux/string.h>

#include "vmcsinfo.h"

/* Every region begins with its revision id and the VMX-abort indicator. */
#define REGION_HEAD	8

#define NO_BIT		0xffff

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

int __init measure_fields(struct measurement *m)
{
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
