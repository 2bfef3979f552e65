import Guest
import LinuxKernel
import Memory
import Synchronization
import X86

/// A guest's memory through its slots and the page tables of the VMM's process.
struct KVMMemory: MemoryBacking {
  private let slots: [MemorySlot]
  private let files: [SlotFile]
  private let tables: PageTables
  private let filter: FilteredPages
  private let isEncrypted: Bool

  init(slots: [MemorySlot], tables: PageTables, filter: FilteredPages, isEncrypted: Bool) {
    self.slots = slots
    self.tables = tables
    self.filter = filter
    self.isEncrypted = isEncrypted
    files = slots.map { SlotFile($0, tables, filter) }
  }

  func runs(from start: GuestPhysicalAddress, pages: UInt64) -> [MemoryRun] {
    var builder = PageRunBuilder<GuestPhysicalAddress>()
    guard let index = slots.firstIndex(where: { start.distance(from: $0.start) < $0.size }) else {
      return []
    }
    let slot = slots[index]
    var offset = start.distance(from: slot.start)
    let end = offset + min(pages << pageShift, slot.size - offset)
    if isEncrypted {
      builder.append(
        MemoryRun(
          start: start, pages: (end - offset) >> pageShift, content: .missing(.encrypted)))
      return builder.runs
    }
    var process = ProcessMemory(tables, in: filter.memory, swap: filter.swap)
    while offset < end {
      let (page, bytes) = process.lookUp(slot.userspaceAddress + offset)
      // Both ends lie on page boundaries: slots are made of whole pages.
      let count = max(1, min(bytes, end - offset) >> pageShift)
      filter.append(
        page, at: slot.start + offset, pages: count,
        file: page == .unmapped ? files[index].pages : nil, to: &builder)
      offset += count << pageShift
    }
    return builder.runs
  }
}

/// The file that a slot maps, found by the first page that is mapped, when it is first asked for.
private final class SlotFile: Sendable {
  private let slot: MemorySlot
  private let tables: PageTables
  private let filter: FilteredPages
  private let cached = Mutex<FilePages<GuestPhysicalAddress>??>(nil)

  init(_ slot: MemorySlot, _ tables: PageTables, _ filter: FilteredPages) {
    self.slot = slot
    self.tables = tables
    self.filter = filter
  }

  /// Nil for anonymous memory, hugetlb, and a slot of which no page is mapped.
  var pages: FilePages<GuestPhysicalAddress>? {
    cached.withLock { cached in
      if let cached { return cached }
      let found = find()
      cached = .some(found)
      return found
    }
  }

  private func find() -> FilePages<GuestPhysicalAddress>? {
    var process = ProcessMemory(tables, in: filter.memory, swap: filter.swap)
    var offset: UInt64 = 0
    while offset < slot.size {
      let (page, bytes) = process.lookUp(slot.userspaceAddress + offset)
      if case .frame(let frame) = page {
        return filter.file(of: frame, at: slot.start + offset)
      }
      offset += max(bytes, pageSize)
    }
    return nil
  }
}
