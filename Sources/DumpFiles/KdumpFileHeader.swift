import Memory

/// What the headers of a kdump-compressed (or diskdump) file say.
struct KdumpFileHeader: Sendable {
  let file: InputFile
  let isDiskdump: Bool
  let version: Int32
  /// struct new_utsname and the time of the dump, as they stand there.
  let identity: [UInt8]
  let sub: KdumpSubHeader
  let notes: [Note]
  let vmcoreinfo: [UInt8]?
  let isMarkedIncomplete: Bool
  /// max_mapnr: frames from here on have no bit in the bitmaps.
  let frameLimit: UInt64
  /// Of RAM.
  let bitmapOffset: UInt64
  /// Of the pages stored; nil if there is one bitmap for both.
  let storedBitmapOffset: UInt64?
  /// Offset of the page descriptors.
  let descriptors: UInt64
  /// The file is a part of a set.
  let isSplit: Bool
  /// Frames whose pages the file has, if they are stored.
  let frames: Range<UInt64>

  /// `start` is the first block of the file.
  init(_ file: InputFile, start: [UInt8]) throws(DumpFileError) {
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
    isDiskdump = !start.starts(with: KdumpLayout.signature)
    // A kdump file needs a block for its sub-header; diskdump may go without.
    guard subHeaderBlocks >= (isDiskdump ? 0 : 1) else {
      throw bad(
        .subHeaderSize, at: Header.subHeaderSize, UInt64(UInt32(bitPattern: subHeaderBlocks)))
    }
    let block = UInt64(KdumpLayout.blockSize)
    let bitmapSize = block * UInt64(bitmapBlocks)
    bitmapOffset = block * (1 + UInt64(subHeaderBlocks))
    sub =
      isDiskdump
      ? KdumpSubHeader()
      : try KdumpSubHeader(file, version: version, shortLimit: shortFrameLimit)

    frameLimit = sub.frameLimit ?? UInt64(shortFrameLimit)
    guard frameLimit > 0, frameLimit <= KdumpDump.frameLimit else {
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
    // With room for two bitmaps the second says what is stored; else all RAM is.
    storedBitmapOffset =
      UInt64(bitmapBlocks) >= 2 * ((needed + block - 1) / block)
      ? bitmapOffset + bitmapSize / 2 : nil
    descriptors = bitmapOffset + bitmapSize
    let mark = isDiskdump ? KdumpLayout.diskdumpIncomplete : KdumpLayout.Flags.incomplete
    isMarkedIncomplete = status & mark != 0

    var noteReader = NoteReader(file)
    try noteReader.read(at: sub.notes.offset, size: sub.notes.size)
    notes = noteReader.notes
    vmcoreinfo = try sub.vmcoreinfo(file) ?? notes.vmcoreinfo
    isSplit = sub.splitFrames != nil
    frames = (sub.splitFrames ?? 0..<frameLimit).clamped(to: 0..<frameLimit)
    identity = Array(start[Header.systemName..<Header.status])
    self.file = file
    self.version = version
  }

  /// What shows that two files are no parts of the same dump; nil if nothing does.
  func difference(from other: KdumpFileHeader) -> String? {
    if identity != other.identity || version != other.version { return "header" }
    if frameLimit != other.frameLimit || descriptors != other.descriptors
      || bitmapOffset != other.bitmapOffset
    {
      return "size"
    }
    if sub.dumpLevel != other.sub.dumpLevel { return "dump level" }
    // The processors' registers are in the notes.
    return notes != other.notes || vmcoreinfo != other.vmcoreinfo ? "notes" : nil
  }
}

/// What the sub-header says, as far as its version goes.
struct KdumpSubHeader {
  var dumpLevel: DumpLevel?
  var splitFrames: Range<UInt64>?
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
      splitFrames = start..<max(start, end)
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
