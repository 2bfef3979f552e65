import Glibc
import Memory
import SystemPackage

/// The names that a machine gives itself: uname(2).
public struct SystemName: Hashable, Sendable {
  public var system: String
  public var node: String
  public var release: String
  public var version: String
  public var machine: String
  public var domain: String

  public init(
    system: String = "Linux", node: String = "", release: String, version: String = "",
    machine: String = "x86_64", domain: String = "(none)"
  ) {
    self.system = system
    self.node = node
    self.release = release
    self.version = version
    self.machine = machine
    self.domain = domain
  }
}

/// Writes a kdump-compressed file: header version 6, each page compressed for itself or, where that
/// makes it no smaller, as it is, and one block of data for all pages of zeros.
///
/// The pages come in ascending order. Memory taken does not depend on how many they are: bitmaps,
/// descriptors and data are all written as they grow, each at its place, in a file that can seek;
/// to a pipe they go in the flattened form, as records with their places. Headers and notes are
/// written last: they may tell what became of the pages.
public struct KdumpWriter: ~Copyable {
  private let ram: [Range<PageFrameNumber>]
  private let capacity: UInt64
  private var count: UInt64 = 0
  private var nextFrame: UInt64 = 0
  private let header: KdumpHeader
  private let output: PositionedOutput
  private let encoder: KdumpPageEncoder
  private var storedBits: BitmapStream
  private var descriptors: PieceStream
  private var data: PieceStream
  private let dataStart: UInt64
  private var zeroPage: PageDescriptor?
  private var room = [UInt8](repeating: 0, count: KdumpLayout.blockSize)

  /// Starts a file.
  ///
  /// - Parameters:
  ///   - descriptor: An empty file, open for writing, or where a flattened one goes. It stays open.
  ///   - path: Its name, for messages.
  ///   - isFlattened: Write the flattened form, from its start to its end.
  ///   - compression: Of the pages that are appended as they are, and the one that most are said to
  ///     have.
  ///   - vmcoreinfo: The text of VMCOREINFO. Its note is added to `notes` if they lack it.
  ///   - ram: The frames of RAM, ascending: pages that are not appended count as left out.
  ///   - capacity: The most pages that will be appended: their descriptors come before the data.
  public init(
    _ descriptor: FileDescriptor, path: FilePath, isFlattened: Bool = false,
    compression: KdumpCompression = .zlib, system: SystemName, vmcoreinfo: [UInt8]?,
    notes: [Note], dumpLevel: DumpLevel, ram: [Range<PageFrameNumber>], capacity: UInt64
  ) throws(KdumpWriterError) {
    let frameLimit = ram.last?.upperBound.rawValue ?? 0
    var end: UInt64 = 0
    for range in ram {
      guard range.lowerBound.rawValue >= end, !range.isEmpty else {
        throw .notAscending(path, range.lowerBound)
      }
      end = range.upperBound.rawValue
    }
    guard frameLimit > 0, frameLimit <= KdumpDump.frameLimit else {
      throw .badFrameLimit(path, frameLimit)
    }
    let capacity = min(capacity, frameLimit)
    let block = UInt64(KdumpLayout.blockSize)
    let header = KdumpHeader(
      system: system, compression: compression, notes: notes, vmcoreinfo: vmcoreinfo,
      dumpLevel: dumpLevel, frameLimit: frameLimit)
    let ramBitmapOffset = UInt64(header.blocks) * block
    let descriptorOffset = ramBitmapOffset + 2 * header.bitmapSize
    let dataStart = roundUp(
      descriptorOffset + capacity * UInt64(KdumpLayout.Descriptor.size), to: block)

    let output = PositionedOutput(descriptor: descriptor, path: path, isFlattened: isFlattened)
    try output.start(size: dataStart)
    var ramBits = BitmapStream(at: ramBitmapOffset)
    for range in ram {
      try ramBits.set(range.lowerBound.rawValue..<range.upperBound.rawValue, output)
    }
    try ramBits.finish(size: header.bitmapSize, output)

    self.ram = ram
    self.capacity = capacity
    self.header = header
    self.output = output
    self.dataStart = dataStart
    encoder = KdumpPageEncoder(compression)
    data = PieceStream(at: dataStart)
    storedBits = BitmapStream(at: ramBitmapOffset + header.bitmapSize)
    descriptors = PieceStream(at: descriptorOffset)
  }

