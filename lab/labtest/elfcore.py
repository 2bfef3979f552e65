"""ELF core files, as QEMU, makedumpfile, /proc/vmcore and vmcore-split write them."""
import mmap
import struct

PAGE = 4096
PT_LOAD, PT_NOTE = 1, 4
EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
NOTE = struct.Struct("<III")


def align4(size):
    return (size + 3) & ~3


class Load:
    """One PT_LOAD: guest- or host-physical memory at `start`, in the file at `offset`."""

    def __init__(self, start, offset, filesz, memsz):
        self.start, self.offset, self.filesz, self.memsz = start, offset, filesz, memsz


class ElfCore:
    def __init__(self, path):
        with open(path, "rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header = EHDR.unpack_from(self.map)
        phoff, phentsize, phnum = header[5], header[9], header[10]
        self.loads, self.notes = [], []
        for index in range(phnum):
            kind, _, offset, _, paddr, filesz, memsz, _ = PHDR.unpack_from(self.map, phoff + index * phentsize)
            if kind == PT_LOAD:
                self.loads.append(Load(paddr, offset, filesz, memsz))
            elif kind == PT_NOTE:
                self.notes += self._notes(offset, offset + filesz)

    def _notes(self, position, end):
        while position + NOTE.size <= end:
            namesz, descsz, kind = NOTE.unpack_from(self.map, position)
            name = self.map[position + NOTE.size:position + NOTE.size + namesz].rstrip(b"\0").decode("latin-1")
            position += NOTE.size + align4(namesz)
            yield name, kind, self.map[position:position + descsz]
            position += align4(descsz)

    def descriptions(self, name, kind):
        return [desc for a_name, a_kind, desc in self.notes if (a_name, a_kind) == (name, kind)]

    def covers(self, address):
        """Whether a PT_LOAD has this address, with data or as a hole."""
        return any(load.start <= address < load.start + load.memsz for load in self.loads)

    def read(self, address, size):
        """The bytes at `address`, or None where the file has no data for all of them.

        Where PT_LOADs overlap (/proc/vmcore's kernel text and the RAM it lies in) any will do.
        """
        for load in self.loads:
            if load.start <= address and address + size <= load.start + load.filesz:
                offset = load.offset + address - load.start
                return self.map[offset:offset + size]
        return None

    def page_count(self):
        return sum(load.memsz // PAGE for load in self.loads)


class NoCore:
    """Stands for a vmcore that was not written."""
    loads = []

    def read(self, address, size):
        return None
