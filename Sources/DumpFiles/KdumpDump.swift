import Memory

/// A kdump-compressed (or diskdump) file.
struct KdumpDump: Sendable {
  /// 2^40 page frames: 52 bits of physical address.
  static let frameLimit: UInt64 = 1 << 40

  let format: DumpFormat
  let notes: [Note]
  let vmcoreinfo: [UInt8]?
  let dumpLevel: DumpLevel?
  let isIncomplete: Bool
  let hasErasures: Bool

  /// Frames of RAM. Diskdump files can have one bitmap only, which then is both.
  private let ram: Bitmap
  /// Frames whose pages are stored.
  private let stored: Bitmap
  /// Offset of the page descriptors.
  private let descriptors: UInt64
  private let fileSize: UInt64

  /// `start` is the first block of the file.
  init(_ file: InputFile, start: [UInt8], isDiskdump: Bool) throws(DumpFileError) {
    typealias Header = KdumpLayout.Header
    guard start.count >= Header.size,
      let version: Int32 = start.load(at: Header.version),
      let status: UInt32 = start.load(at: Header.status),
      let blockSize: UInt32 = start.load(at: Header.blockSize),
      let subHeaderBlocks: Int32 = start.load(at: Header.subHeaderSize),
      let bitmapBlocks: UInt32 = start.load(at: Header.bitmapBlocks),
      let shortFrameLimit: UInt32 = start.load(at: Header.frameLimit)
    else {
      throw .truncated(
        file.path, part: .header, offset: 0, length: UInt64(Header.size), fileSize: file.size)
    }
    func bad(
      _ field: DumpFileError.HeaderField, at offset: Int, _ value: UInt64
    ) -> DumpFileError {
      .badHeader(file.path, field: field, offset: UInt64(offset), value: value)
    }
    // The layout below is that of 64-bit machines, so the machine comes first. QEMU leaves the
    // names out.
    let machine = String(
      decoding: start[Header.machine..<Header.machine + Header.nameSize].prefix { $0 != 0 },
      as: UTF8.self)
    guard machine.isEmpty || machine == "x86_64" else {
      throw .otherMachine(file.path, machine: machine, offset: UInt64(Header.machine))
    }
    guard (0...KdumpLayout.newestVersion).contains(version) else {
      throw .unknownVersion(file.path, version: version)
    }
    guard blockSize == UInt32(KdumpLayout.blockSize) else {
      throw bad(.blockSize, at: Header.blockSize, UInt64(blockSize))
    }
    // A kdump file needs a block for its sub-header; diskdump may go without.
    guard subHeaderBlocks >= (isDiskdump ? 0 : 1) else {
      throw bad(
        .subHeaderSize, at: Header.subHeaderSize, UInt64(UInt32(bitPattern: subHeaderBlocks)))
    }
    let block = UInt64(KdumpLayout.blockSize)
    let bitmapOffset = block * (1 + UInt64(subHeaderBlocks))
    let bitmapSize = block * UInt64(bitmapBlocks)

    format = isDiskdump ? .diskdump(version: Int(version)) : .kdump(version: Int(version))
    let sub =
      isDiskdump ? SubHeader() : try SubHeader(file, version: version, shortLimit: shortFrameLimit)
    if let frames = sub.splitFrames { throw .splitPart(file.path, frames: frames) }

    let frameLimit = sub.frameLimit ?? UInt64(shortFrameLimit)
    guard frameLimit > 0, frameLimit <= Self.frameLimit else {
      let offset =
        sub.frameLimit == nil
        ? Header.frameLimit : KdumpLayout.blockSize + KdumpLayout.SubHeader.frameLimit64
      throw bad(.frameLimit, at: offset, frameLimit)
    }
    let needed = (frameLimit + 7) / 8
    guard bitmapSize >= needed else {
      throw bad(.bitmapBlocks, at: Header.bitmapBlocks, UInt64(bitmapBlocks))
    }
    guard bitmapOffset <= file.size, bitmapSize <= file.size - bitmapOffset else {
      throw .truncated(
        file.path, part: .bitmaps, offset: bitmapOffset, length: bitmapSize, fileSize: file.size)
    }
    if !isDiskdump {
      let unknown = status & ~KdumpLayout.Flags.known
      guard unknown == 0 else { throw .unknownCompression(file.path, flags: unknown) }
    }

    ram = try Bitmap(file, at: bitmapOffset, limit: frameLimit)
    // With room for two bitmaps the second says what is stored; else all RAM is.
    stored =
      UInt64(bitmapBlocks) >= 2 * ((needed + block - 1) / block)
      ? try Bitmap(file, at: bitmapOffset + bitmapSize / 2, limit: frameLimit) : ram
    descriptors = bitmapOffset + bitmapSize
    fileSize = file.size

    var noteReader = NoteReader(file)
    try noteReader.read(at: sub.notes.offset, size: sub.notes.size)
    notes = noteReader.notes
    vmcoreinfo = try sub.vmcoreinfo(file) ?? notes.vmcoreinfo
    dumpLevel = sub.dumpLevel
    hasErasures = sub.eraseInfoSize > 0
    let mark = isDiskdump ? KdumpLayout.diskdumpIncomplete : KdumpLayout.Flags.incomplete
    let isCut = try Self.isCut(file, descriptors: descriptors, count: stored.count)
    isIncomplete = isCut || status & mark != 0
  }

