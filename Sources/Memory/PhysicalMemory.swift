import Synchronization

/// Why the bytes of a page frame are not at hand.
public enum Absence: String, Hashable, Sendable, CaseIterable {
  /// The frame is RAM of the machine, and whoever wrote the dump left it out (dump level).
  case excluded
  /// No part of the dump speaks of this frame: no RAM there, or a hole.
  case notInDump
  /// The dump names the frame's bytes, but the file ends before them.
  case truncated
  /// The frame's bytes are there, but cannot be read or decoded.
  case corrupt
  /// The frame's bytes are in a file of a split dump that was not given.
  case missingPart
}

/// Memory could not be read.
public enum MemoryError: Error, Hashable, Sendable {
  /// The frame that holds the address is not at hand.
  case absent(PhysicalAddress, Absence)
  /// No page table entry maps the address. `entry` is what the table holds instead (0: nothing).
  case notMapped(VirtualAddress, entry: UInt64)
  /// A page table on the way to the address is not at hand.
  case tableAbsent(VirtualAddress, table: PhysicalAddress, Absence)
}

extension MemoryError: CustomStringConvertible {
  public var description: String {
    switch self {
    case .absent(let address, let absence):
      "physical address \(address) is \(absence.explanation)"
    case .notMapped(let address, _):
      "virtual address \(address) is not mapped"
    case .tableAbsent(let address, let table, let absence):
      "the page table at physical address \(table), needed for virtual address \(address), is "
        + absence.explanation
    }
  }
}

extension Absence {
  /// Completes "the page is …".
  public var explanation: String {
    switch self {
    case .excluded: "left out of the dump by its filter"
    case .notInDump: "not in the dump"
    case .truncated: "beyond the end of the truncated dump"
    case .corrupt: "damaged in the dump"
    case .missingPart: "in a part of the split dump that was not given"
    }
  }
}

/// A memory that is read by page frames.
public protocol PhysicalMemory: Sendable {
  /// The 4096 bytes of a frame.
  func page(_ frame: PageFrameNumber) throws(MemoryError) -> [UInt8]
}

extension PhysicalMemory {
  /// `count` bytes from `address` on, over as many frames as it takes.
  ///
  /// `count` must be bounded by the caller: it is allocated.
  public func read(_ address: PhysicalAddress, count: Int) throws(MemoryError) -> [UInt8] {
    try address.read(count: count) { position throws(MemoryError) in try page(position.frame) }
  }
}

/// A memory that keeps pages that were read, for those who walk the same tables again and again.
public final class CachedMemory: PhysicalMemory {
  private let memory: any PhysicalMemory
  private let limit: Int
  private let pages = Mutex<[PageFrameNumber: [UInt8]]>([:])

  /// - Parameter pages: as many are kept at most; then all are given up.
  public init(_ memory: any PhysicalMemory, pages: Int) {
    self.memory = memory
    limit = pages
  }

  public func page(_ frame: PageFrameNumber) throws(MemoryError) -> [UInt8] {
    if let page = pages.withLock({ $0[frame] }) { return page }
    let page = try memory.page(frame)
    pages.withLock { pages in
      if pages.count >= limit { pages.removeAll() }
      pages[frame] = page
    }
    return page
  }
}
