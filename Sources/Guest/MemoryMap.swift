import Memory

/// Where a guest's physical memory is in the source, or why it is not there.
///
/// The map is not held page by page: a guest of a terabyte has more pages than a crash server has
/// memory for. It is asked range by range, and answers from the page tables in the dump.
public struct MemoryMap: Sendable {
  /// Ascending and apart from each other.
  public let regions: [MemoryRegion]
  private let backing: any MemoryBacking

  public init(regions: [MemoryRegion], backing: any MemoryBacking) {
    self.regions = regions.sorted { $0.start < $1.start }
    self.backing = backing
  }

  /// Bytes of guest-physical memory.
  public var size: UInt64 { regions.reduce(0) { $0 &+ $1.size } }

  /// What is known of `pages` pages from `start` on, which must lie inside one region: ascending
  /// runs that together cover them.
  public func runs(from start: GuestPhysicalAddress, pages: UInt64) -> [MemoryRun] {
    backing.runs(from: start, pages: pages)
  }

  /// The region that holds an address.
  public func region(holding address: GuestPhysicalAddress) -> MemoryRegion? {
    var low = 0
    var high = regions.count
    while low < high {
      let middle = (low + high) / 2
      if regions[middle].start <= address { low = middle + 1 } else { high = middle }
    }
    guard low > 0, regions[low - 1].contains(address) else { return nil }
    return regions[low - 1]
  }

  /// All runs of the guest, window by window, in ascending order. `body` is given at most
  /// `windowPages` pages at a time, so that nothing grows with the guest.
  public func forEachWindow<Failure: Error>(
    of windowPages: UInt64 = 1 << 16,
    _ body: (MemoryRegion, [MemoryRun]) throws(Failure) -> Void
  ) throws(Failure) {
    for region in regions {
      var done: UInt64 = 0
      let pages = region.size >> pageShift
      while done < pages {
        let count = min(windowPages, pages - done)
        try body(region, runs(from: region.start + done << pageShift, pages: count))
        done += count
      }
    }
  }
}

/// A range of guest-physical memory with one origin, such as a memory slot of KVM.
public struct MemoryRegion: Hashable, Sendable {
  public let start: GuestPhysicalAddress
  /// In bytes, a multiple of the page size.
  public let size: UInt64
  public let isReadOnly: Bool
  /// What the region is in the source: `slot 3 at 0x7f…`.
  public let origin: String

  public init(start: GuestPhysicalAddress, size: UInt64, isReadOnly: Bool, origin: String) {
    self.start = start
    self.size = size
    self.isReadOnly = isReadOnly
    self.origin = origin
  }

  public func contains(_ address: GuestPhysicalAddress) -> Bool {
    address.distance(from: start) < size
  }
}

/// Consecutive pages of a guest with one answer to where they are.
public struct MemoryRun: Hashable, Sendable {
  public let start: GuestPhysicalAddress
  public var pages: UInt64
  public let content: PageContent

  public init(start: GuestPhysicalAddress, pages: UInt64, content: PageContent) {
    self.start = start
    self.pages = pages
    self.content = content
  }

  public var size: UInt64 { pages << pageShift }
}

/// A part of a run that is in the source, small enough to be read at once.
public struct FramePiece: Hashable, Sendable {
  public let start: GuestPhysicalAddress
  public let frame: PageFrameNumber
  public let pages: Int

  /// 1 MiB: larger reads gain nothing.
  public static let maximumPages = 256
}

extension MemoryRun {
  /// The run cut into pieces; none if it is not in the source.
  public var pieces: [FramePiece] {
    guard case .frames(let first) = content else { return [] }
    return stride(from: 0, to: pages, by: FramePiece.maximumPages).map { offset in
      FramePiece(
        start: start + offset << pageShift, frame: first + offset,
        pages: Int(min(UInt64(FramePiece.maximumPages), pages - offset)))
    }
  }
}

/// Where the bytes of a guest's page are.
public enum PageContent: Hashable, Sendable {
  /// In the source, from this frame on.
  case frames(PageFrameNumber)
  /// Known to be zero.
  case zero(ZeroReason)
  /// Not to be had.
  case missing(MissingReason)
}

/// Why a page without bytes in the dump is known to be zero.
public enum ZeroReason: String, Hashable, Sendable, CaseIterable {
  /// The host never gave the guest a page there.
  case neverTouched = "never-touched"
  /// The host maps its shared page of zeros.
  case sharedZeroPage = "shared-zero-page"
  /// The dump's writer left out pages of zeros, and nothing else of this kind.
  case filteredZeroPage = "filtered-zero-page"
}

/// Why a page of a guest is missing.
public enum MissingReason: String, Hashable, Sendable, CaseIterable {
  case swappedOut = "swapped-out"
  /// In a file of the host, of which this page was not in memory.
  case inFile = "in-file"
  /// The page was on its way between host frames, poisoned, or otherwise marked by the host.
  case specialEntry = "special-entry"
  /// Left out by the dump's filter.
  case filtered
  case notInDump = "not-in-dump"
  /// In memory of the VMM that was not put into its core.
  case notDumped = "not-dumped"
  case truncated
  case corrupt
  /// In a file of a split dump that was not given.
  case missingPart = "missing-part"
  /// A host page table that would tell is not in the dump.
  case pageTableMissing = "page-table-missing"
  /// The host keeps the page encrypted for the guest.
  case encrypted

  public init(_ absence: Absence) {
    self =
      switch absence {
      case .excluded: .filtered
      case .notInDump: .notInDump
      case .truncated: .truncated
      case .corrupt: .corrupt
      case .missingPart: .missingPart
      }
  }

  /// Completes "pages are missing: …".
  public var explanation: String {
    switch self {
    case .swappedOut: "swapped out by the host"
    case .inFile: "in a file of the host and not in its memory"
    case .specialEntry: "being migrated, poisoned or otherwise taken by the host"
    case .filtered: "left out by the dump's filter"
    case .notInDump: "not in the dump, though the host has them"
    case .notDumped: "in memory of the VMM that was not put into its core"
    case .truncated: "beyond the end of the truncated dump"
    case .corrupt: "damaged in the dump"
    case .missingPart: "in a part of the split dump that was not given"
    case .pageTableMissing: "unknown, as the host's page table for them is not in the dump"
    case .encrypted: "encrypted by the host's processor"
    }
  }
}

/// Knows where a guest's pages are in one kind of source.
public protocol MemoryBacking: Sendable {
  /// Ascending runs that cover `pages` pages from `start` on.
  func runs(from start: GuestPhysicalAddress, pages: UInt64) -> [MemoryRun]
}

/// Runs under construction: neighbours with one answer become one.
public struct MemoryRunBuilder: Sendable {
  public private(set) var runs: [MemoryRun] = []

  public init() {}

  public mutating func append(_ run: MemoryRun) {
    guard let last = runs.last, last.start + last.size == run.start,
      last.content.continues(as: run.content, after: last.pages)
    else {
      runs.append(run)
      return
    }
    runs[runs.count - 1].pages += run.pages
  }
}

extension PageContent {
  fileprivate func continues(as next: PageContent, after pages: UInt64) -> Bool {
    switch (self, next) {
    case (.frames(let first), .frames(let second)): first + pages == second
    default: self == next
    }
  }
}
