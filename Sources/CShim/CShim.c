#include "CShim.h"

#include <errno.h>
#include <linux/fs.h>
#include <lzo/lzoconf.h>
#include <sys/ioctl.h>

int shim_lzo_init(void) {
  return lzo_init();
}

int shim_clone_range(int source, uint64_t offset, uint64_t size, int target, uint64_t place) {
  struct file_clone_range range = {
    .src_fd = source, .src_offset = offset, .src_length = size, .dest_offset = place,
  };
  return ioctl(target, FICLONERANGE, &range) == 0 ? 0 : errno;
}
