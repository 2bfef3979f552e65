import Memory

/// Bytes of an address space or a file, most of which may be holes.
struct SparseBytes: Sendable {
  /// By number of 4096 bytes; all of that length.
  var blocks: [UInt64: [UInt8]] = [:]

  mutating func write(_ bytes: [UInt8], at offset: UInt64) {
    var done = 0
    while done < bytes.count {
      let position = offset &+ UInt64(done)
      let start = Int(position & (pageSize - 1))
      let count = min(Int(pageSize) - start, bytes.count - done)
      blocks[position >> pageShift, default: Self.zeros]
        .replaceSubrange(start..<start + count, with: bytes[done..<done + count])
      done += count
    }
  }

  /// Sets a bit of the bitmap at `offset`, a multiple of 4096.
  mutating func setBit(_ index: UInt64, ofBitmapAt offset: UInt64) {
    let byte = index / 8 % pageSize
    blocks[(offset >> pageShift) + (index >> (pageShift + 3)), default: Self.zeros][Int(byte)] |=
      1 << UInt8(index % 8)
  }

  /// Holes read as zeros.
  func read(at offset: UInt64, count: Int) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(count)
    while bytes.count < count {
      let position = offset &+ UInt64(bytes.count)
      let start = Int(position & (pageSize - 1))
      let piece = min(Int(pageSize) - start, count - bytes.count)
      bytes += (blocks[position >> pageShift] ?? Self.zeros)[start..<start + piece]
    }
    return bytes
  }

  static let zeros = [UInt8](repeating: 0, count: Int(pageSize))
}
