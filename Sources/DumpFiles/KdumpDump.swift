import Memory
import SystemPackage

/// A kdump-compressed (or diskdump) file, or the parts of one that `makedumpfile --split` wrote.
struct KdumpDump: Sendable {
  /// 2^40 page frames: 52 bits of physical address.
  static let frameLimit: UInt64 = 1 << 40

  let format: DumpFormat
  let isSplit: Bool
  let notes: [Note]
  let vmcoreinfo: [UInt8]?
  let dumpLevel: DumpLevel?
  let hasErasures: Bool
  /// Ascending, apart from each other. Of a file that is not split, one with all frames.
  let parts: [KdumpPart]
  /// Frames of parts that were not given, and how many of their pages the dump has.
  let missingParts: [MissingPart]
  /// The dump's writer said that it ran out of space.
  let isMarkedIncomplete: Bool
  /// How many pages the files name and do not have, as they end before.
  let lostPages: UInt64
  let damage = DamageLog()

  /// Frames of RAM. Diskdump files can have one bitmap only, which then is both.
  private let ram: Bitmap
  /// Frames whose pages are stored.
  private let stored: Bitmap
  /// A bit for each frame that counts in `lostPages`; empty if there are none.
  private let lost: [UInt64]

  /// Takes files and their first blocks: one, or parts of a set in any order.
  init(_ files: [(file: InputFile, start: [UInt8])]) throws(DumpFileError) {
    var headers: [KdumpFileHeader] = []
    for (file, start) in files { headers.append(try KdumpFileHeader(file, start: start)) }
    headers = try Self.ordered(headers)
    let first = headers[0]
    let frameLimit = first.frameLimit

    let ram = try Bitmap(first.file, at: first.bitmapOffset, limit: frameLimit)
    let stored =
      try first.storedBitmapOffset.map { offset throws(DumpFileError) in
        try Bitmap(first.file, at: offset, limit: frameLimit)
      } ?? ram
    for other in headers.dropFirst() {
      guard try ram.equals(other.file, at: other.bitmapOffset),
        try other.storedBitmapOffset.map({ offset throws(DumpFileError) in
          try stored.equals(other.file, at: offset)
        }) ?? true
      else { throw .partsDiffer(first.file.path, other.file.path, what: "page bitmaps") }
    }

    var parts: [KdumpPart] = []
    var missing: [MissingPart] = []
    var end: UInt64 = 0
    func addGap(_ range: Range<UInt64>) {
      let pages = stored.rank(of: range.upperBound) - stored.rank(of: range.lowerBound)
      guard pages > 0 else { return }
      missing.append(
        MissingPart(
          frames: PageFrameNumber(range.lowerBound)..<PageFrameNumber(range.upperBound),
          pages: pages))
    }
    for header in headers {
      addGap(end..<header.frames.lowerBound)
      end = header.frames.upperBound
      parts.append(
        KdumpPart(
          file: header.file, frames: header.frames, descriptors: header.descriptors,
          firstRank: stored.rank(of: header.frames.lowerBound)))
    }
    addGap(end..<frameLimit)
    self.ram = ram
    self.stored = stored
    self.parts = parts
    missingParts = missing

    format =
      first.isDiskdump
      ? .diskdump(version: Int(first.version)) : .kdump(version: Int(first.version))
    isSplit = first.isSplit
    notes = first.notes
    vmcoreinfo = first.vmcoreinfo
    dumpLevel = first.sub.dumpLevel
    hasErasures = headers.contains { $0.sub.eraseInfoSize > 0 }
    isMarkedIncomplete = headers.contains(where: \.isMarkedIncomplete)

    var lost = LostFrames(limit: frameLimit)
    for (part, header) in zip(parts, headers) {
      let count = stored.rank(of: part.frames.upperBound) - part.firstRank
      if header.isMarkedIncomplete || part.isCut(count: count) { lost.add(of: part, stored) }
    }
    lostPages = lost.count
    self.lost = lost.words
  }

