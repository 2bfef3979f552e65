import Memory
import Synchronization

/// Type information in BTF (Documentation/bpf/btf.rst, include/uapi/linux/btf.h): the types of a
/// kernel, or those that a module adds to the kernel's ("split" BTF).
///
/// All references between types, and to names, are checked at the start, so that using the types
/// cannot fail.
public final class BTF: Sendable {
  private let bytes: [UInt8]
  private let base: BTF?
  let strings: BTFStrings
  /// The number of the first type. A module's continue those of its base; 0 is `void`.
  private let firstID: UInt32
  /// Where the record of each type begins in ``bytes``.
  private let records: [UInt32]
  private let layouts: [BTFLayout]
  /// Members that were looked up: where the host has swapped, the same few are wanted of millions of
  /// pages.
  private let foundMembers = Mutex<[MemberKey: FoundMember?]>([:])
  /// The named structures and unions: hash of the name << 32 | number of the type, sorted.
  private let structures: [UInt64]

  /// Size of the part that all records have: `struct btf_type`.
  private static let recordSize = 12
  /// Size of `struct btf_member`.
  private static let memberSize = 12

  /// Parses BTF as it lies in a kernel's memory (`__start_BTF` to `__stop_BTF`) or in a section
  /// `.BTF`. A module's needs the one of the kernel that it was built for as its `base`.
  public init(_ bytes: [UInt8], base: BTF? = nil) throws(BTFError) {
    let header = try BTFHeader(bytes)
    let layouts = Self.layouts(bytes, header.layout) ?? base?.layouts ?? []
    let firstID = base?.idLimit ?? 1
    let records = try Self.index(bytes, header.types, layouts, firstID: firstID)
    let strings = try BTFStrings(bytes, header.strings, base: base)
    self.bytes = bytes
    self.base = base
    self.strings = strings
    self.firstID = firstID
    self.records = records
    self.layouts = layouts
    structures = Self.structures(bytes, records, strings, firstID: firstID)
    try checkReferences()
  }

  /// Number of types here, without those of the base and without `void`.
  public var typeCount: Int { records.count }

  /// The first number behind those of the types.
  var idLimit: UInt32 { firstID + UInt32(records.count) }

  /// The definition of a structure or union, not of a typedef. A module's hides its base's. Where
  /// a kernel has several of one name it is the first.
  public func structure(named name: String) -> BTFType? {
    let wanted = Array(name.utf8)
    let hash = UInt64(BTFStrings.hash(wanted.prefix(BTFStrings.maximumNameLength)))
    let first = structures.partitioningIndex { $0 >> 32 >= hash }
    for entry in structures[first...].prefix(while: { $0 >> 32 == hash }) {
      let id = UInt32(truncatingIfNeeded: entry)
      if strings.equal(wanted, at: nameOffset(of: id)) { return BTFType(self, id) }
    }
    return base?.structure(named: name)
  }

  /// The value of an enumeration's constant. Unsigned values beyond Int64's range keep their bits.
  public func enumerator(named name: String) -> Int64? {
    let wanted = Array(name.utf8)
    for (index, record) in records.enumerated() {
      let kind = Self.kind(bytes, record)
      guard kind == .enumeration || kind == .enumeration64 else { continue }
      let id = firstID + UInt32(index)
      for element in elements(of: id) where strings.equal(wanted, at: word(element)) {
        let low = word(element + 4)
        return switch (kind, flag(of: id)) {
        case (.enumeration64, _): Int64(bitPattern: UInt64(word(element + 8)) << 32 | UInt64(low))
        case (_, true): Int64(Int32(bitPattern: low))
        case (_, false): Int64(low)
        }
      }
    }
    return base?.enumerator(named: name)
  }

