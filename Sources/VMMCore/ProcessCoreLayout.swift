import DumpFiles
import Guest
import LinuxKernel
import Memory
import Output

/// Where everything goes in the core of a process: the ELF header, a PT_NOTE, a PT_LOAD for each
/// mapping or part of one, the notes, the memory, and with more than 65,534 program headers a section
/// header that tells how many (fs/binfmt_elf.c).
///
/// Pages of zeros between others are holes of a sparse file. What is missing, and mappings of which no
/// page was touched, have PT_LOADs of their own without bytes, which say why.
struct ProcessCoreLayout: Sendable {
  /// A PT_LOAD.
  struct Segment: Hashable, PlacedExtent {
    var start: VirtualAddress
    /// In memory.
    var size: UInt64
    /// PF_R, PF_W, PF_X.
    let access: UInt32
    /// Why it has no bytes; nil if it has.
    var gap: SegmentGap?
    /// True of the first segment of a mapping.
    let startsMapping: Bool
    var fileOffset: UInt64 = 0

    var fileSize: UInt64 { gap == nil ? size : 0 }

    var programHeader: ProgramHeader {
      var header = ProgramHeader(
        .load, flags: access | (gap?.flags ?? 0), offset: fileOffset, fileSize: fileSize,
        memorySize: size)
      header.virtualAddress = start.rawValue
      header.alignment = pageSize
      return header
    }
  }

  private(set) var segments: [Segment]
  let survey: PageSurvey<VirtualAddress>
  /// Pages that are missing and yet have a place in the file, where they are zero: as many segments
  /// as they would take are too many.
  private(set) var unmarkedPages: UInt64 = 0
  let noteOffset: UInt64
  private(set) var loadsEnd: UInt64

  /// As many segments are kept in memory, if there are not more mappings; readers take no more than a
  /// million.
  static let maximumSegments = 1 << 18
  /// Segments that may be added after the layout was made, for pages that turn out to be damaged when
  /// they are read: two for each run of them.
  private static let spareSegments = 1024

  /// - Parameter noteSize: bytes of all notes.
  init(
    _ mappings: [ProcessMapping], _ memory: PageMap<VirtualAddress>, noteSize: UInt64,
    maximumSegments: Int = Self.maximumSegments
  ) {
    var builder = SegmentBuilder(maximumSegments: max(maximumSegments, 2 * mappings.count))
    var survey = PageSurvey<VirtualAddress>()
    for mapping in mappings {
      let access = mapping.access
      builder.startMapping(access)
      guard mapping.hasMemory, let region = memory.region(holding: mapping.start) else {
        builder.append(mapping.start, mapping.size, .gap(.unsaid))
        continue
      }
      memory.forEachWindow(of: region) { runs in
        for run in runs {
          survey.add(run)
          builder.append(run.start, run.size, .init(run.content))
        }
      }
    }
    builder.finish()
    segments = builder.segments
    unmarkedPages = builder.unmarkedPages
    self.survey = survey
    noteOffset =
      ELFCoreHeader.size + ELFCoreHeader.programHeaderSize
      * UInt64(segments.count + Self.spareSegments + 1)
    var offset = (noteOffset + noteSize + pageSize - 1) & ~(pageSize - 1)
    for index in segments.indices {
      segments[index].fileOffset = offset
      offset += segments[index].fileSize
    }
    loadsEnd = offset
  }

  /// One for each segment, and that of the notes.
  var programHeaderCount: Int { segments.count + 1 }

  var needsSectionHeader: Bool {
    ELFCoreHeader.needsSectionHeader(programHeaders: programHeaderCount)
  }

  /// With room for the section header, whether it is needed or not.
  var fileSize: UInt64 { loadsEnd + ELFCoreHeader.sectionHeaderSize }

