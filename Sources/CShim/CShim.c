#include "CShim.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <lzo/lzoconf.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int shim_lzo_init(void) {
  return lzo_init();
}

int shim_clone_range(int source, uint64_t offset, uint64_t size, int target, uint64_t place) {
  struct file_clone_range range = {
    .src_fd = source, .src_offset = offset, .src_length = size, .dest_offset = place,
  };
  return ioctl(target, FICLONERANGE, &range) == 0 ? 0 : errno;
}

int shim_openUnnamed(int directory) {
  return openat(directory, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
}

/* uapi/linux/landlock.h, whose structures grow: the headers that are installed may be older than the kernel. */

#define LANDLOCK_CREATE_RULESET_VERSION 1
#define LANDLOCK_RULE_PATH_BENEATH 1

struct landlock_ruleset {
  uint64_t files;
  uint64_t network;
  uint64_t scopes;
};

struct landlock_path_beneath {
  uint64_t access;
  int32_t file;
} __attribute__((packed));

int shim_landlockVersion(void) {
  return syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
}

int shim_landlockCreate(uint64_t files, uint64_t network, uint64_t scopes) {
  /* An older kernel takes a larger structure if what it does not know is zero. */
  struct landlock_ruleset rules = {files, network, scopes};
  return syscall(SYS_landlock_create_ruleset, &rules, sizeof rules, 0);
}

int shim_landlockAllow(int rules, int file, uint64_t access) {
  struct landlock_path_beneath rule = {access, file};
  return syscall(SYS_landlock_add_rule, rules, LANDLOCK_RULE_PATH_BENEATH, &rule, 0);
}

int shim_landlockRestrict(int rules) {
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
    return -1;
  return syscall(SYS_landlock_restrict_self, rules, 0);
}
