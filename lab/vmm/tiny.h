/* Where the tiny guests tell that all their registers are loaded. */
#define SYNC_PORT 0x81
/* Guest memory that no slot has. */
#define MMIO 0xd0000080
