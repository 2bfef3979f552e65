/* What libFuzzer offers to programs that have a main function of their own (compiler-rt, FuzzerInterface.h). */
#ifndef VMCORE_SPLIT_CFUZZER_H
#define VMCORE_SPLIT_CFUZZER_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerRunDriver(int *argc, char ***argv, int (*body)(const uint8_t *data, size_t size));

#endif
