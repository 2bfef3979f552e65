/// A type of a kernel or module.
public struct BTFType: Sendable {
  /// Where the type is defined: of a module's types that use the kernel's, those have the kernel's.
  public let btf: BTF
  public let id: UInt32

  init(_ btf: BTF, _ id: UInt32) {
    self.btf = btf
    self.id = id
  }

  public var kind: BTFKind { btf.kind(of: id) }

  /// Empty for what has no name: pointers, arrays, anonymous structures.
  public var name: String { kind == .void ? "void" : btf.strings[btf.nameOffset(of: id)] }

  /// Chains of typedefs, qualifiers and arrays are followed this far: a damaged one may be a ring.
  private static let maximumDepth = 64

  /// The type behind typedefs, const, volatile, restrict and type tags.
  public var resolved: BTFType {
    var type = self
    for _ in 0..<Self.maximumDepth {
      switch type.kind {
      case .typedef, .const, .volatile, .restrict, .typeTag:
        type = type.btf.type(type.btf.sizeOrType(of: type.id))
      default:
        return type
      }
    }
    return type
  }

  /// Size in bytes, of arrays too. Nil for what has none (void, functions, types that are only
  /// declared) and for an array whose size is no number.
  public var size: UInt64? {
    var type = resolved
    var count: UInt64 = 1
    for _ in 0..<Self.maximumDepth where type.kind == .array {
      let (product, overflow) = count.multipliedReportingOverflow(by: type.elementCount ?? 0)
      guard !overflow, let element = type.target else { return nil }
      count = product
      type = element.resolved
    }
    let single: UInt64
    switch type.kind {
    case .integer, .structure, .union, .enumeration, .enumeration64, .float, .dataSection:
      single = UInt64(type.btf.sizeOrType(of: type.id))
    case .pointer:
      single = 8
    default:
      return nil
    }
    let (size, overflow) = count.multipliedReportingOverflow(by: single)
    return overflow ? nil : size
  }

  /// What a pointer points at; the element of an array. Nil for other types.
  public var target: BTFType? {
    let type = resolved
    return switch type.kind {
    case .pointer: type.btf.type(type.btf.sizeOrType(of: type.id))
    case .array: type.btf.type(type.btf.detail(0, of: type.id))
    default: nil
    }
  }

  /// Number of elements of an array: 0 for a flexible one. Nil for other types.
  public var elementCount: UInt64? {
    let type = resolved
    return type.kind == .array ? UInt64(type.btf.detail(2, of: type.id)) : nil
  }

  /// True for signed integers, and for enumerations with a negative constant (told since 6.0,
  /// 6089fb325cf7).
  public var isSigned: Bool {
    let type = resolved
    return switch type.kind {
    case .integer: type.integer.isSigned
    case .enumeration, .enumeration64: type.btf.flag(of: type.id)
    default: false
    }
  }

  /// The encoding of an integer: `BTF_INT_ENCODING`, `BTF_INT_OFFSET`, `BTF_INT_BITS`.
  private var integer: (isSigned: Bool, bitOffset: UInt64, bits: UInt64) {
    let encoding = btf.detail(0, of: id)
    return (encoding >> 24 & 1 != 0, UInt64(encoding >> 16 & 0xff), UInt64(encoding & 0xff))
  }
}

/// A member of a structure or union.
public struct BTFMember: Sendable {
  /// Empty for an anonymous structure or union.
  public let name: String
  public let type: BTFType
  /// From the start of the structure that was asked for it.
  public let bitOffset: UInt64
  /// Size of a bit field; nil for any other member.
  public let bitSize: UInt64?

  /// Offset in bytes, of a bit field that of the byte with its first bit.
  public var byteOffset: UInt64 { bitOffset / 8 }
}

extension BTFType {
  /// The members in the order of their declaration, anonymous structures and unions among them.
  /// Empty for types without any.
  public var members: [BTFMember] {
    let type = resolved
    return (0..<type.memberCount).map {
      type.member($0, name: type.btf.strings[type.btf.member($0, of: type.id).name])
    }
  }

  /// A member by its name, also one of an anonymous structure or union inside.
  public func member(_ name: String) -> BTFMember? {
    let type = resolved
    return type.btf.member(name, of: type.id) {
      let wanted = Array(name.utf8)
      // Damaged types may be nested without end, or so often that there is no end to see.
      var budget = 1 << 20
      return wanted.isEmpty ? nil : type.find(wanted, name, depth: 0, &budget)
    }
  }

  private func find(
    _ wanted: [UInt8], _ name: String, depth: Int, _ budget: inout Int
  ) -> BTFMember? {
    for index in 0..<memberCount {
      budget -= 1
      guard budget > 0 else { return nil }
      let nameOffset = btf.member(index, of: id).name
      if btf.strings.equal(wanted, at: nameOffset) { return member(index, name: name) }
      guard btf.strings.isEmpty(nameOffset), depth < Self.maximumDepth else { continue }
      let outer = member(index, name: "")
      if let inner = outer.type.resolved.find(wanted, name, depth: depth + 1, &budget) {
        return BTFMember(
          name: inner.name, type: inner.type, bitOffset: outer.bitOffset + inner.bitOffset,
          bitSize: inner.bitSize)
      }
    }
    return nil
  }

  private var memberCount: Int {
    kind == .structure || kind == .union ? btf.elementCount(of: id) : 0
  }

  private func member(_ index: Int, name: String) -> BTFMember {
    let raw = btf.member(index, of: id)
    let type = btf.type(raw.type)
    if btf.flag(of: id) {
      // Since 5.0 (9d5f9f701b18): size and offset of a bit field share the word.
      let bits = UInt64(raw.offset >> 24)
      return BTFMember(
        name: name, type: type, bitOffset: UInt64(raw.offset & 0xff_ffff),
        bitSize: bits == 0 ? nil : bits)
    }
    // Before, an integer type of its own told that it was only a part of its bytes.
    let resolved = type.resolved
    if resolved.kind == .integer {
      let (_, offset, bits) = resolved.integer
      if offset != 0 || bits != UInt64(resolved.btf.sizeOrType(of: resolved.id)) * 8 {
        return BTFMember(
          name: name, type: type, bitOffset: UInt64(raw.offset) + offset, bitSize: bits)
      }
    }
    return BTFMember(name: name, type: type, bitOffset: UInt64(raw.offset), bitSize: nil)
  }
}
