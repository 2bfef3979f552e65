/* What Swift cannot import from C headers: function-like macros. */
#ifndef VMCORE_SPLIT_CSHIM_H
#define VMCORE_SPLIT_CSHIM_H

#include <stdint.h>

/* lzo_init: checks that the library fits the headers. Returns LZO_E_OK (0) or an error. */
int shim_lzo_init(void);

/* FICLONERANGE of ioctl_ficlonerange(2): `target` shares bytes of `source` from then on. Returns 0
 * or an error (an errno), which is that of a file system that cannot. */
int shim_clone_range(int source, uint64_t offset, uint64_t size, int target, uint64_t place);

#endif