  /// The headers in the order of their frames, each once, if they belong together.
  private static func ordered(
    _ headers: [KdumpFileHeader]
  ) throws(DumpFileError) -> [KdumpFileHeader] {
    guard headers.count > 1 else { return headers }
    for header in headers where !header.isSplit { throw .notAPart(header.file.path) }
    let sorted = headers.sorted {
      // Of a part that was given twice, the larger file: a copy may have been cut.
      ($0.frames.lowerBound, $0.frames.upperBound, $1.file.size)
        < ($1.frames.lowerBound, $1.frames.upperBound, $0.file.size)
    }
    var result: [KdumpFileHeader] = []
    for header in sorted {
      if let first = result.first, let what = first.difference(from: header) {
        throw .partsDiffer(first.file.path, header.file.path, what: what)
      }
      guard let last = result.last else {
        result.append(header)
        continue
      }
      if last.frames == header.frames { continue }
      guard last.frames.upperBound <= header.frames.lowerBound else {
        throw .partsDiffer(last.file.path, header.file.path, what: "division into parts")
      }
      result.append(header)
    }
    return result
  }

  /// See ``DumpFile/frameRanges``.
  var frameRanges: [Range<PageFrameNumber>] {
    // Far more ranges than any machine has: a bound for what a damaged bitmap can cost.
    let rangeLimit = 1 << 16
    var ranges: [Range<PageFrameNumber>] = []
    var frame: UInt64 = 0
    while frame < ram.limit {
      let gap = setRun(from: frame, to: ram.limit) { ~ram.word($0) }
      let start = frame + gap
      let run = setRun(from: start, to: ram.limit) { ram.word($0) }
      guard run > 0 else { break }
      frame = start + run
      if ranges.count == rangeLimit {
        ranges[rangeLimit - 1] = ranges[rangeLimit - 1].lowerBound..<PageFrameNumber(frame)
      } else {
        ranges.append(PageFrameNumber(start)..<PageFrameNumber(frame))
      }
    }
    return ranges
  }

  /// See ``DumpFile/presence(from:limit:)``.
  func presence(from frame: UInt64, limit: UInt64) -> (absence: Absence?, count: UInt64) {
    guard frame < stored.limit else { return (.notInDump, limit) }
    let end = limit < stored.limit - frame ? frame + limit : stored.limit
    if stored[frame] {
      let (part, partEnd) = self.part(of: frame)
      let run = setRun(from: frame, to: min(end, partEnd)) { stored.word($0) }
      if part == nil { return (.missingPart, run) }
      if lost.isEmpty { return (nil, run) }
      let isLost = lost[Int(frame / 64)] >> (frame % 64) & 1 != 0
      let same = setRun(from: frame, to: frame + run) { isLost ? lost[$0] : ~lost[$0] }
      return (isLost ? .truncated : nil, same)
    }
    if ram[frame] {
      return (.excluded, setRun(from: frame, to: end) { ram.word($0) & ~stored.word($0) })
    }
    let run = setRun(from: frame, to: end) { ~(ram.word($0) | stored.word($0)) }
    return (.notInDump, frame + run == stored.limit ? limit : run)
  }

  /// The index of the part that has `frame`, nil if it is missing, and the frame from which on the
  /// answer is another.
  @inline(__always)
  func part(of frame: UInt64) -> (index: Int?, end: UInt64) {
    let index = parts.partitioningIndex { $0.frames.upperBound > frame }
    guard index < parts.count else { return (nil, .max) }
    let frames = parts[index].frames
    return frames.lowerBound <= frame ? (index, frames.upperBound) : (nil, frames.lowerBound)
  }

  /// Why the frame's bytes are not stored; nil if they are.
  @inline(__always)
  func absence(of frame: UInt64) -> Absence? {
    stored[frame] ? nil : ram[frame] ? .excluded : .notInDump
  }

