#include <dwarf.h>
#include <elfutils/libdw.h>
#include <elfutils/libdwfl.h>

/* A file that lacks debug information is asked for no other. */
static int celfutils_no_debuginfo(Dwfl_Module *module, void **userdata, const char *name,
                                  Dwarf_Addr base, const char *file, const char *link,
                                  GElf_Word checksum, char **found) {
  (void)module, (void)userdata, (void)name, (void)base;
  (void)file, (void)link, (void)checksum, (void)found;
  return -1;
}

/* A session for files that no process has mapped.  Its callbacks must outlive it. */
static inline Dwfl *celfutils_begin_offline(void) {
  static const Dwfl_Callbacks callbacks = {
      .find_debuginfo = celfutils_no_debuginfo,
      .section_address = dwfl_offline_section_address,
  };
  return dwfl_begin(&callbacks);
}
