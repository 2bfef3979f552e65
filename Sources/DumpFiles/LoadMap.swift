import Memory

/// A PT_LOAD program header: where in the file the bytes of a range of memory are.
struct Load: Hashable, Sendable {
  /// p_paddr, or p_vaddr in the core of a process.
  var address: UInt64
  var fileOffset: UInt64
  var fileSize: UInt64
  /// Bytes beyond `fileSize` are not in the file.
  var memorySize: UInt64
  /// The file says of the bytes that are not in it that they are zero.
  var isZero = false
}

/// Where the bytes of page frames are, made of loads that may overlap, be unaligned, and be cut off
/// by the end of the file.
///
/// Where loads overlap (the kernel-text load of /proc/vmcore lies over one of RAM; they hold the
/// same bytes), the first that has a byte wins; a byte that one load lost at the file's end and
/// another leaves out counts as lost.
struct LoadMap: Sendable {
  /// What a run of frames is made of.
  enum Content: Hashable, Sendable {
    /// Whole frames, one after the other in the file from this offset on.
    case file(offset: UInt64)
    /// A single frame put together from these parts. Bytes that no part has are zero: they are no
    /// RAM (System RAM can end within a page), or what ELF says of memory beyond p_filesz.
    case parts(Range<Int>)
    /// The file has no bytes, and says that they are zero.
    case zero
    case absent(Absence)

    var absence: Absence? {
      if case .absent(let absence) = self { absence } else { nil }
    }
  }

  struct Run: Hashable, Sendable {
    /// Frame numbers.
    var first: UInt64
    var end: UInt64
    var content: Content
  }

  /// Some bytes of one frame.
  struct Part: Hashable, Sendable {
    /// Offset in the frame.
    var offset: Int
    var count: Int
    var fileOffset: UInt64
  }

  /// Ascending, not overlapping. Frames between them are in no load.
  private(set) var runs: [Run] = []
  private(set) var parts: [Part] = []

  /// Index of the first run that ends behind `frame`, which is the one that holds it if any does.
  func index(of frame: UInt64) -> Int {
    runs.partitioningIndex { $0.end > frame }
  }

  /// See ``DumpFile/presence(from:limit:)``.
  func presence(from frame: UInt64, limit: UInt64) -> (absence: Absence?, count: UInt64) {
    var index = index(of: frame)
    guard index < runs.count else { return (.notInDump, limit) }
    let end = limit < .max - frame ? frame + limit : .max
    guard runs[index].first <= frame else {
      return (.notInDump, min(end, runs[index].first) - frame)
    }
    let absence = runs[index].content.absence
    var position = frame
    while index < runs.count, position < end, runs[index].first <= position,
      runs[index].content.absence == absence
    {
      position = min(end, runs[index].end)
      index += 1
    }
    return (absence, position - frame)
  }

  /// Pages that a load has and the file does not reach.
  var lostPages: UInt64 {
    runs.reduce(0) { $1.content == .absent(.truncated) ? $0 + ($1.end - $1.first) : $0 }
  }

  /// Ranges of frames that any load speaks of, ascending, coalesced.
  var frameRanges: [Range<PageFrameNumber>] {
    var ranges: [Range<PageFrameNumber>] = []
    for run in runs {
      let range = PageFrameNumber(run.first)..<PageFrameNumber(run.end)
      if let last = ranges.last, last.upperBound == range.lowerBound {
        ranges[ranges.count - 1] = last.lowerBound..<range.upperBound
      } else {
        ranges.append(range)
      }
    }
    return ranges
  }
}

extension LoadMap {
  /// What the file has of the bytes of a range; the better one wins where ranges overlap.
  private enum Supply: Int {
    case data, truncated, zero, excluded
  }

  private struct Extent {
    var start: UInt64
    var end: UInt64
    var supply: Supply
    var fileOffset: UInt64
    /// The smaller wins: by supply, then in the order of the program headers.
    var rank: UInt64
  }

  /// Addresses from `addressLimit` on are left out: in /proc/kcore, p_paddr is all ones where there
  /// is no physical address.
  init(_ loads: [Load], fileSize: UInt64, addressLimit: UInt64) {
    var extents: [Extent] = []
    extents.reserveCapacity(loads.count)
    for (index, load) in loads.enumerated() where load.address < addressLimit {
      let room = addressLimit - load.address
      let named = min(load.fileSize, room)
      let present = load.fileOffset < fileSize ? min(named, fileSize - load.fileOffset) : 0
      let whole = max(named, min(load.memorySize, room))
      func append(_ supply: Supply, _ start: UInt64, _ end: UInt64) {
        guard start < end else { return }
        extents.append(
          Extent(
            start: load.address + start, end: load.address + end, supply: supply,
            fileOffset: load.fileOffset, rank: UInt64(supply.rawValue) << 32 | UInt64(index)))
      }
      append(.data, 0, present)
      append(.truncated, present, named)
      append(load.isZero ? .zero : .excluded, named, whole)
    }
    extents.sort { ($0.start, $0.rank) < ($1.start, $1.rank) }
    addFrames(of: Self.disjoint(extents))
  }

