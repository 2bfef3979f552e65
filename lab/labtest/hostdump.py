"""Which pages of host memory a dump file holds: the reference for what may be missing in a guest."""
import re
import struct

from .elfcore import PAGE, ElfCore

KDUMP_SIGNATURE = b"KDUMP   "
FLAT_SIGNATURE = b"makedumpfile\0"
HEADER_SIZE = 464
RECORD = struct.Struct(">qq")   # a flattened file's records: offset in the dump, size; -1, -1 behind the last
BLOCK_SIZE_OFFSET = 428         # in disk_dump_header: block_size, sub_hdr_size, bitmap_blocks


def dump_level(path):
    """makedumpfile's dump level out of the file's name (lab/svm/forms.sh), 0 for an unfiltered dump."""
    match = re.search(r"\.d(\d+)(\.1)?(\+swap)?$", path)
    return int(match.group(1)) if match else 0


class KdumpBitmap:
    """The second bitmap of a kdump-compressed file: pages that were not excluded."""

    def __init__(self, read):
        header = read(0, HEADER_SIZE)
        block_size, sub_blocks, bitmap_blocks = struct.unpack_from("<iiI", header, BLOCK_SIZE_OFFSET)
        self.bits = read((1 + sub_blocks + bitmap_blocks // 2) * block_size, bitmap_blocks // 2 * block_size)
        self.pages = sum(byte.bit_count() for byte in self.bits)

    def holds(self, address):
        frame = address // PAGE
        return frame // 8 < len(self.bits) and bool(self.bits[frame // 8] >> frame % 8 & 1)


def plain_reader(path):
    def read(offset, size):
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)
    return read


def flattened_reader(path):
    """Reads a flattened file by going through all its records; what is written later holds."""
    def read(offset, size):
        result = bytearray(size)
        with open(path, "rb") as file:
            position = PAGE
            while True:
                file.seek(position)
                start, length = RECORD.unpack(file.read(RECORD.size))
                if start < 0:
                    return bytes(result)
                low, high = max(start, offset), min(start + length, offset + size)
                if low < high:
                    file.seek(position + RECORD.size + low - start)
                    result[low - offset:high - offset] = file.read(high - low)
                position += RECORD.size + length
    return read


class ElfPages:
    def __init__(self, path):
        self.core = ElfCore(path)
        self.pages = self.core.page_count()

    def holds(self, address):
        return any(load.start <= address and address + PAGE <= load.start + load.filesz for load in self.core.loads)


def open_held(path):
    with open(path, "rb") as file:
        signature = file.read(len(FLAT_SIGNATURE))
    if signature == FLAT_SIGNATURE:
        return KdumpBitmap(flattened_reader(path))
    return KdumpBitmap(plain_reader(path)) if signature.startswith(KDUMP_SIGNATURE) else ElfPages(path)
