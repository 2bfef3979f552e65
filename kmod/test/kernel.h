/* SPDX-License-Identifier: GPL-2.0 */
/* What measure.c needs of the kernel, for a program of its own */
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define __init
#define PAGE_SIZE	4096
#define BITS_PER_BYTE	8
#define BIT(n)		(1UL << (n))
#define BIT_ULL(n)	(1ULL << (n))
#define DECLARE_BITMAP(name, bits) unsigned long name[(bits) / 64]

struct seq_buf {
	char text[65536];
	size_t len;
};

static void seq_buf_printf(struct seq_buf *s, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	s->len += vsnprintf(s->text + s->len, sizeof(s->text) - s->len, format, arguments);
	va_end(arguments);
}

static unsigned int warnings;

#define pr_warn(...)	(warnings++)

static void bitmap_xor(unsigned long *to, const unsigned long *a, const unsigned long *b,
		       unsigned int bits)
{
	for (unsigned int i = 0; i < bits / 64; i++)
		to[i] = a[i] ^ b[i];
}

static unsigned int bitmap_weight(const unsigned long *map, unsigned int bits)
{
	unsigned int weight = 0;

	for (unsigned int i = 0; i < bits / 64; i++)
		weight += __builtin_popcountl(map[i]);
	return weight;
}

static bool bitmap_empty(const unsigned long *map, unsigned int bits)
{
	return !bitmap_weight(map, bits);
}

static unsigned long find_first_bit(const unsigned long *map, unsigned int bits)
{
	for (unsigned int i = 0; i < bits; i++)
		if (map[i / 64] & BIT(i % 64))
			return i;
	return bits;
}
