"""Which pages of host memory a dump file holds: the reference for what may be missing in a guest."""
import re
import struct

from .elfcore import PAGE, ElfCore

KDUMP_SIGNATURE = b"KDUMP   "
BLOCK_SIZE_OFFSET = 428         # in disk_dump_header: block_size, sub_hdr_size, bitmap_blocks


def dump_level(path):
    """makedumpfile's dump level out of the file's name (lab/svm/forms.sh), 0 for an unfiltered dump."""
    match = re.search(r"\.d(\d+)$", path)
    return int(match.group(1)) if match else 0


class KdumpBitmap:
    """The second bitmap of a kdump-compressed file: pages that were not excluded."""

    def __init__(self, path):
        with open(path, "rb") as file:
            header = file.read(PAGE)
            block_size, sub_blocks, bitmap_blocks = struct.unpack_from("<iiI", header, BLOCK_SIZE_OFFSET)
            file.seek((1 + sub_blocks + bitmap_blocks // 2) * block_size)
            self.bits = file.read(bitmap_blocks // 2 * block_size)
        self.pages = sum(byte.bit_count() for byte in self.bits)

    def holds(self, address):
        frame = address // PAGE
        return frame // 8 < len(self.bits) and bool(self.bits[frame // 8] >> frame % 8 & 1)


class ElfPages:
    def __init__(self, path):
        self.core = ElfCore(path)
        self.pages = self.core.page_count()

    def holds(self, address):
        return any(load.start <= address and address + PAGE <= load.start + load.filesz for load in self.core.loads)


def open_held(path):
    with open(path, "rb") as file:
        signature = file.read(len(KDUMP_SIGNATURE))
    return KdumpBitmap(path) if signature == KDUMP_SIGNATURE else ElfPages(path)
