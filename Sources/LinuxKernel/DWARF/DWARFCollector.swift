import CElfutils
import Memory

/// Collects the types of compile units, each once, and writes them as BTF: what uses types knows one
/// form of them only.
///
/// Of structures of one name and size the first is taken for all, whatever unit it is of: C has no
/// other way to tell that they are the same, and the units of one kernel agree but for accidents of
/// naming among drivers.
@safe struct DWARFCollector {
  private let path: String
  private var types: [CollectedType] = []
  /// Types that are referred to, and not yet read.
  private var pending: [(id: Int, die: Dwarf_Die)] = unsafe []
  /// The types of the unit at hand, by the offset of their DIE.
  private var ofUnit: [UInt64: Int] = [:]
  /// Definitions of all units.
  private var definitions: [Definition: Int] = [:]

  private struct Definition: Hashable {
    let tag: Int32
    let name: String
    let size: UInt64
  }

  /// A distribution's kernel has 200,000 to 500,000.
  private static let maximumCount = 8 << 20

  init(path: String) { self.path = path }

  var isEmpty: Bool { types.isEmpty }

  /// Takes what a unit defines.
  mutating func collect(_ unit: Dwarf_Die) throws(DebugFileError) {
    ofUnit.removeAll(keepingCapacity: true)
    var children = unsafe DIEChildren(unit)
    while let die = unsafe children.next() {
      switch unsafe Int(die.tag) {
      case Int(DW_TAG_structure_type), Int(DW_TAG_union_type):
        if unsafe die.isDeclaration || die.name.isEmpty { continue }
      case Int(DW_TAG_enumeration_type): break
      default: continue
      }
      _ = try unsafe reference(to: die)
      while let (id, next) = unsafe pending.popLast() { types[id - 1] = try unsafe read(next) }
    }
  }

  // MARK: Numbers

  /// The number of a type, from 1 on.
  private mutating func reference(to die: Dwarf_Die) throws(DebugFileError) -> Int {
    let offset = unsafe die.offset
    if let id = ofUnit[offset] { return id }
    let definition = unsafe definition(die)
    if let definition, let id = definitions[definition] {
      ofUnit[offset] = id
      return id
    }
    guard types.count < Self.maximumCount else {
      throw .malformed(path: path, what: "more than \(Self.maximumCount) types")
    }
    types.append(.void)
    ofUnit[offset] = types.count
    if let definition { definitions[definition] = types.count }
    unsafe pending.append((types.count, die))
    return types.count
  }

  /// What makes a type the same in all units. Nil of what is only declared, and of what has no name.
  private func definition(_ die: Dwarf_Die) -> Definition? {
    let tag = unsafe die.tag
    switch Int(tag) {
    case Int(DW_TAG_structure_type), Int(DW_TAG_union_type):
      guard unsafe !die.isDeclaration, unsafe !die.name.isEmpty else { return nil }
      return unsafe Definition(tag: tag, name: die.name, size: die.size)
    case Int(DW_TAG_enumeration_type):
      // Of one without a name the first constant has one.
      var children = unsafe DIEChildren(die)
      guard let first = unsafe children.next() else { return nil }
      return unsafe Definition(tag: tag, name: die.name + "." + first.name, size: die.size)
    case Int(DW_TAG_base_type):
      return unsafe Definition(tag: tag, name: die.name, size: die.size)
    default: return nil
    }
  }

  // MARK: Types

  private mutating func read(_ die: Dwarf_Die) throws(DebugFileError) -> CollectedType {
    let tag = unsafe Int(die.tag)
    switch tag {
    case Int(DW_TAG_base_type):
      return unsafe baseType(die)
    case Int(DW_TAG_pointer_type):
      return .reference(.pointer, name: "", try unsafe target(die))
    case Int(DW_TAG_typedef):
      return unsafe .reference(.typedef, name: die.name, try target(die))
    case Int(DW_TAG_const_type):
      return .reference(.const, name: "", try unsafe target(die))
    case Int(DW_TAG_volatile_type), Int(DW_TAG_atomic_type):
      return .reference(.volatile, name: "", try unsafe target(die))
    case Int(DW_TAG_restrict_type):
      return .reference(.restrict, name: "", try unsafe target(die))
    case Int(DW_TAG_structure_type), Int(DW_TAG_union_type):
      let isUnion = tag == Int(DW_TAG_union_type)
      if unsafe die.isDeclaration { return unsafe .forward(name: die.name, isUnion: isUnion) }
      return unsafe .structure(
        name: die.name, size: die.size, isUnion: isUnion, try members(die))
    case Int(DW_TAG_enumeration_type):
      return unsafe enumeration(die)
    case Int(DW_TAG_array_type):
      return try unsafe array(die)
    case Int(DW_TAG_subroutine_type):
      return .function
    default:
      return .void
    }
  }

