import CShim
import CZlib
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

/// Writes a kdump-compressed file: header version 6, pages compressed with zlib, and one block of
/// data for all pages of zeros.
///
/// The pages come in ascending order. Memory taken does not depend on how many they are: bitmaps,
/// descriptors and data are all written as they grow, each at its place, so the file must be one
/// that can seek.
public struct KdumpWriter: ~Copyable {
  private let ram: [Range<PageFrameNumber>]
  private let capacity: UInt64
  private var count: UInt64 = 0
  private var nextFrame: UInt64 = 0
  private let output: PositionedOutput
  private let deflater: Deflater
  private var storedBits: BitmapStream
  private var descriptors: OutputStream
  private var data: OutputStream
  private var zeroPage: PageDescriptor?

  /// Starts a file.
  ///
  /// - Parameters:
  ///   - descriptor: An empty file, open for writing. It stays open.
  ///   - path: Its name, for messages.
  ///   - vmcoreinfo: The text of VMCOREINFO. Its note is added to `notes` if they lack it.
  ///   - ram: The frames of RAM, ascending: pages that are not appended count as left out.
  ///   - capacity: The most pages that will be appended: their descriptors come before the data.
  public init(
    _ descriptor: FileDescriptor, path: FilePath, system: SystemName, vmcoreinfo: [UInt8]?,
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
    var notes = notes
    if let vmcoreinfo, notes.vmcoreinfo == nil {
      notes.append(Note(name: "VMCOREINFO", type: 0, description: vmcoreinfo))
    }
    let header = KdumpHeader(
      system: system, notes: notes, dumpLevel: dumpLevel, frameLimit: frameLimit)
    let bitmapSize = UInt64(header.bitmapBlocks / 2) * block
    let ramBitmapOffset = UInt64(header.blocks) * block
    let descriptorOffset = ramBitmapOffset + 2 * bitmapSize

    guard let deflater = Deflater() else { throw .outOfMemory(path) }
    let output = PositionedOutput(descriptor: descriptor, path: path)
    let data = OutputStream(
      at: roundUp(descriptorOffset + capacity * UInt64(KdumpLayout.Descriptor.size), to: block))
    try output.write(header.bytes, at: 0)
    try output.setSize(data.position)
    var ramBits = BitmapStream(at: ramBitmapOffset)
    for range in ram {
      try ramBits.set(range.lowerBound.rawValue..<range.upperBound.rawValue, output)
    }
    try ramBits.flush(output)

    self.ram = ram
    self.capacity = capacity
    self.output = output
    self.deflater = deflater
    self.data = data
    storedBits = BitmapStream(at: ramBitmapOffset + bitmapSize)
    descriptors = OutputStream(at: descriptorOffset)
  }

  /// Appends the page of a frame of RAM, behind all appended before.
  public mutating func append(
    _ frame: PageFrameNumber, _ page: [UInt8]
  ) throws(KdumpWriterError) {
    guard page.count == Int(pageSize) else {
      throw .notAPage(output.path, frame, byteCount: page.count)
    }
    guard frame.rawValue >= nextFrame else { throw .notAscending(output.path, frame) }
    guard isRAM(frame) else { throw .notRAM(output.path, frame) }
    guard count < capacity else { throw .tooManyPages(output.path, capacity: capacity) }
    count += 1
    nextFrame = frame.rawValue + 1
    try storedBits.set(frame.rawValue..<frame.rawValue + 1, output)

    let isZero = page.isZero
    let descriptor: PageDescriptor
    if isZero, let zeroPage {
      descriptor = zeroPage
    } else {
      let compressed = deflater.compress(page)
      let stored = compressed ?? page
      descriptor = PageDescriptor(
        offset: data.position, size: UInt32(stored.count),
        flags: compressed == nil ? 0 : KdumpLayout.Flags.zlib)
      try data.append(stored, output)
      if isZero { zeroPage = descriptor }
    }
    try descriptors.append(descriptor.bytes, output)
  }

  /// Writes what is still held. The file is not synced.
  public consuming func finish() throws(KdumpWriterError) {
    try storedBits.flush(output)
    try descriptors.flush(output)
    try data.flush(output)
  }

  private func isRAM(_ frame: PageFrameNumber) -> Bool {
    var low = 0
    var high = ram.count
    while low < high {
      let middle = low + (high - low) / 2
      if ram[middle].upperBound <= frame { low = middle + 1 } else { high = middle }
    }
    return low < ram.count && ram[low].contains(frame)
  }
}

/// A kdump-compressed file could not be written.
public enum KdumpWriterError: Error, Hashable, Sendable {
  /// Writing failed at `offset`: full disk, quota, I/O error.
  case writeFailed(FilePath, offset: UInt64, Errno)
  /// zlib has no memory.
  case outOfMemory(FilePath)
  /// A frame or range of frames is not behind the one before it.
  case notAscending(FilePath, PageFrameNumber)
  /// A frame outside the ranges of RAM.
  case notRAM(FilePath, PageFrameNumber)
  /// A page that has not 4096 bytes.
  case notAPage(FilePath, PageFrameNumber, byteCount: Int)
  /// More pages than were announced.
  case tooManyPages(FilePath, capacity: UInt64)
  /// No RAM at all, or RAM beyond 52 bits of address: the frame behind the last.
  case badFrameLimit(FilePath, UInt64)
}

extension KdumpWriterError: Diagnosis {
  public var name: String {
    switch self {
    case .writeFailed(_, _, .noSpace): "output.no-space"
    case .writeFailed: "output.write-failed"
    case .outOfMemory: "output.out-of-memory"
    case .notAscending, .notRAM, .notAPage, .tooManyPages, .badFrameLimit: "output.bad-page"
    }
  }