  /// Appends the page of a frame of RAM, behind all appended before.
  public mutating func append(
    _ frame: PageFrameNumber, _ page: [UInt8]
  ) throws(KdumpWriterError) {
    guard page.count == Int(pageSize) else {
      throw .notAPage(output.path, frame, byteCount: page.count)
    }
    if page.isZero { return try appendZeros(frame) }
    let (size, flags) = unsafe page.withUnsafeBytes { page in
      unsafe room.withUnsafeMutableBytes { unsafe encoder.encode(page, into: $0) }
    }
    try append(frame, Array(room[..<size]), flags: flags)
  }

  /// Appends a page in the form that a ``KdumpPageEncoder`` gave it.
  public mutating func append(
    _ frame: PageFrameNumber, stored: UnsafeRawBufferPointer, flags: UInt32
  ) throws(KdumpWriterError) {
    guard (1...KdumpLayout.blockSize).contains(stored.count) else {
      throw .notAPage(output.path, frame, byteCount: stored.count)
    }
    try add(
      frame,
      PageDescriptor(offset: data.position, size: UInt32(stored.count), flags: flags))
    unsafe data.append(stored)
    try data.flushIfLarge(output)
  }

  /// Appends a page of zeros.
  public mutating func appendZeros(_ frame: PageFrameNumber) throws(KdumpWriterError) {
    if let zeroPage { return try add(frame, zeroPage) }
    for index in room.indices { room[index] = 0 }
    let zeros = room
    let (size, flags) = unsafe zeros.withUnsafeBytes { page in
      unsafe room.withUnsafeMutableBytes { unsafe encoder.encode(page, into: $0) }
    }
    let descriptor = PageDescriptor(offset: data.position, size: UInt32(size), flags: flags)
    try append(frame, Array(room[..<size]), flags: flags)
    zeroPage = descriptor
  }

  private mutating func append(
    _ frame: PageFrameNumber, _ stored: [UInt8], flags: UInt32
  ) throws(KdumpWriterError) {
    try add(
      frame, PageDescriptor(offset: data.position, size: UInt32(stored.count), flags: flags))
    unsafe stored.withUnsafeBytes { unsafe data.append($0) }
    try data.flushIfLarge(output)
  }

  private mutating func add(
    _ frame: PageFrameNumber, _ descriptor: PageDescriptor
  ) throws(KdumpWriterError) {
    guard frame.rawValue >= nextFrame else { throw .notAscending(output.path, frame) }
    guard isRAM(frame) else { throw .notRAM(output.path, frame) }
    guard count < capacity else { throw .tooManyPages(output.path, capacity: capacity) }
    count += 1
    nextFrame = frame.rawValue + 1
    try storedBits.set(frame.rawValue..<frame.rawValue + 1, output)
    descriptors.append(descriptor)
    try descriptors.flushIfLarge(output)
  }

  /// Writes what is still held, and the headers. The file is not synced.
  ///
  /// - Parameter notes: makes those to be written instead of those given at the start; they must take
  ///   as many blocks. It is given the part of the file that lies behind them, which is written.
  /// - Returns: The size of the file; of a flattened one, of the file that it stands for.
  @discardableResult
  public consuming func finish(
    notes: (Range<UInt64>) -> [Note]? = { _ in nil }
  ) throws(KdumpWriterError) -> UInt64 {
    try storedBits.finish(size: header.bitmapSize, output)
    try descriptors.flush(output)
    try output.writeZeros(descriptors.position..<dataStart)
    try data.flush(output)
    // Nothing of a flattened file tells its size but its records.
    if data.position == dataStart { try output.write([0], at: dataStart) }
    let contents =
      UInt64(header.blocks * KdumpLayout.blockSize)..<max(data.position, dataStart + 1)
    let final = notes(contents).map { header.with(notes: $0) } ?? header
    guard final.blocks == header.blocks else { throw .notesOutgrew(output.path) }
    try output.write(final.bytes, at: 0)
    try output.finish()
    return data.position
  }

  private func isRAM(_ frame: PageFrameNumber) -> Bool {
    let index = ram.partitioningIndex { $0.upperBound > frame }
    return index < ram.count && ram[index].contains(frame)
  }
}

