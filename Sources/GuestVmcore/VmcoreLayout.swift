import Guest
import Memory
import Output

/// Where everything goes in a guest's vmcore.
///
/// The file is an ELF core as readers of kernel dumps need it: program headers right behind the
/// ELF header (makedumpfile ignores e_phoff), the one PT_NOTE first (crash takes every later header
/// for a load), notes before all memory (crash reads its header up to the first load), loads with
/// p_align 0 (by which crash tells a kdump from a netdump), on page boundaries in the file, and as
/// long there as in memory (Volatility drops others).
struct VmcoreLayout: Hashable, Sendable {
  struct Load: Hashable, PlacedExtent {
    let start: GuestPhysicalAddress
    let fileSize: UInt64
    let fileOffset: UInt64
    /// Where the guest's kernel maps the memory, or the physical address if that is not known.
    let virtualAddress: UInt64
  }

  let loads: [Load]
  /// Bytes before the first load: ELF header, program headers, notes.
  let headerSize: UInt64
  let fileSize: UInt64

  /// More loads make crash slower (it searches them one by one) and keep LeechCore from opening
  /// the file; a few gaps too many are holes instead.
  static let maximumLoads = 128

  var noteOffset: UInt64 { Self.headersSize(loads: loads.count) }

  /// The ELF header and the program headers, of which one is that of the notes.
  private static func headersSize(loads: Int) -> UInt64 {
    ELFCoreHeader.size + ELFCoreHeader.programHeaderSize * UInt64(loads + 1)
  }

  /// - Parameters:
  ///   - noteRoom: bytes to keep for notes.
  ///   - pageOffsetBase: where the guest's kernel maps all of physical memory.
  init(_ map: MemoryMap, survey: MemorySurvey, noteRoom: UInt64, pageOffsetBase: UInt64?) {
    let ranges = Self.ranges(of: map, without: survey.missingRuns)
    let unpadded = Self.headersSize(loads: ranges.count) + noteRoom
    headerSize = (unpadded + pageSize - 1) & ~(pageSize - 1)
    var offset = headerSize
    loads = ranges.map { start, size in
      defer { offset += size }
      return Load(
        start: start, fileSize: size, fileOffset: offset,
        virtualAddress: start.rawValue &+ (pageOffsetBase ?? 0))
    }
    fileSize = offset
  }

  /// The guest's memory without its larger missing runs: a reader then gets an error there instead
  /// of zeros. Missing runs that would make too many loads stay as holes, the shortest first; they
  /// are named in the provenance note.
  private static func ranges(
    of map: MemoryMap, without missing: [MemoryRun]
  ) -> [(start: GuestPhysicalAddress, size: UInt64)] {
    let ranges = map.ranges
    let gaps = missing.sorted { $0.pages > $1.pages }
      .prefix(max(0, maximumLoads - ranges.count))
      .sorted { $0.start < $1.start }
    var result: [(start: GuestPhysicalAddress, size: UInt64)] = []
    var next = gaps.makeIterator()
    var gap = next.next()
    for range in ranges {
      var start = range.start
      let end = range.start + range.size
      while let current = gap, current.start < end {
        if current.start > start { result.append((start, current.start.distance(from: start))) }
        start = current.start + current.size
        gap = next.next()
      }
      if start < end { result.append((start, end.distance(from: start))) }
    }
    return result
  }

  /// The pages of the guest that were lost while they were moved, ascending.
  func runs(lost: [PageMover.LostPages]) -> [MemoryRun] {
    var builder = PageRunBuilder<GuestPhysicalAddress>()
    for pages in lost.sorted(by: { $0.fileOffset < $1.fileOffset }) {
      guard let start = loads.location(ofFileOffset: pages.fileOffset) else { continue }
      builder.append(MemoryRun(start: start, pages: pages.pages, content: .missing(pages.reason)))
    }
    return builder.runs
  }
}

extension MemoryMap {
  /// Where there is memory, neighbouring regions as one.
  fileprivate var ranges: [(start: GuestPhysicalAddress, size: UInt64)] {
    var ranges: [(start: GuestPhysicalAddress, size: UInt64)] = []
    for region in regions {
      if let last = ranges.last, last.start + last.size == region.start {
        ranges[ranges.count - 1].size += region.size
      } else {
        ranges.append((region.start, region.size))
      }
    }
    return ranges
  }

  /// The frames that have memory.
  var frameRanges: [Range<PageFrameNumber>] {
    ranges.filter { $0.size >= pageSize }.map { start, size in
      let first = PageFrameNumber(start.rawValue >> pageShift)
      return first..<(first + size >> pageShift)
    }
  }
}