  /// A member that was looked up before, or that `find` finds.
  func member(_ name: String, of id: UInt32, _ find: () -> BTFMember?) -> BTFMember? {
    let key = MemberKey(type: id, name: name)
    let known = foundMembers.withLock { $0[key] }
    if let known {
      return known.map {
        BTFMember(
          name: name, type: type($0.type), bitOffset: $0.bitOffset, bitSize: $0.bitSize)
      }
    }
    let member = find()
    let found = member.map {
      FoundMember(type: $0.type.id, bitOffset: $0.bitOffset, bitSize: $0.bitSize)
    }
    foundMembers.withLock { $0[key] = .some(found) }
    return member
  }

  private struct MemberKey: Hashable {
    let type: UInt32
    let name: String
  }

  /// By number, as the type itself would keep the BTF.
  private struct FoundMember {
    let type: UInt32
    let bitOffset: UInt64
    let bitSize: UInt64?
  }

  /// The type of that number, as one of the BTF that defines it.
  func type(_ id: UInt32) -> BTFType {
    if id != 0, id < firstID, let base { return base.type(id) }
    return BTFType(self, id < idLimit ? id : 0)
  }
}

// MARK: - Records of types, by the number of one of this BTF's own types

extension BTF {
  /// Where the record of a type begins; nil for `void`, which has none.
  private func record(of id: UInt32) -> Int? {
    id >= firstID && id < idLimit ? Int(records[Int(id - firstID)]) : nil
  }

  private func word(_ position: Int) -> UInt32 { bytes.load(at: position) ?? 0 }

  func kind(of id: UInt32) -> BTFKind {
    record(of: id).map { Self.kind(bytes, UInt32($0)) } ?? .void
  }

  private static func kind(_ bytes: [UInt8], _ record: UInt32) -> BTFKind {
    // Bits 24 to 30, of which 29 and 30 were unused and zero before 2026.
    let info: UInt32 = bytes.load(at: Int(record) + 4) ?? 0
    return BTFKind(rawValue: UInt8(info >> 24 & 0x7f)) ?? .unknown
  }

  func nameOffset(of id: UInt32) -> UInt32 { record(of: id).map(word) ?? 0 }

  /// `kind_flag`: what it means depends on the kind.
  func flag(of id: UInt32) -> Bool {
    record(of: id).map { word($0 + 4) >> 31 == 1 } ?? false
  }

  /// `vlen`: the number of members, constants or parameters.
  func elementCount(of id: UInt32) -> Int {
    // Bits 0 to 23, of which 16 to 23 were unused and zero before 2026.
    record(of: id).map { Int(word($0 + 4) & 0xff_ffff) } ?? 0
  }

  /// `size` or `type`, which share a place.
  func sizeOrType(of id: UInt32) -> UInt32 {
    record(of: id).map { word($0 + 8) } ?? 0
  }

  /// A word of what follows the first part of the record: of an integer or an array.
  func detail(_ index: Int, of id: UInt32) -> UInt32 {
    record(of: id).map { word($0 + Self.recordSize + index * 4) } ?? 0
  }

  /// A word of a member of a structure or union: name, type, offset.
  func member(_ index: Int, of id: UInt32) -> (name: UInt32, type: UInt32, offset: UInt32) {
    let element = (record(of: id) ?? bytes.count) + Self.recordSize + index * Self.memberSize
    return (word(element), word(element + 4), word(element + 8))
  }

  /// Where the members, constants, parameters or variables of a type are. Empty for other kinds.
  private func elements(of id: UInt32) -> StrideTo<Int> {
    let kind = kind(of: id)
    guard let record = record(of: id), kind != .unknown else {
      return stride(from: 0, to: 0, by: 1)
    }
    let size = BTFLayout.known[Int(kind.rawValue)].element
    let start = record + Self.recordSize
    guard size > 0 else { return stride(from: start, to: start, by: 1) }
    return stride(from: start, to: start + elementCount(of: id) * size, by: size)
  }
}

// MARK: - Parsing

