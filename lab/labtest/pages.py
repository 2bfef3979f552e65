"""Guest memory against the truth, page by page."""
from .elfcore import PAGE

ZERO = bytes(PAGE)
CHUNK = 256 * PAGE


class PageCounts:
    """pages: in the truth.  equal + different + missing = pages.

    missing: not zero in truth, not held by the host dump, and read as zero from the vmcore, by right.
    extra:   pages that the vmcore has and the truth has not.
    """

    def __init__(self):
        self.pages = self.equal = self.different = self.missing = self.extra = self.absent = 0
        self.examples = []


def compare(truth, vmcore, held):
    """Compares all pages of the truth; held(address) says whether the host dump has the page at all.

    A page without data in the vmcore (a hole, or no PT_LOAD) counts as a page of zeros.
    """
    counts = PageCounts()
    for load in truth.loads:
        for start in range(load.start, load.start + load.memsz, CHUNK):
            size = min(CHUNK, load.start + load.memsz - start)
            data = truth.read(start, size)
            if data is not None and data == vmcore.read(start, size):
                counts.pages += size // PAGE
                counts.equal += size // PAGE
            else:
                for address in range(start, start + size, PAGE):
                    _compare_page(counts, truth, vmcore, held, address)
    counts.extra = _extra_pages(truth, vmcore)
    return counts


def _compare_page(counts, truth, vmcore, held, address):
    counts.pages += 1
    want = truth.read(address, PAGE) or ZERO
    have = vmcore.read(address, PAGE)
    if have is None:
        counts.absent += 1
        have = ZERO
    if have == want:
        counts.equal += 1
    elif have == ZERO and not held(address):
        counts.missing += 1
    else:
        counts.different += 1
        if len(counts.examples) < 4:
            first = next(index for index in range(PAGE) if have[index] != want[index])
            counts.examples.append(f"guest page {address:#x} differs from byte {first:#x} on"
                                   + (" (all zero in the vmcore)" if have == ZERO else ""))


def _extra_pages(truth, vmcore):
    return sum(1 for load in vmcore.loads for address in range(load.start, load.start + load.memsz, PAGE)
               if not truth.covers(address))