  /// Whether the file ends before the data of the last pages: all data is in the order of the
  /// descriptors, but for the one block that all zero pages share.
  private static func isCut(
    _ file: InputFile, descriptors: UInt64, count: UInt64
  ) throws(DumpFileError) -> Bool {
    let size = UInt64(KdumpLayout.Descriptor.size)
    let looked = min(count, 1024)
    let bytes = try file.bytes(
      at: descriptors + (count - looked) * size, count: Int(looked * size))
    guard UInt64(bytes.count) == looked * size else { return true }
    return stride(from: 0, to: bytes.count, by: KdumpLayout.Descriptor.size).contains { start in
      PageDescriptor(bytes, at: start)?.storage(fileSize: file.size) == .absent(.truncated)
    }
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
      let run = setRun(from: frame, to: end) { stored.word($0) }
      let readable = readableDescriptors
      guard readable < stored.count else { return (nil, run) }
      let rank = stored.rank(of: frame)
      return rank < readable ? (nil, min(run, readable - rank)) : (.truncated, run)
    }
    if ram[frame] {
      return (.excluded, setRun(from: frame, to: end) { ram.word($0) & ~stored.word($0) })
    }
    let run = setRun(from: frame, to: end) { ~(ram.word($0) | stored.word($0)) }
    return (.notInDump, frame + run == stored.limit ? limit : run)
  }

  /// How many descriptors lie in the file.
  private var readableDescriptors: UInt64 {
    fileSize < descriptors
      ? 0 : min(stored.count, (fileSize - descriptors) / UInt64(KdumpLayout.Descriptor.size))
  }

  /// Why the frame's bytes are not stored; nil if they are.
  @inline(__always)
  func absence(of frame: UInt64) -> Absence? {
    stored[frame] ? nil : ram[frame] ? .excluded : .notInDump
  }

  /// Offset of the descriptor of `frame`, or of the next frame stored.
  func descriptorOffset(of frame: UInt64) -> UInt64 {
    descriptors + stored.rank(of: frame) * UInt64(KdumpLayout.Descriptor.size)
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

/// What the sub-header says, as far as its version goes.
private struct SubHeader {
  var dumpLevel: DumpLevel?
  var splitFrames: Range<PageFrameNumber>?
  var vmcoreinfo: (offset: UInt64, size: UInt64) = (0, 0)
  var notes: (offset: UInt64, size: UInt64) = (0, 0)
  var eraseInfoSize: UInt64 = 0
  /// max_mapnr_64.
  var frameLimit: UInt64?

  /// Of a diskdump file, whose sub-header has registers only.
  init() {}

  init(_ file: InputFile, version: Int32, shortLimit: UInt32) throws(DumpFileError) {
    typealias Member = KdumpLayout.SubHeader
    let offset = UInt64(KdumpLayout.blockSize)
    let bytes = try file.bytes(at: offset, count: Member.size)
    guard let level: Int32 = bytes.load(at: Member.dumpLevel),
      let split: Int32 = bytes.load(at: Member.split),
      let splitStart: UInt64 = bytes.load(at: Member.splitStart),
      let splitEnd: UInt64 = bytes.load(at: Member.splitEnd),
      let vmcoreinfoOffset: UInt64 = bytes.load(at: Member.vmcoreinfoOffset),
      let vmcoreinfoSize: UInt64 = bytes.load(at: Member.vmcoreinfoSize),
      let noteOffset: UInt64 = bytes.load(at: Member.noteOffset),
      let noteSize: UInt64 = bytes.load(at: Member.noteSize),
      let eraseInfoSize: UInt64 = bytes.load(at: Member.eraseInfoSize),
      let splitStart64: UInt64 = bytes.load(at: Member.splitStart64),
      let splitEnd64: UInt64 = bytes.load(at: Member.splitEnd64),
      let frameLimit64: UInt64 = bytes.load(at: Member.frameLimit64)
    else {
      throw .truncated(
        file.path, part: .subHeader, offset: offset, length: UInt64(Member.size),
        fileSize: file.size)
    }
    if version >= 1 { dumpLevel = DumpLevel(rawValue: level) }
    if version >= 2, split != 0 {
      let start = version >= 6 ? splitStart64 : splitStart
      let end = version >= 6 ? splitEnd64 : splitEnd
      splitFrames = PageFrameNumber(start)..<PageFrameNumber(max(start, end))
    }
    if version >= 3 { vmcoreinfo = (vmcoreinfoOffset, vmcoreinfoSize) }
    if version >= 4 { notes = (noteOffset, noteSize) }
    if version >= 5 { self.eraseInfoSize = eraseInfoSize }
    if version >= 6 { frameLimit = frameLimit64 == 0 ? UInt64(shortLimit) : frameLimit64 }
  }

  /// The text that offset_vmcoreinfo names; nil where it names none, or none that lies in the file.
  func vmcoreinfo(_ file: InputFile) throws(DumpFileError) -> [UInt8]? {
    guard vmcoreinfo.offset > 0, vmcoreinfo.size > 0,
      vmcoreinfo.size <= NoteReader.descriptionLimit
    else { return nil }
    let text = try file.bytes(at: vmcoreinfo.offset, count: Int(vmcoreinfo.size))
    return UInt64(text.count) == vmcoreinfo.size ? text.withoutTrailingZeros : nil
  }
}