extension BTF {
  /// The sizes of kinds as the writer told them (`struct btf_layout`), nil without any.
  private static func layouts(_ bytes: [UInt8], _ section: Range<Int>) -> [BTFLayout]? {
    guard section.count >= 4 else { return nil }
    return stride(from: section.lowerBound, to: section.upperBound - 3, by: 4).map { position in
      BTFLayout(single: Int(bytes[position]), element: Int(bytes[position + 1]))
    }
  }

  private static func index(
    _ bytes: [UInt8], _ section: Range<Int>, _ layouts: [BTFLayout], firstID: UInt32
  ) throws(BTFError) -> [UInt32] {
    var records: [UInt32] = []
    var position = section.lowerBound
    while position < section.upperBound {
      let id = firstID &+ UInt32(truncatingIfNeeded: records.count)
      guard section.upperBound - position >= recordSize,
        let info: UInt32 = bytes.load(at: position + 4),
        let record = UInt32(exactly: position), id < .max
      else { throw .truncatedType(id: id, offset: position - section.lowerBound) }
      let kind = Int(info >> 24 & 0x7f)
      let layout: BTFLayout
      if kind > 0, kind < BTFLayout.known.count {
        layout = BTFLayout.known[kind]
      } else if kind > 0, kind < layouts.count {
        layout = layouts[kind]
      } else {
        throw .unknownKind(UInt8(kind), id: id)
      }
      let size = recordSize + layout.single + layout.element * Int(info & 0xff_ffff)
      guard size <= section.upperBound - position else {
        throw .truncatedType(id: id, offset: position - section.lowerBound)
      }
      records.append(record)
      position += size
    }
    return records
  }

  private static func structures(
    _ bytes: [UInt8], _ records: [UInt32], _ strings: BTFStrings, firstID: UInt32
  ) -> [UInt64] {
    var structures: [UInt64] = []
    for (index, record) in records.enumerated() {
      let kind = kind(bytes, record)
      guard kind == .structure || kind == .union, let name: UInt32 = bytes.load(at: Int(record)),
        !strings.isEmpty(name)
      else { continue }
      structures.append(UInt64(strings.hash(at: name)) << 32 | UInt64(firstID + UInt32(index)))
    }
    structures.sort()
    return structures
  }

  /// Checks that every name and every type referred to exists. A module's BTF that does not belong
  /// to this base fails here.
  private func checkReferences() throws(BTFError) {
    for (index, record) in records.enumerated() {
      let id = firstID + UInt32(index)
      let record = Int(record)
      try checkName(word(record), of: id)
      switch Self.kind(bytes, records[index]) {
      case .pointer, .typedef, .volatile, .const, .restrict, .function, .variable,
        .declarationTag, .typeTag:
        try checkType(word(record + 8), of: id)
      case .array:
        try checkType(detail(0, of: id), of: id)
        try checkType(detail(1, of: id), of: id)
      case .structure, .union:
        for element in elements(of: id) {
          try checkName(word(element), of: id)
          try checkType(word(element + 4), of: id)
        }
      case .functionPrototype:
        try checkType(word(record + 8), of: id)
        for element in elements(of: id) {
          try checkName(word(element), of: id)
          try checkType(word(element + 4), of: id)
        }
      case .enumeration, .enumeration64:
        for element in elements(of: id) { try checkName(word(element), of: id) }
      case .dataSection:
        for element in elements(of: id) { try checkType(word(element), of: id) }
      case .void, .integer, .forward, .float, .unknown:
        break
      }
    }
  }

  private func checkName(_ name: UInt32, of id: UInt32) throws(BTFError) {
    guard name < strings.limit else {
      throw .nameOutOfRange(id: id, name: name, limit: strings.limit)
    }
    guard !strings.isForeign(name) else { throw .foreignBase(id: id, name: name) }
  }

  private func checkType(_ reference: UInt32, of id: UInt32) throws(BTFError) {
    guard reference < idLimit else {
      throw .typeOutOfRange(id: id, reference: reference, limit: idLimit - 1)
    }
  }
}
