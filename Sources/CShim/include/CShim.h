/* What Swift cannot import from C headers: macros that are no plain numbers, and system calls that have no function. */
#ifndef VMCORE_SPLIT_CSHIM_H
#define VMCORE_SPLIT_CSHIM_H

#include <stdint.h>

/* lzo_init: checks that the library fits the headers. Returns LZO_E_OK (0) or an error. */
int shim_lzo_init(void);

/* FICLONERANGE of ioctl_ficlonerange(2): `target` shares bytes of `source` from then on. Returns 0
 * or an error (an errno), which is that of a file system that cannot. */
int shim_clone_range(int source, uint64_t offset, uint64_t size, int target, uint64_t place);

/* Creates a file without a name in an open directory (O_TMPFILE), for reading and writing by its owner alone. Returns
 * its descriptor, or -1 with errno. */
int shim_openUnnamed(int directory);

/* Landlock (Documentation/userspace-api/landlock.rst). All return a negative number with errno if they fail. */

/* The version of the kernel's interface. */
int shim_landlockVersion(void);

/* Makes a set of rules by which what is named here is forbidden: LANDLOCK_ACCESS_FS_*, LANDLOCK_ACCESS_NET_*,
 * LANDLOCK_SCOPE_*. Returns its descriptor. */
int shim_landlockCreate(uint64_t files, uint64_t network, uint64_t scopes);

/* Allows something again of an open file, or beneath an open directory. */
int shim_landlockAllow(int rules, int file, uint64_t access);

/* Confines the calling thread, and those that it starts. */
int shim_landlockRestrict(int rules);

#endif
