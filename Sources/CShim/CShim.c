#include "CShim.h"

#include <lzo/lzoconf.h>
#include <zlib.h>

int shim_inflateInit(void *stream) {
  return inflateInit((z_stream *)stream);
}

int shim_deflateInit(void *stream, int level) {
  return deflateInit((z_stream *)stream, level);
}

int shim_lzo_init(void) {
  return lzo_init();
}
