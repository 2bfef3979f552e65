import Glibc
import Memory

/// A file made in code. What was never written is a hole.
public struct SyntheticFile: Sendable {
  private var content = SparseBytes()
  public private(set) var size: UInt64 = 0

  public init() {}

  public init(_ bytes: [UInt8]) {
    write(bytes, at: 0)
  }

  /// Overwrites bytes; the file grows as far as needed.
  public mutating func write(_ bytes: [UInt8], at offset: UInt64) {
    content.write(bytes, at: offset)
    size = max(size, offset + UInt64(bytes.count))
  }

  /// Overwrites an integer in little-endian order.
  public mutating func store<Integer: FixedWidthInteger>(_ value: Integer, at offset: UInt64) {
    var bytes: [UInt8] = []
    bytes.append(littleEndian: value)
    write(bytes, at: offset)
  }

  /// Sets a bit of a bitmap that lies in the file, at a multiple of 4096.
  mutating func setBit(_ index: UInt64, ofBitmapAt offset: UInt64) {
    content.setBit(index, ofBitmapAt: offset)
  }

  /// Cuts the file, or makes it longer by a hole.
  public mutating func resize(to newSize: UInt64) {
    if newSize < size {
      content.blocks = content.blocks.filter { $0.key << pageShift < newSize }
      let last = newSize >> pageShift
      if var block = content.blocks[last] {
        for index in Int(newSize & (pageSize - 1))..<block.count { block[index] = 0 }
        content.blocks[last] = block
      }
    }
    size = newSize
  }

  public func load<Integer: FixedWidthInteger>(
    _ type: Integer.Type = Integer.self, at offset: UInt64
  ) -> Integer {
    content.read(at: offset, count: MemoryLayout<Integer>.size).load(at: 0) ?? 0
  }

  public var bytes: [UInt8] { content.read(at: 0, count: Int(size)) }

  /// Saves the file under a temporary name, holes as holes.
  public func save() throws -> TemporaryFile {
    let file = try TemporaryFile()
    try file.replace(with: self)
    return file
  }

  /// Makes the file at `path` hold this and nothing else.
  public func write(to path: String) throws(TemporaryFile.Failure) {
    let descriptor = unsafe open(path, O_WRONLY | O_CREAT | O_TRUNC, 0o600)
    guard descriptor >= 0 else { throw TemporaryFile.Failure(call: "open", code: errno) }
    defer { close(descriptor) }
    guard ftruncate(descriptor, off_t(size)) == 0 else {
      throw TemporaryFile.Failure(call: "ftruncate", code: errno)
    }
    for block in blocks where !block.bytes.isZero {
      let written = unsafe block.bytes.withUnsafeBytes { buffer in
        unsafe pwrite(descriptor, buffer.baseAddress, buffer.count, off_t(block.offset))
      }
      guard written == block.bytes.count else {
        throw TemporaryFile.Failure(call: "pwrite", code: errno)
      }
    }
  }

  private var blocks: [(offset: UInt64, bytes: [UInt8])] {
    content.blocks.sorted { $0.key < $1.key }.map { number, block in
      let offset = number << pageShift
      return (offset, Array(block.prefix(Int(min(pageSize, size - min(size, offset))))))
    }
  }
}

/// A file of a test, removed when the test lets go of it.
public final class TemporaryFile: Sendable {
  public let path: String

  /// The system call that failed, with errno.
  public struct Failure: Error {
    public let call: String
    public let code: CInt
  }

  /// An empty file.
  public init() throws {
    let directory = unsafe getenv("TMPDIR").map { unsafe String(cString: $0) } ?? "/tmp"
    var template = Array("\(directory)/synthetic-dump-XXXXXX".utf8CString)
    let descriptor = unsafe template.withUnsafeMutableBufferPointer { buffer in
      unsafe buffer.baseAddress.map { unsafe mkstemp($0) } ?? -1
    }
    guard descriptor >= 0 else { throw Failure(call: "mkstemp", code: errno) }
    close(descriptor)
    path = String(decoding: template.dropLast().map(UInt8.init(bitPattern:)), as: UTF8.self)
  }

  deinit {
    unsafe unlink(path)
  }

  /// Makes the file hold `content` and nothing else.
  public func replace(with content: SyntheticFile) throws {
    try content.write(to: path)
  }
}
