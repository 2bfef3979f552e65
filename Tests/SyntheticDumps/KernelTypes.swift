import Memory

/// A C type of a synthetic kernel.
public indirect enum CType: Hashable, Sendable {
  case void
  /// Size in bytes.
  case integer(Int, signed: Bool)
  case pointer(CType)
  case array(CType, Int)
  /// A structure or union by its name.
  case named(String)
  /// An anonymous structure or union.
  case anonymous(CStructure)

  public static let u8 = CType.integer(1, signed: false)
  public static let u16 = CType.integer(2, signed: false)
  public static let u32 = CType.integer(4, signed: false)
  public static let u64 = CType.integer(8, signed: false)
  public static let s16 = CType.integer(2, signed: true)
  public static let s32 = CType.integer(4, signed: true)
  public static let char = CType.integer(1, signed: true)
  public static func pointer(to name: String) -> CType { .pointer(.named(name)) }
}

/// A member of a structure, without its place.
public struct CMember: Hashable, Sendable {
  public var name: String
  public var type: CType

  public init(_ name: String, _ type: CType) {
    self.name = name
    self.type = type
  }
}

/// What a structure has, in no order: where its members lie is arbitrary.
public struct CStructure: Hashable, Sendable {
  public var members: [CMember]
  public var isUnion: Bool
  /// The members lie as a C compiler places them, in their order: for what is found without types.
  public var isOrdered = false

  public init(_ members: [CMember], isUnion: Bool = false) {
    self.members = members
    self.isUnion = isUnion
  }

  public init(_ members: KeyValuePairs<String, CType>, isUnion: Bool = false) {
    self.init(members.map { CMember($0.key, $0.value) }, isUnion: isUnion)
  }

  public mutating func remove(_ names: String...) {
    members.removeAll { names.contains($0.name) }
  }

  /// Adds a member, in the place of one of that name.
  public mutating func add(_ name: String, _ type: CType) {
    remove(name)
    members.append(CMember(name, type))
  }

  public mutating func rename(_ name: String, to new: String) {
    for index in members.indices where members[index].name == name { members[index].name = new }
  }
}

/// An enumeration's constants.
public typealias CEnumeration = [(name: String, value: Int32)]

/// The types of a synthetic kernel and its modules: what there is, and where a seed put it.
///
/// The seed shuffles the members of every structure and leaves gaps between them, so that whoever
/// finds them has asked BTF.
public struct KernelTypes: Sendable {
  public var structures: [String: CStructure]
  public var seed: UInt64

  public init(_ structures: [String: CStructure], seed: UInt64) {
    self.structures = structures
    self.seed = seed
  }

  public subscript(name: String) -> CStructure {
    get { structures[name] ?? CStructure([]) }
    set { structures[name] = newValue }
  }

  public func has(_ structure: String, _ member: String) -> Bool {
    place(of: member, in: layout(of: .named(structure))) != nil
  }
}

// MARK: - Layout

extension KernelTypes {
  struct Layout {
    var size = 0
    var members: [(member: CMember, offset: Int)] = []
  }

  func layout(of type: CType) -> Layout {
    switch type {
    case .named(let name): layout(self[name], salt: name)
    case .anonymous(let structure):
      layout(structure, salt: structure.members.map(\.name).joined(separator: ","))
    default: Layout(size: size(of: type))
    }
  }

  private func layout(_ structure: CStructure, salt: String) -> Layout {
    var generator = SeededGenerator(seed: seed ^ Self.hash(salt))
    var layout = Layout()
    // A flexible array ends its structure.
    func isFlexible(_ member: CMember) -> Bool {
      if case .array(_, 0) = member.type { true } else { false }
    }
    let declared = structure.members.filter { !isFlexible($0) }
    let fixed = structure.isOrdered ? declared : declared.shuffled(using: &generator)
    for member in fixed + structure.members.filter(isFlexible) {
      if structure.isUnion {
        layout.members.append((member, 0))
        layout.size = max(layout.size, size(of: member.type))
      } else {
        if !structure.isOrdered { layout.size += Int.random(in: 0...2, using: &generator) * 8 }
        layout.size = Self.round(layout.size, to: alignment(of: member.type))
        layout.members.append((member, layout.size))
        layout.size += size(of: member.type)
      }
    }
    layout.size = Self.round(layout.size, to: 8)
    return layout
  }

