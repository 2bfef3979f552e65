import Memory

/// A structure of which the places of some members are known, though no type information tells them.
public struct StructureDescription: Sendable {
  public struct Member: Sendable {
    let name: String
    let offset: UInt64
    let content: Content

    /// - Parameter offset: in bytes from the structure's start.
    public init(_ name: String, at offset: UInt64, _ content: Content) {
      self.name = name
      self.offset = offset
      self.content = content
    }
  }

  public indirect enum Content: Sendable {
    /// An unsigned integer of so many bytes.
    case unsigned(bytes: UInt64)
    case pointer
    /// A pointer to a structure that was described before, or that the base has.
    case pointerTo(String)
    case structure(String)
    /// So many of the structure of that name.
    case structures(String, count: UInt64)
  }

  public let name: String
  let size: UInt64
  let members: [Member]

  public init(_ name: String, size: UInt64, _ members: [Member]) {
    self.name = name
    self.size = size
    self.members = members
  }
}

extension BTF {
  /// The types of `base`, and before them structures that are not known from type information.
  public convenience init(_ structures: [StructureDescription], base: BTF) throws(BTFError) {
    let described = DescribedTypes(structures, base: base)
    let first = Int(base.idLimit)
    var writer = BTFWriter(base: base) { $0 > 0 ? $0 : 1 - $0 - first }
    for type in described.types { writer.write(type) }
    try self.init(writer.bytes, base: base)
  }
}

/// The types that descriptions stand for, by numbers from 1 on; those of the base are told by their
/// negative numbers.
private struct DescribedTypes {
  private(set) var types: [CollectedType] = []
  private let base: BTF
  private var structures: [String: Int] = [:]

  init(_ descriptions: [StructureDescription], base: BTF) {
    self.base = base
    for structure in descriptions {
      let members = structure.members.map { member in
        CollectedMember(
          name: member.name, type: number(of: member.content), bitOffset: member.offset &* 8,
          bitSize: nil)
      }
      structures[structure.name] = add(
        .structure(name: structure.name, size: structure.size, isUnion: false, members))
    }
  }

  private mutating func number(of content: StructureDescription.Content) -> Int {
    switch content {
    case .unsigned(let bytes): add(.integer(name: "u\(bytes &* 8)", size: bytes, encoding: 0))
    case .pointer: add(.reference(.pointer, name: "", 0))
    case .pointerTo(let name): add(.reference(.pointer, name: "", number(of: name)))
    case .structure(let name): number(of: name)
    case .structures(let name, let count):
      add(.array(number(of: name), count: UInt32(clamping: count)))
    }
  }

  /// `void` if there is no such structure.
  private func number(of structure: String) -> Int {
    structures[structure] ?? base.structure(named: structure).map { -Int($0.id) } ?? 0
  }

  private mutating func add(_ type: CollectedType) -> Int {
    types.append(type)
    return types.count
  }
}