  /// Cuts pages out of segments that turned out not to be in the source.
  ///
  /// - Parameter lost: by ascending place in the file.
  mutating func cut(_ lost: [PageMover.LostPages]) {
    var runs: [(start: VirtualAddress, size: UInt64, reason: MissingReason)] = []
    for pages in lost {
      guard let address = segments.location(ofFileOffset: pages.fileOffset) else { continue }
      let size = pages.pages << pageShift
      if let last = runs.last, last.start + last.size == address, last.reason == pages.reason,
        segments.segmentIndex(of: last.start) == segments.segmentIndex(of: address)
      {
        runs[runs.count - 1].size += size
      } else {
        runs.append((address, size, pages.reason))
      }
    }
    let limit = segments.count + Self.spareSegments
    var result: [Segment] = []
    result.reserveCapacity(segments.count)
    var next = runs.makeIterator()
    var run = next.next()
    var rest = segments.count
    for segment in segments {
      rest -= 1
      var segment = segment
      while let current = run, current.start.distance(from: segment.start) < segment.fileSize {
        run = next.next()
        guard result.count + rest + 3 <= limit else {
          unmarkedPages += current.size >> pageShift
          continue
        }
        let offset = current.start.distance(from: segment.start)
        if offset > 0 { result.append(segment.part(from: 0, size: offset)) }
        var gap = segment.part(from: offset, size: current.size)
        gap.gap = .missing(current.reason)
        result.append(gap)
        segment = segment.part(
          from: offset + current.size, size: segment.size - offset - current.size)
      }
      if segment.size > 0 { result.append(segment) }
    }
    segments = result
  }
}

extension ProcessCoreLayout.Segment {
  fileprivate func part(from offset: UInt64, size: UInt64) -> Self {
    var part = Self(
      start: start + offset, size: size, access: access, gap: gap,
      startsMapping: startsMapping && offset == 0)
    part.fileOffset = fileOffset + offset
    return part
  }
}

extension [ProcessCoreLayout.Segment] {
  fileprivate func segmentIndex(of address: VirtualAddress) -> UInt64? {
    place(of: address).map { $0.fileOffset + $0.rest }
  }
}

extension ProcessMapping {
  /// As p_flags has it.
  fileprivate var access: UInt32 {
    (flags.contains(.readable) ? ProgramHeader.readable : 0)
      | (flags.contains(.writable) ? ProgramHeader.writable : 0)
      | (flags.contains(.executable) ? ProgramHeader.executable : 0)
  }
}

/// Puts runs together to segments.
private struct SegmentBuilder {
  /// What is known of some pages.
  enum Content {
    case bytes
    case gap(SegmentGap)

    init(_ content: PageContent) {
      self =
        switch content {
        case .frames: .bytes
        case .zero: .gap(.zero)
        case .missing(let reason, _): .gap(.missing(reason))
        }
    }
  }

  private(set) var segments: [ProcessCoreLayout.Segment] = []
  private(set) var unmarkedPages: UInt64 = 0
  private let maximumSegments: Int
  /// Missing runs of fewer pages have no segment of their own.
  private var shortestGap: UInt64 = 1
  private var access: UInt32 = 0
  private var startsMapping = false

  init(maximumSegments: Int) { self.maximumSegments = maximumSegments }

  mutating func startMapping(_ access: UInt32) {
    self.access = access
    startsMapping = true
  }

  mutating func append(_ start: VirtualAddress, _ size: UInt64, _ content: Content) {
    var gap: SegmentGap?
    if case .gap(let value) = content { gap = value }
    append(
      ProcessCoreLayout.Segment(
        start: start, size: size, access: access, gap: gap, startsMapping: startsMapping))
    startsMapping = false
    // The last two may still grow. Half of the room free, the list is seldom gone through again.
    while segments.count > maximumSegments, shortestGap < 1 << 40 {
      compact(keeping: 2)
      if segments.count > maximumSegments / 2 { shortestGap *= 2 }
    }
  }

  /// Applies the bound to the last segments too.
  mutating func finish() { compact(keeping: 0) }

  private mutating func append(_ segment: ProcessCoreLayout.Segment) {
    guard let last = segments.last, !segment.startsMapping, last.canTake(segment) else {
      segments.append(segment)
      return
    }
    segments[segments.count - 1].take(segment)
  }

  private mutating func compact(keeping end: Int) {
    guard shortestGap > 1 else { return }
    let old = segments
    segments = []
    for (index, var segment) in old.enumerated() {
      if index < old.count - end, case .missing = segment.gap,
        segment.size >> pageShift < shortestGap
      {
        unmarkedPages += segment.size >> pageShift
        segment.gap = nil
      }
      append(segment)
    }
  }
}

extension ProcessCoreLayout.Segment {
  /// Zeros may lie among bytes; all else lies apart.
  fileprivate func canTake(_ next: Self) -> Bool {
    gap == next.gap || (gap == nil && next.gap == .zero) || (gap == .zero && next.gap == nil)
  }

  fileprivate mutating func take(_ next: Self) {
    if next.gap == nil { gap = nil }
    size += next.size
  }
}