  private static func round(_ value: Int, to alignment: Int) -> Int {
    (value + alignment - 1) / alignment * alignment
  }

  private func alignment(of type: CType) -> Int {
    switch type {
    case .void: 1
    case .integer(let size, _): size
    case .array(let element, _): alignment(of: element)
    case .pointer, .named, .anonymous: 8
    }
  }

  /// In bytes.
  public func size(of type: CType) -> Int {
    switch type {
    case .void: 0
    case .integer(let size, _): size
    case .pointer: 8
    case .array(let element, let count): size(of: element) * count
    case .named, .anonymous: layout(of: type).size
    }
  }

  private func place(of name: String, in layout: Layout) -> (offset: Int, type: CType)? {
    for (member, offset) in layout.members {
      if member.name == name { return (offset, member.type) }
      if case .anonymous = member.type,
        let inner = place(of: name, in: self.layout(of: member.type))
      {
        return (offset + inner.offset, inner.type)
      }
    }
    return nil
  }

  /// Where `arch.regs[3]` is in a structure, and what it is.
  public func place(of path: String, in structure: String) -> (offset: Int, type: CType) {
    var type = CType.named(structure)
    var offset = 0
    for step in path.split(whereSeparator: { ".[".contains($0) }) {
      if step.last == "]", let index = Int(step.dropLast()), case .array(let element, _) = type {
        offset += index * size(of: element)
        type = element
      } else if let place = place(of: String(step), in: layout(of: type)) {
        offset += place.offset
        type = place.type
      } else {
        preconditionFailure("struct \(structure) has no \(path)")
      }
    }
    return (offset, type)
  }

  static func hash(_ text: String) -> UInt64 {
    text.utf8.reduce(0xcbf2_9ce4_8422_2325) { ($0 ^ UInt64($1)) &* 0x100_0000_01b3 }
  }
}

// MARK: - BTF

/// Writes types as BTF: each with those that it leads to.
struct TypeWriter {
  private let types: KernelTypes
  private var numbers: [CType: UInt32]
  private var queue: [CType] = []
  private var next: UInt32
  private(set) var builder: BTFBuilder

  init(_ types: KernelTypes) {
    self.types = types
    numbers = [.void: 0]
    next = 1
    builder = BTFBuilder()
  }

  /// BTF of a module: what the kernel's BTF has is not written again.
  init(base: TypeWriter) {
    types = base.types
    numbers = base.numbers
    next = base.next
    builder = BTFBuilder(base: base.builder)
  }

  /// Adds structures and enumerations.
  mutating func write(_ structures: [String], _ enumerations: [CEnumeration]) {
    for name in structures { _ = number(of: .named(name)) }
    while !queue.isEmpty { write(queue.removeFirst()) }
    for constants in enumerations {
      _ = builder.enumeration("", constants)
      next += 1
    }
  }

  private mutating func number(of type: CType) -> UInt32 {
    if let number = numbers[type] { return number }
    numbers[type] = next
    next += 1
    queue.append(type)
    return next - 1
  }

  private mutating func write(_ type: CType) {
    let number: UInt32
    switch type {
    case .void: return
    case .integer(let size, let signed):
      number = builder.integer(
        "\(signed ? "s" : "u")\(size * 8)", size: UInt32(size), signed: signed)
    case .pointer(let target): number = builder.pointer(self.number(of: target))
    case .array(let element, let count):
      number = builder.array(self.number(of: element), UInt32(count))
    case .named(let name):
      number = write(types[name], named: name, types.layout(of: type))
    case .anonymous(let structure):
      number = write(structure, named: "", types.layout(of: type))
    }
    precondition(number == numbers[type])
  }

  private mutating func write(
    _ structure: CStructure, named name: String, _ layout: KernelTypes.Layout
  ) -> UInt32 {
    var members: [BTFBuilder.Member] = []
    for (member, offset) in layout.members {
      let isAnonymous = if case .anonymous = member.type { true } else { false }
      members.append(
        (isAnonymous ? "" : member.name, number(of: member.type), UInt32(offset * 8)))
    }
    return builder.structure(
      name, size: UInt32(layout.size), union: structure.isUnion, members)
  }
}