  /// Offset of the descriptor of a frame of `part`, or of the next frame stored.
  func descriptorOffset(of frame: UInt64, in part: KdumpPart) -> UInt64 {
    part.descriptors
      + (stored.rank(of: frame) - part.firstRank) * UInt64(KdumpLayout.Descriptor.size)
  }
}

/// A file, and the frames whose pages it has.
struct KdumpPart: Sendable {
  let file: InputFile
  let frames: Range<UInt64>
  /// Offset of the page descriptors.
  let descriptors: UInt64
  /// Number of pages stored in other parts, of frames before.
  let firstRank: UInt64

  /// Whether the file ends before the data of the last of its `count` pages: all data is in the
  /// order of the descriptors, but for the one block that all zero pages share.
  fileprivate func isCut(count: UInt64) -> Bool {
    if file.flattenedCut != nil { return true }
    let size = UInt64(KdumpLayout.Descriptor.size)
    let looked = min(count, 1024)
    // Descriptors that cannot be read are told as damage when their pages are asked for.
    guard
      let bytes = try? file.bytes(
        at: descriptors + (count - looked) * size, count: Int(looked * size))
    else { return false }
    guard UInt64(bytes.count) == looked * size else { return true }
    return stride(from: 0, to: bytes.count, by: KdumpLayout.Descriptor.size).contains { start in
      PageDescriptor(bytes, at: start)?.storage(fileSize: file.size) == .absent(.truncated)
    }
  }
}

/// Page frames whose pages the file does not reach, found by looking at all descriptors.
private struct LostFrames {
  private let limit: UInt64
  private(set) var words: [UInt64] = []
  private(set) var count: UInt64 = 0

  init(limit: UInt64) {
    self.limit = limit
  }

  mutating func add(of part: KdumpPart, _ stored: Bitmap) {
    let size = KdumpLayout.Descriptor.size
    let pieceCount: UInt64 = 4096
    var offset = part.descriptors
    var frame = part.frames.lowerBound
    let end = part.frames.upperBound
    while frame < end {
      frame += setRun(from: frame, to: end) { ~stored.word($0) }
      let run = setRun(from: frame, to: min(end, frame + pieceCount)) { stored.word($0) }
      let table = try? part.file.bytes(at: offset, count: Int(run) * size)
      for index in 0..<run {
        // As in `isCut`.
        guard let table else { break }
        let storage = PageDescriptor(table, at: Int(index) * size)?
          .storage(fileSize: part.file.size)
        if storage == nil || storage == .absent(.truncated) { add(frame + index) }
      }
      offset += run * UInt64(size)
      frame += run
    }
  }

  private mutating func add(_ frame: UInt64) {
    if words.isEmpty { words = Array(repeating: 0, count: Int(limit / 64) + 1) }
    words[Int(frame / 64)] |= 1 << (frame % 64)
    count += 1
  }
}

/// Where a page's stored form is.
struct PageDescriptor: Hashable {
  let offset: UInt64
  let size: UInt32
  let flags: UInt32

  enum Storage: Hashable {
    case at(Range<UInt64>)
    case absent(Absence)
  }

  init?(_ bytes: [UInt8], at index: Int) {
    typealias Member = KdumpLayout.Descriptor
    guard let offset: UInt64 = bytes.load(at: index + Member.dataOffset),
      let size: UInt32 = bytes.load(at: index + Member.dataSize),
      let flags: UInt32 = bytes.load(at: index + Member.flags)
    else { return nil }
    self.offset = offset
    self.size = size
    self.flags = flags
  }

  /// The part of the file, if the descriptor makes sense. A descriptor that is all zero was never
  /// written: makedumpfile ran out of space.
  func storage(fileSize: UInt64) -> Storage {
    if offset == 0 { return .absent(.truncated) }
    guard size > 0, size <= UInt32(KdumpLayout.blockSize) else { return .absent(.corrupt) }
    guard offset < fileSize, UInt64(size) <= fileSize - offset else { return .absent(.truncated) }
    return .at(offset..<offset + UInt64(size))
  }
}
