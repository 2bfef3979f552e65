/* codec FILE [SECONDS]: how fast this machine's libraries decompress the pages of a kdump-compressed file on one core,
 * out of memory into memory, reading and writing nothing: the rate that no reader of the file can beat per core.  By the
 * processor's time, so that other programs' load hardly matters.
 * Prints: NAME PAGES MB/S, for zlib both with Debian's zlib and with libdeflate.
 *
 * Format: makedumpfile, IMPLEMENTATION and diskdump_mod.h. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <libdeflate.h>
#include <lzo/lzo1x.h>
#include <snappy-c.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

enum { PAGE = 4096, PAGES = 16384, ZLIB = 1, LZO = 2, SNAPPY = 4, ZSTD = 0x20 };

struct descriptor {
  uint64_t offset;
  uint32_t size, flags;
  uint64_t page_flags;
};

static unsigned char *stored[PAGES], out[PAGE];
static uint32_t size[PAGES];
static struct libdeflate_decompressor *inflater;
static ZSTD_DCtx *zstd;
static z_stream stream;

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return time.tv_sec + time.tv_nsec * 1e-9;
}

static void must(int ok, const char *what) {
  if (ok) return;
  fprintf(stderr, "codec: %s\n", what);
  exit(1);
}

static int with_zlib(int page) {
  inflateReset(&stream);
  stream.next_in = stored[page], stream.avail_in = size[page];
  stream.next_out = out, stream.avail_out = PAGE;
  return inflate(&stream, Z_FINISH) == Z_STREAM_END && stream.avail_out == 0;
}

static int with_libdeflate(int page) {
  size_t count;
  return libdeflate_zlib_decompress(inflater, stored[page], size[page], out, PAGE, &count) == 0 && count == PAGE;
}

static int with_lzo(int page) {
  lzo_uint count = PAGE;
  return lzo1x_decompress_safe(stored[page], size[page], out, &count, NULL) == LZO_E_OK && count == PAGE;
}

static int with_snappy(int page) {
  size_t count = PAGE;
  return snappy_uncompress((char *)stored[page], size[page], (char *)out, &count) == SNAPPY_OK && count == PAGE;
}

static int with_zstd(int page) {
  return ZSTD_decompressDCtx(zstd, out, PAGE, stored[page], size[page]) == PAGE;
}

static void measure(const char *name, int pages, double least, int (*decompress)(int)) {
  double start = now(), took;
  long count = 0;
  do {
    for (int page = 0; page < pages; page++) must(decompress(page), "a page is damaged");
    count += pages;
  } while ((took = now() - start) < least);
  printf("%s %d %.0f\n", name, pages, count * (double)PAGE / took / 1e6);
}

int main(int argc, char **argv) {
  must(argc >= 2, "usage: codec FILE [SECONDS]");
  double least = argc > 2 ? atof(argv[2]) : 1;
  int file = open(argv[1], O_RDONLY), pages = 0;
  uint32_t flag = 0;
  unsigned char header[PAGE];
  must(file >= 0 && pread(file, header, PAGE, 0) == PAGE && !memcmp(header, "KDUMP   ", 8), "not a kdump file");
  /* block_size, sub_hdr_size, bitmap_blocks of struct disk_dump_header: behind signature, version, utsname, timestamp */
  int32_t sizes[3];
  memcpy(sizes, header + 8 + 4 + 390 + 6 + 16 + 4, sizeof sizes);
  must(sizes[0] == PAGE, "pages are not of 4096 bytes");
  off_t place = (off_t)(1 + sizes[1] + sizes[2]) * PAGE;
  struct descriptor table[1024];
  ssize_t got;
  off_t first = INT64_MAX;
  while (pages < PAGES && place < first && (got = pread(file, table, sizeof table, place)) > 0) {
    for (size_t index = 0; index < got / sizeof *table && pages < PAGES; index++) {
      struct descriptor *page = table + index;
      if (page->offset && (off_t)page->offset < first) first = page->offset;
      if (place + (off_t)(index * sizeof *page) >= first) break;
      if (!page->flags || page->size < 64) continue;
      must(page->size <= PAGE && (!flag || flag == page->flags), "descriptors make no sense");
      flag = page->flags;
      size[pages] = page->size;
      stored[pages] = malloc(page->size);
      must(pread(file, stored[pages], page->size, page->offset) == page->size, "the file is cut");
      pages++;
    }
    place += sizeof table;
  }
  must(pages > 0, "no compressed pages");
  inflater = libdeflate_alloc_decompressor();
  zstd = ZSTD_createDCtx();
  inflateInit(&stream);
  switch (flag) {
    case ZLIB: measure("zlib", pages, least, with_zlib); measure("libdeflate", pages, least, with_libdeflate); break;
    case LZO: measure("lzo", pages, least, with_lzo); break;
    case SNAPPY: measure("snappy", pages, least, with_snappy); break;
    case ZSTD: measure("zstd", pages, least, with_zstd); break;
    default: must(0, "compressed in an unknown way");
  }
}