/// A kdump-compressed file could not be written.
public enum KdumpWriterError: Error, Hashable, Sendable {
  /// Writing failed at `offset`: full disk, quota, I/O error.
  case writeFailed(FilePath, offset: UInt64, Errno)
  /// A frame or range of frames is not behind the one before it.
  case notAscending(FilePath, PageFrameNumber)
  /// A frame outside the ranges of RAM.
  case notRAM(FilePath, PageFrameNumber)
  /// A page that has not 4096 bytes.
  case notAPage(FilePath, PageFrameNumber, byteCount: Int)
  /// More pages than were announced.
  case tooManyPages(FilePath, capacity: UInt64)
  /// The last notes take more room than the first.
  case notesOutgrew(FilePath)
  /// No RAM at all, or RAM beyond 52 bits of address: the frame behind the last.
  case badFrameLimit(FilePath, UInt64)
}

extension KdumpWriterError: Diagnosis {
  public var name: String {
    switch self {
    case .writeFailed(_, _, .noSpace): "output.no-space"
    case .writeFailed: "output.write-failed"
    case .notAscending, .notRAM, .notAPage, .tooManyPages, .notesOutgrew, .badFrameLimit:
      "output.bad-page"
    }
  }

  public var problem: String {
    switch self {
    case .writeFailed(let path, let offset, let error):
      "\(path): writing at offset \(hexadecimal(offset)) failed: \(error)"
    case .notAscending(let path, let frame):
      "\(path): page frame \(frame) comes after a higher one"
    case .notRAM(let path, let frame):
      "\(path): page frame \(frame) is outside the memory of the dump"
    case .notAPage(let path, let frame, let byteCount):
      "\(path): page frame \(frame) comes with \(byteCount) bytes"
    case .tooManyPages(let path, let capacity):
      "\(path): more than the \(capacity) pages that were announced"
    case .notesOutgrew(let path):
      "\(path): the notes have outgrown their room"
    case .badFrameLimit(let path, let frameLimit):
      "\(path): \(frameLimit) page frames make no dump"
    }
  }

  public var advice: String? {
    switch self {
    case .writeFailed(_, _, .noSpace): "free some space, or write to another disk"
    case .writeFailed: nil
    case .notAscending, .notRAM, .notAPage, .tooManyPages, .notesOutgrew, .badFrameLimit:
      "this is a fault of the program: please report it"
    }
  }
}

/// The header, the sub-header and the notes behind it.
private struct KdumpHeader {
  let bytes: [UInt8]
  /// Blocks that they take.
  let blocks: Int
  private let bitmapBlocks: Int
  /// Bytes of each of the two bitmaps.
  var bitmapSize: UInt64 { UInt64(bitmapBlocks / 2) * UInt64(KdumpLayout.blockSize) }
  private let system: SystemName
  private let compression: KdumpCompression
  private let vmcoreinfo: [UInt8]?
  private let dumpLevel: DumpLevel
  private let frameLimit: UInt64

  /// The same of other notes.
  func with(notes: [Note]) -> KdumpHeader {
    KdumpHeader(
      system: system, compression: compression, notes: notes, vmcoreinfo: vmcoreinfo,
      dumpLevel: dumpLevel, frameLimit: frameLimit)
  }