  public var problem: String {
    switch self {
    case .writeFailed(let path, let offset, let error):
      "\(path): writing at offset \(hexadecimal(offset)) failed: \(error)"
    case .outOfMemory(let path):
      "\(path): no memory for compression"
    case .notAscending(let path, let frame):
      "\(path): page frame \(frame) comes after a higher one"
    case .notRAM(let path, let frame):
      "\(path): page frame \(frame) is outside the memory of the dump"
    case .notAPage(let path, let frame, let byteCount):
      "\(path): page frame \(frame) comes with \(byteCount) bytes"
    case .tooManyPages(let path, let capacity):
      "\(path): more than the \(capacity) pages that were announced"
    case .badFrameLimit(let path, let frameLimit):
      "\(path): \(frameLimit) page frames make no dump"
    }
  }

  public var advice: String? {
    switch self {
    case .writeFailed(_, _, .noSpace): "free some space, or write to another disk"
    case .writeFailed, .outOfMemory: nil
    case .notAscending, .notRAM, .notAPage, .tooManyPages, .badFrameLimit:
      "this is a fault of the program: please report it"
    }
  }
}

/// The header, the sub-header and the notes behind it.
private struct KdumpHeader {
  let bytes: [UInt8]
  /// Blocks that they take.
  let blocks: Int
  let bitmapBlocks: Int

  init(system: SystemName, notes: [Note], dumpLevel: DumpLevel, frameLimit: UInt64) {
    typealias Header = KdumpLayout.Header
    typealias SubHeader = KdumpLayout.SubHeader
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
    bytes.store(littleEndian: KdumpLayout.Flags.zlib, at: Header.status)
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
  fileprivate var bytes: [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(KdumpLayout.Descriptor.size)
    bytes.append(littleEndian: offset)
    bytes.append(littleEndian: size)
    bytes.append(littleEndian: flags)
    bytes.append(littleEndian: UInt64(0))
    return bytes
  }
}

/// Writes at given offsets of a file.
private struct PositionedOutput {
  let descriptor: FileDescriptor
  let path: FilePath

  func write(_ bytes: [UInt8], at offset: UInt64) throws(KdumpWriterError) {
    var done = 0
    while done < bytes.count {
      let position = offset + UInt64(done)
      let count = unsafe bytes.withUnsafeBytes { buffer in
        unsafe pwrite(
          descriptor.rawValue, buffer.baseAddress.map { unsafe $0 + done }, buffer.count - done,
          off_t(clamping: position))
      }
      if count > 0 {
        done += count
      } else if count == 0 || errno != EINTR {
        throw .writeFailed(path, offset: position, count == 0 ? .ioError : Errno(rawValue: errno))
      }
    }
  }

  func setSize(_ size: UInt64) throws(KdumpWriterError) {
    while ftruncate(descriptor.rawValue, off_t(clamping: size)) != 0 {
      guard errno == EINTR else {
        throw .writeFailed(path, offset: size, Errno(rawValue: errno))
      }
    }
  }
}

/// Bytes that follow each other in the file, written in large pieces.
private struct OutputStream {
  private static let pieceSize = 256 << 10

  private var start: UInt64
  private var held: [UInt8] = []

  init(at offset: UInt64) {
    start = offset
  }

  /// Where the next byte goes.
  var position: UInt64 { start + UInt64(held.count) }

  mutating func append(_ bytes: [UInt8], _ output: PositionedOutput) throws(KdumpWriterError) {
    held += bytes
    if held.count >= Self.pieceSize { try flush(output) }
  }

  mutating func flush(_ output: PositionedOutput) throws(KdumpWriterError) {
    try output.write(held, at: start)
    start = position
    held.removeAll(keepingCapacity: true)
  }
}

/// A bitmap that is set in ascending order; stretches of clear bits become holes in the file.
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
        try flush(output)
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

  /// Writes the bits of the current piece, up to the last that is set.
  mutating func flush(_ output: PositionedOutput) throws(KdumpWriterError) {
    guard let last = bits.lastIndex(where: { $0 != 0 }) else { return }
    try output.write(Array(bits[...last]), at: start + index * UInt64(Self.pieceSize))
    for byte in 0...last { bits[byte] = 0 }
  }
}

/// zlib at its fastest level, as makedumpfile uses it.
@safe private final class Deflater {
  private let stream = UnsafeMutablePointer<z_stream>.allocate(capacity: 1)
  private var room = [UInt8](repeating: 0, count: KdumpLayout.blockSize - 1)

  init?() {
    unsafe stream.initialize(to: z_stream())
    guard unsafe shim_deflateInit(stream, Z_BEST_SPEED) == Z_OK else {
      // A failed initialiser runs deinit all the same; deflateEnd then only says so.
      return nil
    }
  }

  deinit {
    unsafe deflateEnd(stream)
    unsafe stream.deallocate()
  }

  /// The page's compressed form, or nil where it would not be smaller.
  func compress(_ page: [UInt8]) -> [UInt8]? {
    let size: Int? = unsafe page.withUnsafeBytes { input in
      unsafe room.withUnsafeMutableBytes { output in
        guard unsafe deflateReset(stream) == Z_OK else { return nil }
        unsafe stream.pointee.next_in = UnsafeMutablePointer(
          mutating: input.baseAddress?.assumingMemoryBound(to: UInt8.self))
        unsafe stream.pointee.avail_in = UInt32(input.count)
        unsafe stream.pointee.next_out = output.baseAddress?.assumingMemoryBound(to: UInt8.self)
        unsafe stream.pointee.avail_out = UInt32(output.count)
        guard unsafe deflate(stream, Z_FINISH) == Z_STREAM_END else { return nil }
        return unsafe output.count - Int(stream.pointee.avail_out)
      }
    }
    return size.map { Array(room[..<$0]) }
  }
}
