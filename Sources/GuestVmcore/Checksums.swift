import CDeflate
import Glibc
import Guest
import Memory
import Synchronization
import SystemPackage

/// What the bytes of a vmcore are, from its memory on: a CRC-32 of each MiB of the file.
///
/// Of a MiB, as of pages they would take 4 bytes in 4096, 1 GiB for a guest of 1 TiB, and crash
/// takes notes of 64 MiB; as of a program header they would say that a terabyte is damaged. Of the
/// file, so that any tool can tell them: `tail -c +START | split -b 1M` and a CRC-32 as gzip's.
public struct Checksums: Codable, Hashable, Sendable {
  /// What is computed: `crc32`, that of gzip and zlib (ISO 3309, RFC 1952).
  public var algorithm: String
  /// Offset in the file from which on bytes are counted.
  public var start: UInt64
  /// Bytes of a sum; the last may have fewer.
  public var unit: UInt64
  /// A sum after the other, of 8 hexadecimal digits each.
  public var values: String

  private static let algorithm = "crc32"
  private static let unit: UInt64 = 1 << 20
  private static let digits = 8

  /// Reads `range` of a file, which ends with the file.
  init(of file: Int32, _ range: Range<UInt64>, threads: Int) throws(Errno) {
    let sums = try Self.sums(file, range, unit: Self.unit, threads: threads)
    algorithm = Self.algorithm
    start = range.lowerBound
    unit = Self.unit
    values = sums.map { String(hexadecimal(UInt64($0), digits: Self.digits).dropFirst(2)) }
      .joined()
  }

  /// Bytes that the sums take in the note of a guest.
  static func room(for memory: MemoryMap) -> Int {
    // makedumpfile's format adds a descriptor to each page, and two bitmaps.
    let end = memory.regions.map { $0.start.rawValue &+ $0.size }.max() ?? 0
    let size = memory.size + memory.size >> 6 + end >> 13
    return Int(clamping: size / unit + 2) * digits + 128
  }

  /// The MiBs that are not what they were, counted from the first; nil if the sums are of another
  /// kind, or not of such a file.
  func differences(in file: Int32, size: UInt64) throws(Errno) -> [Int]? {
    guard algorithm == Self.algorithm, unit == Self.unit, start <= size,
      UInt64(values.utf8.count) == (size - start + unit - 1) / unit * UInt64(Self.digits)
    else { return nil }
    let digits = Array(values.utf8)
    let sums = try Self.sums(file, start..<size, unit: unit, threads: availableProcessors)
    return sums.indices.filter { index in
      let place = index * Self.digits
      let text = String(decoding: digits[place..<place + Self.digits], as: UTF8.self)
      return UInt32(text, radix: 16) != sums[index]
    }
  }

  private static func sums(
    _ file: Int32, _ range: Range<UInt64>, unit: UInt64, threads: Int
  ) throws(Errno) -> [UInt32] {
    let (start, size) = (range.lowerBound, range.upperBound)
    let count = Int(clamping: (size - start + unit - 1) / unit)
    let zeros = sum([UInt8](repeating: 0, count: Int(unit)))
    let results = Mutex((sums: [UInt32](repeating: zeros, count: count), error: Int32(0)))
    let next = Atomic<Int>(0)
    onThreads(min(max(1, threads), max(1, count))) { _ in
      var piece = [UInt8](repeating: 0, count: Int(unit))
      while true {
        let index = next.add(1, ordering: .relaxed).oldValue
        guard index < count else { return }
        let offset = start + UInt64(index) * unit
        let length = Int(min(unit, size - offset))
        // Most of a guest may be holes.
        let data = lseek(file, off_t(clamping: offset), SEEK_DATA)
        let isHole = data < 0 ? errno == ENXIO : UInt64(data) >= offset + UInt64(length)
        if isHole, length == Int(unit) { continue }
        if let error = read(file, at: offset, length, into: &piece) {
          results.withLock { $0.error = error }
          return
        }
        let value = sum(piece[..<length])
        results.withLock { $0.sums[index] = value }
      }
    }
    let result = results.withLock { $0 }
    guard result.error == 0 else { throw Errno(rawValue: result.error) }
    return result.sums
  }

  /// Fills the start of `piece`; returns the error, if there is one.
  private static func read(
    _ file: Int32, at offset: UInt64, _ length: Int, into piece: inout [UInt8]
  ) -> Int32? {
    let (count, error) = unsafe piece.withUnsafeMutableBytes { bytes in
      unsafe readAll(
        from: file, at: offset, into: UnsafeMutableRawBufferPointer(rebasing: bytes[..<length]))
    }
    return error ?? (count < length ? EIO : nil)
  }

  private static func sum(_ bytes: some Collection<UInt8>) -> UInt32 {
    let value = bytes.withContiguousStorageIfAvailable { bytes in
      unsafe libdeflate_crc32(0, bytes.baseAddress, bytes.count)
    }
    return value ?? 0
  }
}