  /// The number of what a type is made of; 0 is `void`.
  private mutating func target(_ die: Dwarf_Die) throws(DebugFileError) -> Int {
    guard let type = unsafe die.type else { return 0 }
    return try unsafe reference(to: type)
  }

  private func baseType(_ die: Dwarf_Die) -> CollectedType {
    let encoding = unsafe Int(clamping: die.unsigned(DW_AT_encoding) ?? 0)
    switch encoding {
    case Int(DW_ATE_float), Int(DW_ATE_complex_float):
      return unsafe .float(name: die.name, size: die.size)
    case Int(DW_ATE_signed), Int(DW_ATE_signed_char):
      return unsafe .integer(name: die.name, size: die.size, encoding: BTFIntegerEncoding.signed)
    case Int(DW_ATE_boolean):
      return unsafe .integer(name: die.name, size: die.size, encoding: BTFIntegerEncoding.boolean)
    default:
      return unsafe .integer(name: die.name, size: die.size, encoding: 0)
    }
  }

  private mutating func members(_ die: Dwarf_Die) throws(DebugFileError) -> [CollectedMember] {
    var members: [CollectedMember] = []
    var children = unsafe DIEChildren(die)
    while let member = unsafe children.next() {
      guard unsafe member.tag == DW_TAG_member else { continue }
      var offset: UInt64 = 0
      let bits = unsafe member.unsigned(DW_AT_bit_size)
      if let position = unsafe member.unsigned(DW_AT_data_bit_offset) {
        offset = position
      } else if let position = unsafe member.unsigned(DW_AT_data_member_location) {
        offset = position &* 8
      } else if unsafe member.has(DW_AT_data_member_location) {
        throw .malformed(
          path: path,
          what: "member \(unsafe member.name) of struct \(unsafe die.name) has no fixed place")
      }
      // Until DWARF 3, and by GCC until version 10, counted from the highest bit of a unit.
      if let bits, let fromTop = unsafe member.unsigned(DW_AT_bit_offset) {
        let unit = unsafe member.unsigned(DW_AT_byte_size) ?? member.type?.resolvedSize ?? 0
        offset = offset &+ unit &* 8 &- fromTop &- bits
      }
      members.append(
        unsafe CollectedMember(
          name: member.name, type: try target(member), bitOffset: offset, bitSize: bits))
    }
    return members
  }

  private func enumeration(_ die: Dwarf_Die) -> CollectedType {
    var constants: [(name: String, value: Int64)] = []
    var children = unsafe DIEChildren(die)
    while let constant = unsafe children.next() {
      guard unsafe constant.tag == DW_TAG_enumerator else { continue }
      unsafe constants.append((constant.name, constant.signed(DW_AT_const_value) ?? 0))
    }
    return unsafe .enumeration(name: die.name, size: die.size, constants)
  }

  private mutating func array(_ die: Dwarf_Die) throws(DebugFileError) -> CollectedType {
    var counts: [UInt32] = []
    var children = unsafe DIEChildren(die)
    while let range = unsafe children.next() {
      guard unsafe range.tag == DW_TAG_subrange_type else { continue }
      counts.append(unsafe range.elementCount)
    }
    // The last dimension varies fastest: an array of arrays, of which the innermost is written first.
    var element = try unsafe target(die)
    for count in counts.dropFirst().reversed() {
      types.append(.array(element, count: count))
      element = types.count
    }
    return .array(element, count: counts.first ?? 0)
  }

  // MARK: Writing

