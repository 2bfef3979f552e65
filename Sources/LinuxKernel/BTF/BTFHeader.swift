import Memory

/// The header of BTF (`struct btf_header`) and where its sections are in the bytes.
struct BTFHeader {
  let types: Range<Int>
  let strings: Range<Int>
  /// The sizes of the kinds known to the writer. Empty before 2026's headers (`layout_off`,
  /// `layout_len`).
  let layout: Range<Int>

  static let magic: UInt16 = 0xeb9f
  /// Up to `str_len`. A longer header is one of a later kernel, with fields behind those.
  static let size = 24
  static let sizeWithLayout = 32

  init(_ bytes: [UInt8]) throws(BTFError) {
    guard let magic: UInt16 = bytes.load(at: 0), let version: UInt8 = bytes.load(at: 2),
      let headerSize: UInt32 = bytes.load(at: 4), bytes.count >= Self.size
    else { throw .truncatedHeader(size: bytes.count) }
    guard magic == Self.magic else { throw .notBTF(magic: magic) }
    guard version == 1 else { throw .unknownVersion(version) }
    guard headerSize >= Self.size, Int(headerSize) <= bytes.count else {
      throw .sectionOutOfBounds(
        section: "header", offset: 0, length: UInt64(headerSize), size: bytes.count)
    }

    func section(_ name: String, at field: Int) throws(BTFError) -> Range<Int> {
      let offset = UInt64(headerSize) + UInt64(bytes.load(UInt32.self, at: field) ?? 0)
      let length = UInt64(bytes.load(UInt32.self, at: field + 4) ?? 0)
      guard offset + length <= bytes.count else {
        throw .sectionOutOfBounds(
          section: name, offset: offset, length: length, size: bytes.count)
      }
      return Int(offset)..<Int(offset + length)
    }
    types = try section("types", at: 8)
    strings = try section("strings", at: 16)
    layout = headerSize >= Self.sizeWithLayout ? try section("layouts", at: 24) : 0..<0
  }

  /// The size of all that the header at a position speaks of, or nil if there is none.
  static func extent(_ bytes: [UInt8], at position: Int) -> UInt64? {
    // Magic, version 1, no flags.
    guard let start: UInt32 = bytes.load(at: position), start == UInt32(magic) | 1 << 16,
      let headerSize: UInt32 = bytes.load(at: position + 4), headerSize >= size
    else { return nil }
    var ends: [UInt64] = []
    for field in headerSize >= sizeWithLayout ? [8, 16, 24] : [8, 16] {
      guard let offset: UInt32 = bytes.load(at: position + field),
        let length: UInt32 = bytes.load(at: position + field + 4)
      else { return nil }
      ends.append(UInt64(offset) + UInt64(length))
    }
    return UInt64(headerSize) + (ends.max() ?? 0)
  }
}