  /// Sorted extents that overlap, as extents that do not: a sweep over their bounds, with a heap of
  /// those that cover the position.
  private static func disjoint(_ extents: [Extent]) -> [Extent] {
    var result: [Extent] = []
    var covering = Heap<Extent> { $0.rank < $1.rank }
    var position: UInt64 = 0
    var next = 0
    while true {
      if covering.first == nil {
        guard next < extents.count else { return result }
        position = max(position, extents[next].start)
      }
      while next < extents.count, extents[next].start <= position {
        covering.insert(extents[next])
        next += 1
      }
      while let best = covering.first, best.end <= position { covering.removeFirst() }
      guard let best = covering.first else { continue }
      let end = next < extents.count ? min(best.end, extents[next].start) : best.end
      var piece = best
      piece.fileOffset = best.fileOffset &+ (position - best.start)
      piece.start = position
      piece.end = end
      if let last = result.last, last.end == position, last.supply == piece.supply,
        last.supply != .data || last.fileOffset &+ (last.end - last.start) == piece.fileOffset
      {
        result[result.count - 1].end = end
      } else {
        result.append(piece)
      }
      position = end
    }
  }

  /// Cuts extents into whole frames, and frames put together from parts.
  private mutating func addFrames(of extents: [Extent]) {
    // The frame that the last extents reached only in part, and what they have of it.
    var partial: UInt64?
    var partsStart = 0
    var supplies: [Supply] = []

    func flush(_ map: inout LoadMap) {
      guard let frame = partial else { return }
      let content: Content =
        supplies.contains(.truncated)
        ? .absent(.truncated)
        : supplies.contains(.data)
          ? .parts(partsStart..<map.parts.count)
          : supplies.contains(.zero) ? .zero : .absent(.excluded)
      map.append(Run(first: frame, end: frame + 1, content: content))
      partial = nil
      supplies.removeAll()
    }

    func addPart(_ map: inout LoadMap, of extent: Extent, from start: UInt64, to end: UInt64) {
      let frame = start >> pageShift
      if partial != frame {
        flush(&map)
        partial = frame
        partsStart = map.parts.count
      }
      supplies.append(extent.supply)
      if extent.supply == .data {
        map.parts.append(
          Part(
            offset: Int(start & (pageSize - 1)), count: Int(end - start),
            fileOffset: extent.fileOffset &+ (start - extent.start)))
      }
    }

    for extent in extents {
      let firstWhole = (extent.start >> pageShift) + (extent.start & (pageSize - 1) == 0 ? 0 : 1)
      let endWhole = extent.end >> pageShift
      if firstWhole > endWhole {
        addPart(&self, of: extent, from: extent.start, to: extent.end)
        continue
      }
      if extent.start < firstWhole << pageShift {
        addPart(&self, of: extent, from: extent.start, to: firstWhole << pageShift)
      }
      if firstWhole < endWhole {
        flush(&self)
        let content: Content =
          switch extent.supply {
          case .data:
            .file(offset: extent.fileOffset &+ ((firstWhole << pageShift) - extent.start))
          case .truncated: .absent(.truncated)
          case .zero: .zero
          case .excluded: .absent(.excluded)
          }
        append(Run(first: firstWhole, end: endWhole, content: content))
      }
      if endWhole << pageShift < extent.end {
        addPart(&self, of: extent, from: endWhole << pageShift, to: extent.end)
      }
    }
    flush(&self)
  }

  private mutating func append(_ run: Run) {
    if let last = runs.last, last.end == run.first, case .absent = run.content,
      last.content == run.content
    {
      runs[runs.count - 1].end = run.end
    } else {
      runs.append(run)
    }
  }
}

/// A binary heap.
private struct Heap<Element> {
  private var elements: [Element] = []
  private let precedes: (Element, Element) -> Bool

  init(_ precedes: @escaping (Element, Element) -> Bool) {
    self.precedes = precedes
  }

  var first: Element? { elements.first }

  mutating func insert(_ element: Element) {
    elements.append(element)
    var child = elements.count - 1
    while child > 0, precedes(elements[child], elements[(child - 1) / 2]) {
      elements.swapAt(child, (child - 1) / 2)
      child = (child - 1) / 2
    }
  }

  mutating func removeFirst() {
    elements.swapAt(0, elements.count - 1)
    elements.removeLast()
    var parent = 0
    while true {
      var least = parent
      for child in [2 * parent + 1, 2 * parent + 2]
      where child < elements.count && precedes(elements[child], elements[least]) {
        least = child
      }
      if least == parent { return }
      elements.swapAt(parent, least)
      parent = least
    }
  }
}