  func btf(base: BTF?) -> [UInt8] {
    var definitions: [String: Int] = [:]
    for (index, type) in types.enumerated() {
      if case .structure(let name, _, let isUnion, _) = type, !name.isEmpty {
        let key = (isUnion ? "u " : "s ") + name
        if definitions[key] == nil { definitions[key] = index + 1 }
      }
    }
    let firstID = Int(base?.idLimit ?? 1)
    var writer = BTFWriter(base: base) { [types] id in
      // A type that one unit only declares is what another defines, or the kernel.
      guard id > 0, case .forward(let name, let isUnion) = types[id - 1] else { return id }
      if let definition = definitions[(isUnion ? "u " : "s ") + name] { return definition }
      guard let definition = base?.structure(named: name),
        definition.kind == (isUnion ? .union : .structure)
      else { return id }
      return Int(definition.id) - firstID + 1
    }
    for type in types { writer.write(type) }
    return writer.bytes
  }
}

/// The children of a DIE, one after another.
@safe struct DIEChildren {
  private var following: Dwarf_Die?

  init(_ parent: Dwarf_Die) {
    var parent = unsafe parent
    var child = unsafe Dwarf_Die()
    unsafe following = dwarf_child(&parent, &child) == 0 ? child : nil
  }

  mutating func next() -> Dwarf_Die? {
    guard var die = unsafe following else { return nil }
    var sibling = unsafe Dwarf_Die()
    unsafe following = dwarf_siblingof(&die, &sibling) == 0 ? sibling : nil
    return unsafe die
  }
}

extension Dwarf_Die {
  private func with<Result>(_ body: (UnsafeMutablePointer<Dwarf_Die>) -> Result) -> Result {
    var copy = unsafe self
    return unsafe withUnsafeMutablePointer(to: &copy) { unsafe body($0) }
  }

  private func attribute(_ name: Int) -> Dwarf_Attribute? {
    var attribute = unsafe Dwarf_Attribute()
    let found = unsafe with { unsafe dwarf_attr($0, UInt32(name), &attribute) != nil }
    return unsafe found ? attribute : nil
  }

  fileprivate var tag: Int32 { unsafe with { unsafe dwarf_tag($0) } }

  /// Where it lies in `.debug_info`.
  fileprivate var offset: UInt64 { unsafe with { unsafe dwarf_dieoffset($0) } }

  fileprivate var name: String {
    unsafe with { unsafe dwarf_diename($0).map { unsafe String(cString: $0) } ?? "" }
  }

  fileprivate func has(_ name: Int) -> Bool { unsafe attribute(name) != nil }

  fileprivate func unsigned(_ name: Int) -> UInt64? {
    guard var attribute = unsafe attribute(name) else { return nil }
    var value: Dwarf_Word = 0
    return unsafe dwarf_formudata(&attribute, &value) == 0 ? value : nil
  }

  fileprivate func signed(_ name: Int) -> Int64? {
    guard var attribute = unsafe attribute(name) else { return nil }
    var value: Dwarf_Sword = 0
    return unsafe dwarf_formsdata(&attribute, &value) == 0 ? Int64(value) : nil
  }

  fileprivate var size: UInt64 { unsafe unsigned(DW_AT_byte_size) ?? 0 }

  fileprivate var isDeclaration: Bool { unsafe has(DW_AT_declaration) }

  fileprivate var type: Dwarf_Die? {
    guard var attribute = unsafe attribute(DW_AT_type) else { return nil }
    var die = unsafe Dwarf_Die()
    return unsafe dwarf_formref_die(&attribute, &die) == nil ? nil : die
  }

  /// The size behind typedefs and qualifiers.
  fileprivate var resolvedSize: UInt64? {
    var die = unsafe self
    for _ in 0..<64 {
      if let size = unsafe die.unsigned(DW_AT_byte_size) { return size }
      guard let type = unsafe die.type else { return nil }
      unsafe die = type
    }
    return nil
  }

  /// Of a dimension of an array: 0 if it is flexible.
  fileprivate var elementCount: UInt32 {
    if let count = unsafe unsigned(DW_AT_count) { return UInt32(clamping: count) }
    guard let last = unsafe unsigned(DW_AT_upper_bound), last < UInt64(UInt32.max) else { return 0 }
    return UInt32(last) + 1
  }
}
