import Memory

/// Where a processor keeps the fields of a VMCS in its region, which Intel does not tell.
public struct VMCSLayout: Sendable {
  /// Where the layout was learnt, as it is told to the user.
  public let origin: String
  /// The revision identifier that it belongs to (IA32_VMX_BASIC bits 30:0), if that is known.
  /// Layouts and identifiers do not belong together one to one.
  public let revision: UInt32?
  private var places: [VMCSField: Place] = [:]
  package var accessRights: AccessRightsForm
  /// Why each field lies where it does, of a layout that was inferred.
  package private(set) var evidence: [VMCSField: String] = [:]
  /// True if it was inferred from VMCSs instead of measured or published.
  package var isInferred: Bool { !evidence.isEmpty }

  /// How a field is stored.
  package enum Place: Hashable, Sendable {
    /// In consecutive bytes.
    case bytes(offset: Int, size: Int)
    /// Bit by bit: for each bit of the value its bit in the region, nil for one that is not stored.
    case bits([UInt16?])
    /// In consecutive bytes at one of several places.
    case oneOf(offsets: [Int], size: Int)
  }

  /// How the eight fields of access rights are stored. None of the ways is documented; they show
  /// in regions of real processors.
  package enum AccessRightsForm: String, Hashable, Sendable, CaseIterable {
    case plain
    /// The value rotated left by 8.
    case rotated
    /// In 16 bits: the low ones of the value, with "unusable" (bit 16) in bit 11, which is reserved.
    case packed
  }

  package init(
    origin: String, revision: UInt32?, places: [VMCSField: Place],
    accessRights: AccessRightsForm, evidence: [VMCSField: String] = [:]
  ) {
    self.origin = origin
    self.revision = revision
    self.places = places
    self.accessRights = accessRights
    self.evidence = evidence
  }

  /// The revision identifier in the head of a region: bits 30:0 of its first doubleword (SDM
  /// vol. 3C 24.2).
  package static func revision(of region: [UInt8]) -> UInt32 {
    (region.load(UInt32.self, at: 0) ?? 0) & 0x7fff_ffff
  }

  /// The fields that the layout knows, in order.
  package var fields: [VMCSField] { places.keys.sorted() }

  package func place(of field: VMCSField) -> Place? { places[field] }

  /// Where a field's bytes begin: more than one offset if it is one of them, none if its bits are
  /// scattered.
  package func offsets(of field: VMCSField) -> [Int] {
    switch places[field] {
    case .bytes(let offset, _): [offset]
    case .oneOf(let offsets, _): offsets
    case .bits, nil: []
    }
  }

  /// Where a field's bytes lie, if they lie together.
  package func offset(of field: VMCSField) -> Int? {
    if case .bytes(let offset, _) = places[field] { offset } else { nil }
  }

  /// How many bytes a field takes in the region, if they lie together.
  package func storedSize(of field: VMCSField) -> Int? {
    guard case .bytes(_, let size) = places[field] else { return nil }
    return field.isAccessRights ? accessRights.size : size
  }

  /// A field's value in a region, as VMREAD gives it; nil if the layout does not know the field, if
  /// the places where it may lie differ, or if the region ends before it.
  package func value(of field: VMCSField, in region: [UInt8]) -> UInt64? {
    switch places[field] {
    case nil: return nil
    case .bits(let bits):
      var value: UInt64 = 0
      for (index, bit) in bits.enumerated().prefix(64) {
        guard let bit else { continue }
        guard let byte = region.load(UInt8.self, at: Int(bit >> 3)) else { return nil }
        value |= UInt64(byte >> (bit & 7) & 1) << UInt64(index)
      }
      return value
    case .bytes(let offset, let size):
      return decoded(Self.load(region, offset, size), as: field)
    case .oneOf(let offsets, let size):
      let stored = Set(offsets.map { Self.load(region, $0, size) })
      return stored.count == 1 ? decoded(stored.first ?? nil, as: field) : nil
    }
  }

  private func decoded(_ stored: UInt64?, as field: VMCSField) -> UInt64? {
    guard let stored, field.isAccessRights else { return stored }
    return accessRights.decode(UInt32(truncatingIfNeeded: stored))
  }

  private static func load(_ region: [UInt8], _ offset: Int, _ size: Int) -> UInt64? {
    switch size {
    case 1: region.load(UInt8.self, at: offset).map(UInt64.init)
    case 2: region.load(UInt16.self, at: offset).map(UInt64.init)
    case 4: region.load(UInt32.self, at: offset).map(UInt64.init)
    case 8: region.load(UInt64.self, at: offset)
    default: nil
    }
  }
}

extension VMCSLayout.AccessRightsForm {
  /// Bytes that a field takes.
  package var size: Int { self == .packed ? 2 : 4 }

  package func decode(_ stored: UInt32) -> UInt64 {
    switch self {
    case .plain: UInt64(stored)
    case .rotated: UInt64(stored >> 8 | stored << 24)
    case .packed: UInt64(stored & 0xf0ff | (stored & 0x800) << 5)
    }
  }

  package func encode(_ value: UInt32) -> UInt32 {
    switch self {
    case .plain: value
    case .rotated: value << 8 | value >> 24
    case .packed: value & 0xf0ff | (value >> 5) & 0x800
    }
  }
}

extension VMCSLayout.AccessRightsForm {
  /// For each bit of the value its bit in the region, nil if it is not stored; nil if the value is
  /// stored as it is read.
  package func bits(at offset: Int) -> [UInt16?]? {
    if self == .plain { return nil }
    return (0..<32 as Range<UInt32>).map { bit in
      let stored = encode(1 << bit)
      return stored == 0 ? nil : UInt16(clamping: offset * 8 + stored.trailingZeroBitCount)
    }
  }
}

extension VMCSField {
  /// GUEST_ES_AR_BYTES to GUEST_TR_AR_BYTES.
  package var isAccessRights: Bool { (0x4814...0x4822).contains(encoding) }
}
