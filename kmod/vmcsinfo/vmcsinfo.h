/* SPDX-License-Identifier: GPL-2.0 */
#ifndef VMCSINFO_H
#define VMCSINFO_H

#include <linux/bitmap.h>
#include <linux/mm.h>
#include <linux/seq_buf.h>
#include <linux/types.h>

/* The encoding of a field, SDM vol. 3, 25.11.2; bit 0 is the high half */
#define FIELD(width, type, index) ((width) << 13 | (type) << 10 | (index) << 1)
#define FIELD_WIDTH(field)	((field) >> 13)

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

int visit(struct measurement *m, u32 field, u64 *value, bool write);
int measure_fields(struct measurement *m);

#endif
