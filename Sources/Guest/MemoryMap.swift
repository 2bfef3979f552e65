import Memory

/// A guest's physical memory.
public typealias MemoryMap = PageMap<GuestPhysicalAddress>
public typealias MemoryRegion = PageRegion<GuestPhysicalAddress>
public typealias MemoryRun = PageRun<GuestPhysicalAddress>
public typealias MemorySurvey = PageSurvey<GuestPhysicalAddress>

/// Where the memory of an address space, a guest's or a process's, is in the source, or why it is
/// not there.
///
/// The map is not held page by page: a guest of a terabyte has more pages than a crash server has
/// memory for. It is asked range by range, and answers from the page tables in the dump.
public struct PageMap<Location: Address>: Sendable {
  /// Ascending and apart from each other.
  public let regions: [PageRegion<Location>]
  private let backing: any MemoryBacking<Location>

  public init(regions: [PageRegion<Location>], backing: any MemoryBacking<Location>) {
    self.regions = regions.sorted { $0.start < $1.start }
    self.backing = backing
  }

  /// Bytes of memory.
  public var size: UInt64 { regions.reduce(0) { $0 &+ $1.size } }

  /// What is known of `pages` pages from `start` on, which must lie inside one region: ascending
  /// runs that together cover them.
  public func runs(from start: Location, pages: UInt64) -> [PageRun<Location>] {
    backing.runs(from: start, pages: pages)
  }

  /// The region that holds an address.
  public func region(holding address: Location) -> PageRegion<Location>? {
    let next = regions.partitioningIndex { $0.start > address }
    guard next > 0, regions[next - 1].contains(address) else { return nil }
    return regions[next - 1]
  }

  /// The parts of the memory that lie in `ranges`, which are apart from each other.
  public func restricted(to ranges: [(start: Location, size: UInt64)]) -> PageMap {
    PageMap(
      regions: ranges.flatMap { start, size in
        regions.compactMap { region in
          let first = max(start, region.start)
          let end = min(start.rawValue &+ size, region.start.rawValue &+ region.size)
          guard first.rawValue < end else { return nil }
          return PageRegion(
            start: first, size: end - first.rawValue, isReadOnly: region.isReadOnly,
            origin: region.origin)
        }
      }, backing: backing)
  }

  /// All runs of the memory, window by window, in ascending order. `body` is given at most
  /// `windowPages` pages at a time, so that nothing grows with the guest.
  public func forEachWindow<Failure: Error>(
    of windowPages: UInt64 = 1 << 16,
    _ body: (PageRegion<Location>, [PageRun<Location>]) throws(Failure) -> Void
  ) throws(Failure) {
    for region in regions {
      try forEachWindow(of: region, windowPages) { runs throws(Failure) in
        try body(region, runs)
      }
    }
  }

  /// The same of one region.
  public func forEachWindow<Failure: Error>(
    of region: PageRegion<Location>, _ windowPages: UInt64 = 1 << 16,
    _ body: ([PageRun<Location>]) throws(Failure) -> Void
  ) throws(Failure) {
    var done: UInt64 = 0
    let pages = region.size >> pageShift
    while done < pages {
      let count = min(windowPages, pages - done)
      try body(runs(from: region.start + done << pageShift, pages: count))
      done += count
    }
  }
}

/// A range of memory with one origin, such as a memory slot of KVM or a mapping of a process.
public struct PageRegion<Location: Address>: Hashable, Sendable {
  public let start: Location
  /// In bytes, a multiple of the page size.
  public let size: UInt64
  public let isReadOnly: Bool
  /// What the region is in the source: `slot 3 at 0x7f…`.
  public let origin: String

  public init(start: Location, size: UInt64, isReadOnly: Bool, origin: String) {
    self.start = start
    self.size = size
    self.isReadOnly = isReadOnly
    self.origin = origin
  }

  public func contains(_ address: Location) -> Bool {
    address.distance(from: start) < size
  }
}

/// Consecutive pages with one answer to where they are.
public struct PageRun<Location: Address>: Hashable, Sendable {
  public let start: Location
  public var pages: UInt64
  public let content: PageContent

  public init(start: Location, pages: UInt64, content: PageContent) {
    self.start = start
    self.pages = pages
    self.content = content
  }

  public var size: UInt64 { pages << pageShift }
}

/// A part of a run that is in the source, small enough to be read at once.
public struct FramePiece<Location: Address>: Hashable, Sendable {
  public let start: Location
  public let frame: PageFrameNumber
  public let pages: Int
}

/// Pages that are read at once: 1 MiB, larger reads gain nothing.
public let maximumPiecePages = 256

extension PageRun {
  /// The run cut into pieces; none if it is not in the source.
  public var pieces: [FramePiece<Location>] { pieces(of: maximumPiecePages) }

  /// The run cut into pieces of at most `limit` pages; none if it is not in the source.
  public func pieces(of limit: Int) -> [FramePiece<Location>] {
    guard case .frames(let first) = content else { return [] }
    return stride(from: 0, to: pages, by: limit).map { offset in
      FramePiece(
        start: start + offset << pageShift, frame: first + offset,
        pages: Int(min(UInt64(limit), pages - offset)))
    }
  }
}

/// Where the bytes of a page are.
public enum PageContent: Hashable, Sendable {
  /// In the source, from this frame on; pages that the host has in swap have such a number too
  /// (``SwappedPage``).
  case frames(PageFrameNumber)
  /// Known to be zero.
  case zero(ZeroReason)
  /// Not to be had. If the host has swapped it out: to which of its devices (``SwapEntry/device``).
  case missing(MissingReason, device: UInt8? = nil)

  /// Why it is not to be had; nil if it is.
  public var missingReason: MissingReason? {
    if case .missing(let reason, _) = self { reason } else { nil }
  }
}

/// Why a page without bytes in the dump is known to be zero.
public enum ZeroReason: String, Hashable, Sendable, CaseIterable {
  /// The host never gave the guest a page there.
  case neverTouched = "never-touched"
  /// The host maps its shared page of zeros.
  case sharedZeroPage = "shared-zero-page"
  /// The dump's writer left out pages of zeros, and nothing else of this kind.
  case filteredZeroPage = "filtered-zero-page"
  /// The host swapped the page out, and noted that it is zero.
  case swappedZeroPage = "swapped-zero-page"
}

/// Knows where the pages of an address space are in one kind of source.
public protocol MemoryBacking<Location>: Sendable {
  associatedtype Location: Address

  /// Ascending runs that cover `pages` pages from `start` on.
  func runs(from start: Location, pages: UInt64) -> [PageRun<Location>]
}

/// Runs under construction: neighbours with one answer become one.
public struct PageRunBuilder<Location: Address>: Sendable {
  public private(set) var runs: [PageRun<Location>] = []

  public init() {}

  public mutating func append(_ run: PageRun<Location>) {
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
