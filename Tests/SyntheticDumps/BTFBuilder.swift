import Memory

/// Writes BTF, type by type (include/uapi/linux/btf.h).
public struct BTFBuilder: Sendable {
  public private(set) var types: [UInt8] = []
  public private(set) var strings: [UInt8]
  public private(set) var typeCount: UInt32 = 0
  private let firstID: UInt32
  private let firstString: UInt32

  public var magic: UInt16 = 0xeb9f
  public var version: UInt8 = 1
  /// Bytes of header behind the fields that were defined first.
  public var headerExtension: [UInt8] = []
  /// Sizes of kinds, told in the header if there are any.
  public var layouts: [(single: UInt8, element: UInt8)] = []

  public init() {
    strings = [0]
    firstID = 1
    firstString = 0
  }

  /// BTF of a module, whose numbers go on where those of the base end.
  public init(base: BTFBuilder) {
    strings = []
    firstID = base.firstID + base.typeCount
    firstString = base.firstString + UInt32(base.strings.count)
  }

  public mutating func string(_ text: String) -> UInt32 {
    guard !text.isEmpty else { return 0 }
    let offset = firstString + UInt32(strings.count)
    strings += Array(text.utf8) + [0]
    return offset
  }

  /// Adds a type of any kind and returns its number.
  public mutating func add(
    _ kind: UInt32, name: UInt32 = 0, count: UInt32 = 0, flag: Bool = false, _ sizeOrType: UInt32,
    _ rest: [UInt32] = []
  ) -> UInt32 {
    let info = (flag ? 1 << 31 : 0) | kind << 24 | count
    for word in [name, info, sizeOrType] + rest { types.append(littleEndian: word) }
    typeCount += 1
    return firstID + typeCount - 1
  }

  public mutating func integer(
    _ name: String, size: UInt32 = 4, signed: Bool = false, offset: UInt32 = 0, bits: UInt32? = nil
  ) -> UInt32 {
    let encoding = (signed ? 1 << 24 : 0) | offset << 16 | (bits ?? size * 8)
    return add(1, name: string(name), size, [encoding])
  }

  public mutating func pointer(_ target: UInt32) -> UInt32 { add(2, target) }

  public mutating func array(_ element: UInt32, _ count: UInt32) -> UInt32 {
    add(3, 0, [element, element, count])
  }

  public typealias Member = (name: String, type: UInt32, offset: UInt32)

  /// Offsets in bits, as they are stored.
  public mutating func structure(
    _ name: String, size: UInt32, union: Bool = false, flag: Bool = false, _ members: [Member]
  ) -> UInt32 {
    var words: [UInt32] = []
    for member in members { words += [string(member.name), member.type, member.offset] }
    return add(
      union ? 5 : 4, name: string(name), count: UInt32(members.count), flag: flag, size, words)
  }

  public mutating func enumeration(
    _ name: String, signed: Bool = false, _ constants: [(name: String, value: Int32)]
  ) -> UInt32 {
    var words: [UInt32] = []
    for constant in constants {
      words += [string(constant.name), UInt32(bitPattern: constant.value)]
    }
    return add(6, name: string(name), count: UInt32(constants.count), flag: signed, 4, words)
  }

  public mutating func enumeration64(
    _ name: String, signed: Bool = false, _ constants: [(name: String, value: UInt64)]
  ) -> UInt32 {
    var words: [UInt32] = []
    for (name, value) in constants {
      words += [string(name), UInt32(truncatingIfNeeded: value), UInt32(value >> 32)]
    }
    return add(19, name: string(name), count: UInt32(constants.count), flag: signed, 8, words)
  }

  public mutating func typedef(_ name: String, _ type: UInt32) -> UInt32 {
    add(8, name: string(name), type)
  }

  public var bytes: [UInt8] {
    var layoutBytes: [UInt8] = []
    for layout in layouts { layoutBytes += [layout.single, layout.element, 0, 0] }
    var fields = [0, types.count, types.count + layoutBytes.count, strings.count]
    if !layouts.isEmpty { fields += [types.count, layoutBytes.count] }
    var bytes: [UInt8] = []
    bytes.append(littleEndian: magic)
    bytes += [version, 0]
    bytes.append(littleEndian: UInt32(8 + fields.count * 4 + headerExtension.count))
    for field in fields { bytes.append(littleEndian: UInt32(field)) }
    bytes += headerExtension
    bytes += types
    bytes += layoutBytes
    bytes += strings
    return bytes
  }
}
