import Guest
import LinuxKernel
import Memory
import Synchronization
import X86

/// A guest's memory through its slots and the page tables of the VMM's process.
struct KVMMemory: MemoryBacking {
  private let slots: [MemorySlot]
  private let files: [SlotFile]
  private let process: VMMAddressSpace?
  private let wasReleased: Bool
  private let filter: FilteredPages
  private let isEncrypted: Bool
  private let privatePages: PrivatePages?

  /// - Parameters:
  ///   - process: the VMM's; nil if it is there no more.
  ///   - wasReleased: the process has ended or is ending: what is not mapped may have been.
  ///   - isEncrypted: the guest's private memory is, which is all if none is known to be shared.
  ///   - privatePages: what is known of that.
  init(
    slots: [MemorySlot], of process: VMMAddressSpace?, wasReleased: Bool, filter: FilteredPages,
    isEncrypted: Bool, privatePages: PrivatePages?
  ) {
    self.slots = slots
    self.process = process
    self.wasReleased = wasReleased
    self.filter = filter
    self.isEncrypted = isEncrypted
    self.privatePages = privatePages
    files = process.map { process in slots.map { SlotFile($0, process, filter) } } ?? []
  }

  func runs(from start: GuestPhysicalAddress, pages: UInt64) -> [MemoryRun] {
    var builder = PageRunBuilder<GuestPhysicalAddress>()
    guard let index = slots.firstIndex(where: { start.distance(from: $0.start) < $0.size }) else {
      return []
    }
    let slot = slots[index]
    var offset = start.distance(from: slot.start)
    let end = offset + min(pages << pageShift, slot.size - offset)
    let privatePages = slot.privateFile == nil ? nil : self.privatePages
    guard let process, !isEncrypted || privatePages != nil else {
      builder.append(
        MemoryRun(
          start: start, pages: (end - offset) >> pageShift,
          content: .missing(isEncrypted ? .encrypted : .released)))
      return builder.runs
    }
    let privateMemory = slot.privateFile.flatMap { filter.pages(of: $0, at: slot.start) }
    var mapped = ProcessMemory(process.tables, in: filter.memory, swap: filter.entries)
    while offset < end {
      let address = slot.start + offset
      let (sharing, limit) =
        privatePages?.sharing(from: address, limit: (end - offset) >> pageShift)
        ?? (.shared, (end - offset) >> pageShift)
      var count = limit
      switch (sharing, privateMemory) {
      case (.isPrivate, _) where isEncrypted:
        builder.append(MemoryRun(start: address, pages: count, content: .missing(.encrypted)))
      case (.isPrivate, .some(let file)):
        filter.append(.unmapped, at: address, pages: count, file: file, to: &builder)
      case (.isPrivate, nil), (.unknown, _):
        builder.append(
          MemoryRun(start: address, pages: count, content: .missing(.pageTableMissing)))
      case (.shared, _):
        let (page, span) = mapped.lookUp(slot.userspaceAddress + offset)
        let part = page == .unmapped && !wasReleased ? files[index].part(at: offset) : nil
        let bytes = part.map { min(span, $0.end - offset) } ?? span
        // Both ends lie on page boundaries: slots are made of whole pages.
        count = max(1, min(bytes >> pageShift, limit))
        if page == .unmapped, wasReleased {
          builder.append(MemoryRun(start: address, pages: count, content: .missing(.released)))
        } else {
          filter.append(page, at: address, pages: count, file: part?.file, to: &builder)
        }
      }
      offset += count << pageShift
    }
    return builder.runs
  }
}

/// The address space of a VMM: its page tables, and its mappings, read when they are first asked
/// for.
final class VMMAddressSpace: Sendable {
  let tables: PageTables
  private let memory: KernelObject
  private let kernel: LinuxKernel
  private let cached = Mutex<[ProcessMapping]?>(nil)

  /// - Parameter memory: the process's `mm_struct`.
  init(_ memory: KernelObject, of kernel: LinuxKernel) throws(KernelError) {
    self.memory = memory
    self.kernel = kernel
    tables = try kernel.pageTables(of: memory)
  }

  /// Ascending; as many as can be read.
  var mappings: [ProcessMapping] {
    cached.withLock { cached in
      if let cached { return cached }
      let found = (try? kernel.mappings(of: memory).mappings) ?? []
      cached = found
      return found
    }
  }
}

/// Which pages of a guest are private: in memory of a file of the guest's own (guest_memfd), not in
/// what the VMM maps for it. Since 6.8 (5a475554db1e, a7800aa80ea4).
struct PrivatePages: Sendable {
  static let attributes = "mem_attr_array"
  /// KVM_MEMORY_ATTRIBUTE_PRIVATE (include/uapi/linux/kvm.h).
  private static let privateAttribute: UInt64 = 1 << 3

  private let array: XArray

  /// Nil if the kernel has no such pages.
  init?(of machine: KernelObject) throws(KernelError) {
    guard let array = machine.memberIfPresent(Self.attributes) else { return nil }
    self.array = try XArray(array)
  }

  enum Sharing {
    case isPrivate
    case shared
    /// The array is not in the dump there.
    case unknown
  }

  /// What a page is, and for how many pages from there on, at most `limit`, the same is known.
  func sharing(
    from start: GuestPhysicalAddress, limit: UInt64
  ) -> (sharing: Sharing, pages: UInt64) {
    let frame = start.rawValue >> pageShift
    guard let (entry, _, last) = try? array.entry(at: frame) else { return (.unknown, 1) }
    // Entries are values: the attributes, shifted by one.
    guard entry != 0 else {
      return (.shared, min(last - frame, limit - 1) + 1)
    }
    return (entry >> 1 & Self.privateAttribute != 0 ? .isPrivate : .shared, 1)
  }
}

/// The files that a slot maps, found when they are first asked for: by the VMM's mappings and, where
/// these cannot be read, by the first page that is mapped.
private final class SlotFile: Sendable {
  private let slot: MemorySlot
  private let process: VMMAddressSpace
  private let filter: FilteredPages
  private let cached = Mutex<[Part]?>(nil)

  /// A part of the slot with one file, or with none: anonymous memory and hugetlb.
  struct Part: Sendable {
    /// In bytes from the start of the slot.
    let end: UInt64
    let file: FilePages<GuestPhysicalAddress>?
  }

  init(
    _ slot: MemorySlot, _ process: VMMAddressSpace, _ filter: FilteredPages
  ) {
    self.slot = slot
    self.process = process
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
    for mapping in process.mappings
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
    var mapped = ProcessMemory(process.tables, in: filter.memory, swap: filter.entries)
    var offset: UInt64 = 0
    while offset < slot.size {
      let (page, bytes) = mapped.lookUp(slot.userspaceAddress + offset)
      if case .frame(let frame) = page {
        return filter.file(of: frame, at: slot.start + offset)
      }
      offset += max(bytes, pageSize)
    }
    return nil
  }
}
