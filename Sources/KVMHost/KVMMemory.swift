import Guest
import LinuxKernel
import Memory
import X86

/// A guest's memory through its slots and the page tables of the VMM's process.
struct KVMMemory: MemoryBacking {
  private let slots: [MemorySlot]
  private let tables: PageTables
  private let filter: FilteredPages
  private let isEncrypted: Bool

  init(slots: [MemorySlot], tables: PageTables, filter: FilteredPages, isEncrypted: Bool) {
    self.slots = slots
    self.tables = tables
    self.filter = filter
    self.isEncrypted = isEncrypted
  }

  func runs(from start: GuestPhysicalAddress, pages: UInt64) -> [MemoryRun] {
    var builder = MemoryRunBuilder()
    guard let slot = slots.first(where: { start.distance(from: $0.start) < $0.size }) else {
      return []
    }
    let last = min(start.distance(from: slot.start) + pages << pageShift, slot.size)
    if isEncrypted {
      builder.append(
        MemoryRun(
          start: start, pages: (last - start.distance(from: slot.start)) >> pageShift,
          content: .missing(.encrypted)))
      return builder.runs
    }
    var process = ProcessMemory(tables, in: filter.memory, swap: filter.swap)
    var offset = start.distance(from: slot.start)
    while offset < last {
      let address = slot.userspaceAddress + offset
      let (page, bytes) = process.lookUp(address)
      // Both ends lie on page boundaries: slots are made of whole pages.
      let count = max(1, min(bytes, last - offset) >> pageShift)
      filter.append(page, at: slot.start + offset, pages: count, to: &builder)
      offset += count << pageShift
    }
    return builder.runs
  }
}