  init(
    system: SystemName, compression: KdumpCompression, notes: [Note], vmcoreinfo text: [UInt8]?,
    dumpLevel: DumpLevel, frameLimit: UInt64
  ) {
    typealias Header = KdumpLayout.Header
    typealias SubHeader = KdumpLayout.SubHeader
    self.system = system
    self.compression = compression
    self.dumpLevel = dumpLevel
    self.frameLimit = frameLimit
    vmcoreinfo = text
    var notes = notes
    if let text, notes.vmcoreinfo == nil {
      notes.append(Note(name: "VMCOREINFO", type: 0, description: text))
    }
    let block = KdumpLayout.blockSize
    let noteOffset = block + SubHeader.size
    var encoded: [UInt8] = []
    var vmcoreinfo: (offset: Int, size: Int)?
    for note in notes {
      encoded += note.encoded
      if note.name == "VMCOREINFO" {
        let padded = (note.description.count + 3) & ~3
        vmcoreinfo = (noteOffset + encoded.count - padded, note.description.count)
      }
    }
    let subBlocks = (SubHeader.size + encoded.count + block - 1) / block
    let bitBlocks = Int((frameLimit + UInt64(block) * 8 - 1) / (UInt64(block) * 8))
    blocks = 1 + subBlocks
    bitmapBlocks = 2 * bitBlocks

    var bytes = [UInt8](repeating: 0, count: blocks * block)
    bytes.store(KdumpLayout.signature, at: 0)
    bytes.store(littleEndian: KdumpLayout.newestVersion, at: Header.version)
    let names = [
      system.system, system.node, system.release, system.version, system.machine, system.domain,
    ]
    for (index, name) in names.enumerated() {
      // libkdumpfile takes the machine's type from here, and only if no name is empty.
      bytes.store(
        Array((name.isEmpty ? "(unknown)" : name).utf8.prefix(Header.nameSize - 1)),
        at: Header.systemName + index * Header.nameSize)
    }
    let cpuCount = notes.count { $0.name == "CORE" && $0.type == ELFLayout.processStatus }
    bytes.store(littleEndian: compression.flag, at: Header.status)
    bytes.store(littleEndian: UInt32(block), at: Header.blockSize)
    bytes.store(littleEndian: Int32(clamping: subBlocks), at: Header.subHeaderSize)
    bytes.store(littleEndian: UInt32(clamping: bitmapBlocks), at: Header.bitmapBlocks)
    bytes.store(littleEndian: UInt32(clamping: frameLimit), at: Header.frameLimit)
    bytes.store(littleEndian: Int32(clamping: max(1, cpuCount)), at: Header.cpuCount)

    bytes.store(
      littleEndian: Self.physicalBase(notes.vmcoreinfo), at: block + SubHeader.physicalBase)
    bytes.store(littleEndian: dumpLevel.rawValue, at: block + SubHeader.dumpLevel)
    if let vmcoreinfo {
      bytes.store(
        littleEndian: UInt64(vmcoreinfo.offset), at: block + SubHeader.vmcoreinfoOffset)
      bytes.store(littleEndian: UInt64(vmcoreinfo.size), at: block + SubHeader.vmcoreinfoSize)
    }
    if !encoded.isEmpty {
      bytes.store(littleEndian: UInt64(noteOffset), at: block + SubHeader.noteOffset)
      bytes.store(littleEndian: UInt64(encoded.count), at: block + SubHeader.noteSize)
      bytes.store(encoded, at: noteOffset)
    }
    bytes.store(littleEndian: frameLimit, at: block + SubHeader.frameLimit64)
    self.bytes = bytes
  }

  /// crash takes phys_base from the sub-header. VMCOREINFO has it in decimal; it can be negative.
  private static func physicalBase(_ vmcoreinfo: [UInt8]?) -> Int64 {
    let key = Array("NUMBER(phys_base)=".utf8)
    for line in (vmcoreinfo ?? []).split(separator: 0x0a) where line.starts(with: key) {
      return Int64(String(decoding: line.dropFirst(key.count), as: UTF8.self)) ?? 0
    }
    return 0
  }
}

extension [UInt8] {
  /// Overwrites bytes that must lie within the array.
  fileprivate mutating func store(_ bytes: [UInt8], at offset: Int) {
    replaceSubrange(offset..<offset + bytes.count, with: bytes)
  }

  fileprivate mutating func store<Integer: FixedWidthInteger>(
    littleEndian value: Integer, at offset: Int
  ) {
    var bytes: [UInt8] = []
    bytes.append(littleEndian: value)
    store(bytes, at: offset)
  }
}

extension PageDescriptor {
  fileprivate init(offset: UInt64, size: UInt32, flags: UInt32) {
    self.offset = offset
    self.size = size
    self.flags = flags
  }

  /// As it stands in the file. The last member, page_flags, is zero in every known file.
  fileprivate func append(to bytes: inout [UInt8]) {
    bytes.append(littleEndian: offset)
    bytes.append(littleEndian: size)
    bytes.append(littleEndian: flags)
    bytes.append(littleEndian: UInt64(0))
  }
}

/// Writes at given offsets: of a file, or as records of a flattened one, of which no byte may be
/// left out and none comes twice.
private struct PositionedOutput {
  let descriptor: FileDescriptor
  let path: FilePath
  let isFlattened: Bool

  private static let zeros = [UInt8](repeating: 0, count: 64 << 10)

  /// - Parameter size: of everything in front of the data.
  func start(size: UInt64) throws(KdumpWriterError) {
    if isFlattened {
      try append(FlattenedFile.header, at: 0)
      return
    }
    while ftruncate(descriptor.rawValue, off_t(clamping: size)) != 0 {
      guard errno == EINTR else {
        throw .writeFailed(path, offset: size, Errno(rawValue: errno))
      }
    }
  }

