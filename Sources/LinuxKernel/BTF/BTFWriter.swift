import Memory

/// A type as it was collected. References are numbers from 1 on; 0 is `void`.
enum CollectedType {
  case void
  case integer(name: String, size: UInt64, encoding: UInt32)
  case float(name: String, size: UInt64)
  /// A pointer, typedef or qualifier.
  case reference(BTFKind, name: String, Int)
  case array(Int, count: UInt32)
  case structure(name: String, size: UInt64, isUnion: Bool, [CollectedMember])
  /// Named and not defined.
  case forward(name: String, isUnion: Bool)
  case enumeration(name: String, size: UInt64, [(name: String, value: Int64)])
  /// What takes and gives what is of no interest.
  case function
}

struct CollectedMember {
  let name: String
  let type: Int
  let bitOffset: UInt64
  let bitSize: UInt64?
}

/// `BTF_INT_SIGNED` and `BTF_INT_BOOL`, where they lie in an integer's word.
enum BTFIntegerEncoding {
  static let signed: UInt32 = 1 << 24
  static let boolean: UInt32 = 4 << 24
}

/// Writes types as BTF (include/uapi/linux/btf.h), one after another in the order of their numbers.
struct BTFWriter {
  private let firstID: UInt32
  private let firstString: UInt32
  private let resolve: (Int) -> Int
  private var types: [UInt8] = []
  private var strings: [UInt8]
  private var offsets: [String: UInt32] = [:]

  /// - Parameters:
  ///   - base: the types that these come behind.
  ///   - resolve: the number of the type to be meant by a number; those of the base are below 1.
  init(base: BTF?, resolve: @escaping (Int) -> Int) {
    firstID = base?.idLimit ?? 1
    firstString = base?.strings.limit ?? 0
    strings = base == nil ? [0] : []
    self.resolve = resolve
  }

  var bytes: [UInt8] {
    var bytes: [UInt8] = []
    bytes.append(littleEndian: BTFHeader.magic)
    bytes += [1, 0]
    for field in [
      BTFHeader.size, 0, types.count, types.count, strings.count,
    ] { bytes.append(littleEndian: UInt32(clamping: field)) }
    return bytes + types + strings
  }

  mutating func write(_ type: CollectedType) {
    switch type {
    case .void:
      // A qualifier of void is as good, and has a number.
      add(.const, 0)
    case .integer(let name, let size, let encoding):
      add(.integer, name: name, UInt32(clamping: size))
      types.append(littleEndian: encoding | UInt32(clamping: size) &* 8 & 0xff)
    case .float(let name, let size):
      add(.float, name: name, UInt32(clamping: size))
    case .reference(let kind, let name, let target):
      add(kind, name: name, number(target))
    case .array(let element, let count):
      add(.array, 0)
      for word in [number(element), 0, count] { types.append(littleEndian: word) }
    case .structure(let name, let size, let isUnion, let members):
      let hasBits = members.contains { $0.bitSize != nil }
      add(
        isUnion ? .union : .structure, name: name, count: members.count, flag: hasBits,
        UInt32(clamping: size))
      for member in members {
        let offset =
          hasBits
          ? UInt32(truncatingIfNeeded: member.bitSize ?? 0) << 24
            | UInt32(truncatingIfNeeded: member.bitOffset) & 0xff_ffff
          : UInt32(truncatingIfNeeded: member.bitOffset)
        for word in [string(member.name), number(member.type), offset] {
          types.append(littleEndian: word)
        }
      }
    case .forward(let name, let isUnion):
      add(.forward, name: name, flag: isUnion, 0)
    case .enumeration(let name, let size, let constants):
      write(enumeration: name, size, constants)
    case .function:
      add(.functionPrototype, 0)
    }
  }

  private mutating func write(
    enumeration name: String, _ size: UInt64, _ constants: [(name: String, value: Int64)]
  ) {
    let isSigned = constants.contains { $0.value < 0 }
    let isWide = constants.contains {
      isSigned ? Int32(exactly: $0.value) == nil : UInt32(exactly: $0.value) == nil
    }
    add(
      isWide ? .enumeration64 : .enumeration, name: name, count: constants.count, flag: isSigned,
      UInt32(clamping: size))
    for (name, value) in constants {
      types.append(littleEndian: string(name))
      types.append(littleEndian: UInt32(truncatingIfNeeded: value))
      if isWide { types.append(littleEndian: UInt32(truncatingIfNeeded: value >> 32)) }
    }
  }

  private mutating func add(
    _ kind: BTFKind, name: String = "", count: Int = 0, flag: Bool = false, _ sizeOrType: UInt32
  ) {
    types.append(littleEndian: string(name))
    types.append(
      littleEndian: (flag ? 1 << 31 : 0) | UInt32(kind.rawValue) << 24
        | UInt32(clamping: min(count, 0xff_ffff)))
    types.append(littleEndian: sizeOrType)
  }

  private func number(_ id: Int) -> UInt32 {
    id == 0 ? 0 : firstID &+ UInt32(truncatingIfNeeded: resolve(id) - 1)
  }

  private mutating func string(_ text: String) -> UInt32 {
    guard !text.isEmpty else { return 0 }
    if let offset = offsets[text] { return offset }
    let offset = firstString &+ UInt32(clamping: strings.count)
    strings += Array(text.utf8) + [0]
    offsets[text] = offset
    return offset
  }
}
