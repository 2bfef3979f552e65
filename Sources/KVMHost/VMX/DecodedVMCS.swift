import X86

/// A VMCS region seen through a layout.
struct DecodedVMCS {
  let layout: VMCSLayout
  let region: [UInt8]

  func value(_ field: VMCSField) -> UInt64? { layout.value(of: field, in: region) }

  func name(_ field: VMCSField) -> String {
    field.name ?? "field 0x" + String(field.encoding, radix: 16)
  }

  func reading(_ field: VMCSField) -> Reading<UInt64> {
    guard let value = value(field) else {
      return .unknown(reason: "the layout of the VMCS does not have \(name(field))")
    }
    return .known(value, RegisterSource(.vmcs, name(field)))
  }

  /// A segment by its number in the encodings: ES CS SS DS FS GS LDTR TR.
  func segment(_ number: Int) -> Reading<Segment> {
    let step = UInt32(2 * number)
    let fields = [0x0800, 0x6806, 0x4800, 0x4814].map { VMCSField($0 + step) }
    let values = fields.map { value($0) }
    guard let selector = values[0], let base = values[1], let limit = values[2],
      let rights = values[3]
    else {
      let missing = zip(fields, values).first { $0.1 == nil }.map { name($0.0) } ?? ""
      return .unknown(reason: "the layout of the VMCS does not have \(missing)")
    }
    return .known(
      Segment(
        selector: UInt16(truncatingIfNeeded: selector), base: base,
        limit: UInt32(truncatingIfNeeded: limit),
        attributes: SegmentAttributes(vmx: UInt32(truncatingIfNeeded: rights))),
      RegisterSource(.vmcs, name(fields[0]) + " and its base, limit, access rights"))
  }

  func table(base: VMCSField, limit: VMCSField) -> Reading<DescriptorTable> {
    guard let start = value(base), let size = value(limit) else {
      return .unknown(reason: "the layout of the VMCS does not have \(name(base))")
    }
    return .known(
      DescriptorTable(base: start, limit: UInt32(truncatingIfNeeded: size)),
      RegisterSource(.vmcs, name(base) + " and its limit"))
  }
}

extension VMCSLayout {
  /// The layout with the form of access rights that makes sense of a region, if the one told does
  /// not: bits that are reserved read as zero, and TR, always usable, is a present task.
  func withAccessRights(fitting region: [UInt8]) -> VMCSLayout {
    var copy = self
    for form in [accessRights, .plain, .rotated, .packed] {
      copy.accessRights = form
      let rights = stride(from: UInt32(0x4814), through: 0x4822, by: 2)
        .compactMap { copy.value(of: VMCSField($0), in: region) }
      let reserved: UInt64 = 0xfffe_0f00
      guard let task = rights.last, rights.allSatisfy({ $0 & reserved == 0 }) else { continue }
      // Type 3 or 11, not a code or data segment, present, usable (SDM vol. 3C 26.3.1.2).
      if task & 0x1_0097 == 0x83 { return copy }
    }
    return self
  }
}