  func write(_ bytes: [UInt8], at offset: UInt64) throws(KdumpWriterError) {
    guard isFlattened else {
      let error = unsafe bytes.withUnsafeBytes {
        unsafe writeAll($0, to: descriptor.rawValue, at: offset)
      }
      if let error { throw .writeFailed(path, offset: offset, Errno(rawValue: error)) }
      return
    }
    if bytes.isEmpty { return }
    try append(FlattenedFile.recordHeader(at: offset, size: bytes.count), at: offset)
    try append(bytes, at: offset)
  }

  /// Zeros, which a file has where nothing was written.
  func writeZeros(_ range: Range<UInt64>) throws(KdumpWriterError) {
    guard isFlattened else { return }
    var offset = range.lowerBound
    while offset < range.upperBound {
      let count = min(UInt64(Self.zeros.count), range.upperBound - offset)
      try write(Array(Self.zeros[..<Int(count)]), at: offset)
      offset += count
    }
  }

  func finish() throws(KdumpWriterError) {
    if isFlattened { try append(FlattenedFile.end, at: 0) }
  }

  /// - Parameter offset: for messages.
  private func append(_ bytes: [UInt8], at offset: UInt64) throws(KdumpWriterError) {
    let error = unsafe bytes.withUnsafeBytes { unsafe writeAll($0, to: descriptor.rawValue) }
    if let error { throw .writeFailed(path, offset: offset, Errno(rawValue: error)) }
  }
}

/// Bytes that follow each other in the file, written in large pieces.
private struct PieceStream {
  private static let pieceSize = 256 << 10

  private var start: UInt64
  private var held: [UInt8] = []

  init(at offset: UInt64) {
    start = offset
    held.reserveCapacity(Self.pieceSize + KdumpLayout.blockSize)
  }

  /// Where the next byte goes.
  var position: UInt64 { start + UInt64(held.count) }

  mutating func append(_ bytes: UnsafeRawBufferPointer) {
    unsafe held.append(contentsOf: bytes)
  }

  mutating func append(_ descriptor: PageDescriptor) { descriptor.append(to: &held) }

  mutating func flushIfLarge(_ output: PositionedOutput) throws(KdumpWriterError) {
    if held.count >= Self.pieceSize { try flush(output) }
  }

  mutating func flush(_ output: PositionedOutput) throws(KdumpWriterError) {
    try output.write(held, at: start)
    start = position
    held.removeAll(keepingCapacity: true)
  }
}

/// A bitmap that is set in ascending order; in a file, stretches of clear bits become holes.
private struct BitmapStream {
  private static let pieceSize = 64 << 10
  private static let bitsPerPiece = UInt64(pieceSize) * 8

  private let start: UInt64
  private var index: UInt64 = 0
  private var bits = [UInt8](repeating: 0, count: pieceSize)

  init(at offset: UInt64) {
    start = offset
  }

  mutating func set(
    _ range: Range<UInt64>, _ output: PositionedOutput
  ) throws(KdumpWriterError) {
    var bit = range.lowerBound
    while bit < range.upperBound {
      if bit / Self.bitsPerPiece != index {
        try moveOn(to: bit / Self.bitsPerPiece * UInt64(Self.pieceSize), output)
        index = bit / Self.bitsPerPiece
      }
      let inPiece = Int(bit % Self.bitsPerPiece)
      if inPiece % 8 == 0, range.upperBound - bit >= 8 {
        bits[inPiece / 8] = 0xff
        bit += 8
      } else {
        bits[inPiece / 8] |= 1 << UInt8(inPiece % 8)
        bit += 1
      }
    }
  }

  /// - Parameter size: of the bitmap in bytes.
  mutating func finish(size: UInt64, _ output: PositionedOutput) throws(KdumpWriterError) {
    try moveOn(to: size, output)
  }

  /// Writes the current piece, and that the bits from there up to byte `end` are clear.
  private mutating func moveOn(
    to end: UInt64, _ output: PositionedOutput
  ) throws(KdumpWriterError) {
    let piece = start + index * UInt64(Self.pieceSize)
    let count = (bits.lastIndex { $0 != 0 } ?? -1) + 1
    try output.write(Array(bits[..<count]), at: piece)
    try output.writeZeros(piece + UInt64(count)..<start + end)
    for byte in 0..<count { bits[byte] = 0 }
  }
}
