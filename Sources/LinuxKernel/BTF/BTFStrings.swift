import Memory

/// The names of BTF's types and members: NUL-terminated, referred to by their offset. A module's
/// continue the offsets of its base.
struct BTFStrings: Sendable {
  private let bytes: [UInt8]
  private let range: Range<Int>
  private let first: UInt32
  private let base: BTF?

  /// The kernel takes no longer names (KSYM_NAME_LEN); what is longer is cut.
  static let maximumNameLength = 512

  init(_ bytes: [UInt8], _ range: Range<Int>, base: BTF?) throws(BTFError) {
    if let last = range.last {
      guard bytes[last] == 0, base != nil || bytes[range.lowerBound] == 0 else {
        throw .malformedStrings
      }
    } else if base == nil {
      throw .malformedStrings
    }
    first = base?.strings.limit ?? 0
    guard UInt64(first) + UInt64(range.count) <= UInt32.max else { throw .malformedStrings }
    self.bytes = bytes
    self.range = range
    self.base = base
  }

  /// The first offset behind the strings.
  var limit: UInt32 { first + UInt32(range.count) }

  /// True if `offset` is that of a name, as far as that can be told. Writers never share the tails
  /// of strings with a base: who refers to the middle of one was written for another base.
  func isForeign(_ offset: UInt32) -> Bool {
    guard offset < first, let base else { return false }
    return !base.strings.isStart(offset)
  }

  private func isStart(_ offset: UInt32) -> Bool {
    if offset < first, let base { return base.strings.isStart(offset) }
    return offset == first || offset < limit && bytes[position(of: offset) - 1] == 0
  }

  private func position(of offset: UInt32) -> Int { range.lowerBound + Int(offset - first) }

  /// The bytes of a name, cut at ``maximumNameLength``. Empty beyond the strings.
  private func name(at offset: UInt32) -> ArraySlice<UInt8> {
    guard offset < limit else { return [] }
    let start = position(of: offset)
    return bytes[start..<range.upperBound].prefix(Self.maximumNameLength).prefix { $0 != 0 }
  }

  subscript(offset: UInt32) -> String {
    if offset < first, let base { return base.strings[offset] }
    return String(decoding: name(at: offset), as: UTF8.self)
  }

  func isEmpty(_ offset: UInt32) -> Bool {
    if offset < first, let base { return base.strings.isEmpty(offset) }
    return offset >= limit || bytes[position(of: offset)] == 0
  }

  func equal(_ name: [UInt8], at offset: UInt32) -> Bool {
    if offset < first, let base { return base.strings.equal(name, at: offset) }
    guard offset < limit else { return false }
    let start = position(of: offset)
    // The strings end with a NUL, so that a name that does not fit differs before their end.
    for (index, byte) in name.enumerated() where byte == 0 || bytes[start + index] != byte {
      return false
    }
    return bytes[start + name.count] == 0
  }

  func hash(at offset: UInt32) -> UInt32 {
    if offset < first, let base { return base.strings.hash(at: offset) }
    return Self.hash(name(at: offset))
  }

  /// FNV-1a.
  static func hash(_ name: some Sequence<UInt8>) -> UInt32 {
    name.reduce(0x811c_9dc5) { hash, byte in (hash ^ UInt32(byte)) &* 0x0100_0193 }
  }
}
