/// Little-endian loads that never trap: a load that does not fit is nil.
extension Array where Element == UInt8 {
  @inlinable public func load<Integer: FixedWidthInteger>(
    _ type: Integer.Type = Integer.self, at offset: Int
  ) -> Integer? {
    guard offset >= 0, offset <= count - MemoryLayout<Integer>.size else { return nil }
    return unsafe self.withUnsafeBytes { bytes in
      Integer(littleEndian: unsafe bytes.loadUnaligned(fromByteOffset: offset, as: Integer.self))
    }
  }

  /// The bytes up to the first NUL from `offset` on, or nil when there is none within `limit`.
  public func cString(at offset: Int, limit: Int = 4096) -> String? {
    guard offset >= 0, offset < count else { return nil }
    let end = Swift.min(count, offset.addingReportingOverflow(limit).partialValue)
    guard offset < end, let nul = self[offset..<end].firstIndex(of: 0) else { return nil }
    return String(decoding: self[offset..<nul], as: UTF8.self)
  }

  /// True if every byte is zero.
  @inlinable public var isZero: Bool {
    unsafe self.withUnsafeBytes { unsafe isAllZero($0) }
  }

  /// Appends an integer in little-endian order.
  @inlinable public mutating func append<Integer: FixedWidthInteger>(littleEndian value: Integer) {
    var value = value.littleEndian
    unsafe Swift.withUnsafeBytes(of: &value) { unsafe self.append(contentsOf: $0) }
  }
}

/// True if every byte is zero. Runs at memory bandwidth, and leaves at the first data.
@inlinable public func isAllZero(_ bytes: UnsafeRawBufferPointer) -> Bool {
  guard bytes.count >= 8 else { return unsafe bytes.allSatisfy { $0 == 0 } }
  var sum: UInt64 = 0
  var offset = 0
  // Four lanes per step and an early look after each 256 bytes: data pages end here at once.
  while offset + 256 <= bytes.count {
    var step = 0
    while step < 256 {
      sum |= unsafe bytes.loadUnaligned(fromByteOffset: offset + step, as: UInt64.self)
      sum |= unsafe bytes.loadUnaligned(fromByteOffset: offset + step + 8, as: UInt64.self)
      sum |= unsafe bytes.loadUnaligned(fromByteOffset: offset + step + 16, as: UInt64.self)
      sum |= unsafe bytes.loadUnaligned(fromByteOffset: offset + step + 24, as: UInt64.self)
      step += 32
    }
    if sum != 0 { return false }
    offset += 256
  }
  while offset < bytes.count {
    if unsafe bytes[offset] != 0 { return false }
    offset += 1
  }
  return true
}
