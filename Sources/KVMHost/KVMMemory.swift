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

  init(
    slots: [MemorySlot], of process: VMMMappings, tables: PageTables, filter: FilteredPages,
    isEncrypted: Bool
  ) {
    self.slots = slots
    self.tables = tables
    self.filter = filter
    self.isEncrypted = isEncrypted
    files = slots.map { SlotFile($0, process, tables, filter) }
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
    var process = ProcessMemory(tables, in: filter.memory, swap: filter.entries)
    while offset < end {
      let (page, span) = process.lookUp(slot.userspaceAddress + offset)
      var bytes = span
      var file: FilePages<GuestPhysicalAddress>?
      if page == .unmapped {
        let part = files[index].part(at: offset)
        file = part.file
        bytes = min(span, part.end - offset)
      }
      // Both ends lie on page boundaries: slots are made of whole pages.
      let count = max(1, min(bytes, end - offset) >> pageShift)
      filter.append(page, at: slot.start + offset, pages: count, file: file, to: &builder)
      offset += count << pageShift
    }
    return builder.runs
  }
}

/// The mappings of a VMM's process, read when they are first asked for.
final class VMMMappings: Sendable {
  private let memory: KernelObject
  private let kernel: LinuxKernel
  private let cached = Mutex<[ProcessMapping]?>(nil)

  /// - Parameter memory: the process's `mm_struct`.
  init(_ memory: KernelObject, of kernel: LinuxKernel) {
    self.memory = memory
    self.kernel = kernel
  }

  /// Ascending; as many as can be read.
  var all: [ProcessMapping] {
    cached.withLock { cached in
      if let cached { return cached }
      let found = (try? kernel.mappings(of: memory).mappings) ?? []
      cached = found
      return found
    }
  }
}

/// The files that a slot maps, found when they are first asked for: by the VMM's mappings and, where
/// these cannot be read, by the first page that is mapped.
private final class SlotFile: Sendable {
  private let slot: MemorySlot
  private let process: VMMMappings
  private let tables: PageTables
  private let filter: FilteredPages
  private let cached = Mutex<[Part]?>(nil)

  /// A part of the slot with one file, or with none: anonymous memory and hugetlb.
  struct Part: Sendable {
    /// In bytes from the start of the slot.
    let end: UInt64
    let file: FilePages<GuestPhysicalAddress>?
  }

  init(
    _ slot: MemorySlot, _ process: VMMMappings, _ tables: PageTables, _ filter: FilteredPages
  ) {
    self.slot = slot
    self.process = process
    self.tables = tables
    self.filter = filter
  }

  /// The part of the slot at an offset in bytes.
  func part(at offset: UInt64) -> Part {
    let parts = cached.withLock { cached in
      if let cached { return cached }
      let found = find()
      cached = found
      return found
    }
    let index = parts.partitioningIndex { $0.end > offset }
    return index < parts.count ? parts[index] : Part(end: slot.size, file: nil)
  }

  private func find() -> [Part] {
    var parts: [Part] = []
    var done: UInt64 = 0
    // Looked for at most once: it goes through all of a slot that has nothing mapped.
    var byMappedPage: FilePages<GuestPhysicalAddress>??
    func fill(to end: UInt64) {
      guard done < end else { return }
      let file = byMappedPage ?? fileOfMappedPage()
      byMappedPage = .some(file)
      parts.append(Part(end: end, file: file))
      done = end
    }
    let slotEnd = slot.userspaceAddress + slot.size
    for mapping in process.all
    where mapping.end > slot.userspaceAddress && mapping.start < slotEnd {
      let start = max(mapping.start, slot.userspaceAddress)
      fill(to: start.distance(from: slot.userspaceAddress))
      done = min(mapping.end, slotEnd).distance(from: slot.userspaceAddress)
      parts.append(Part(end: done, file: file(of: mapping)))
    }
    fill(to: slot.size)
    return parts
  }

  private func file(of mapping: ProcessMapping) -> FilePages<GuestPhysicalAddress>? {
    // hugetlbfs counts in pages of its own size, and keeps its pages mapped.
    guard let file = mapping.file, !mapping.flags.contains(.hugetlb),
      let pages = filter.pages(of: file, from: mapping.filePage, at: mapping.start)
    else { return nil }
    return FilePages(
      position: pages.position,
      address: slot.start + mapping.start.distance(from: slot.userspaceAddress))
  }

  private func fileOfMappedPage() -> FilePages<GuestPhysicalAddress>? {
    var process = ProcessMemory(tables, in: filter.memory, swap: filter.entries)
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
