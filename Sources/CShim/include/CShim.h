/* What Swift cannot import from C headers: function-like macros. */
#ifndef VMCORE_SPLIT_CSHIM_H
#define VMCORE_SPLIT_CSHIM_H

#endif
