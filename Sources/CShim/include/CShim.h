/* What Swift cannot import from C headers: function-like macros. */
#ifndef VMCORE_SPLIT_CSHIM_H
#define VMCORE_SPLIT_CSHIM_H

/* inflateInit of zlib; `stream` is a z_stream. Returns Z_OK or an error of zlib. */
int shim_inflateInit(void *stream);

/* deflateInit of zlib; `stream` is a z_stream. Returns Z_OK or an error of zlib. */
int shim_deflateInit(void *stream, int level);

/* lzo_init: checks that the library fits the headers. Returns LZO_E_OK (0) or an error. */
int shim_lzo_init(void);

#endif
