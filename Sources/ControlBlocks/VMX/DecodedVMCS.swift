import X86

/// A VMCS region seen through a layout.
package struct DecodedVMCS: Sendable {
  package let layout: VMCSLayout
  package let region: [UInt8]

  package init(layout: VMCSLayout, region: [UInt8]) {
    self.layout = layout
    self.region = region
  }

  package func value(_ field: VMCSField) -> UInt64? { layout.value(of: field, in: region) }

  package func reading(_ field: VMCSField) -> Reading<UInt64> {
    guard let value = value(field) else { return .unknown(reason: whyUnknown(field)) }
    return .known(value, RegisterSource(.vmcs, field.label))
  }

  private func whyUnknown(_ field: VMCSField) -> String {
    let count = layout.offsets(of: field).count
    return count > 1
      ? "inferring the layout of the VMCS left \(count) places for \(field.label), which differ"
      : "the layout of the VMCS does not have \(field.label)"
  }

  package func table(base: VMCSField, limit: VMCSField) -> Reading<DescriptorTable> {
    guard let start = value(base), let size = value(limit) else {
      return .unknown(reason: whyUnknown(value(base) == nil ? base : limit))
    }
    return .known(
      DescriptorTable(base: start, limit: UInt32(truncatingIfNeeded: size)),
      RegisterSource(.vmcs, base.label + " and its limit"))
  }
}

extension VMCSLayout {
  /// The layout with the form of access rights that makes sense of most regions, if the one told
  /// does not: bits that are reserved read as zero, and TR, always usable, is a present task.
  package func withAccessRights(fitting regions: [[UInt8]]) -> VMCSLayout {
    // Of those that fit alike the first: the one told.
    let forms = [accessRights, .plain, .rotated, .packed]
    let fitting = forms.map { form in
      var copy = self
      copy.accessRights = form
      return (copy, regions.count { copy.accessRightsMakeSense(in: $0) })
    }
    let most = fitting.map(\.1).max() ?? 0
    return fitting.first { $0.1 == most }?.0 ?? self
  }

  private func accessRightsMakeSense(in region: [UInt8]) -> Bool {
    let rights = (0..<8).compactMap { value(of: .accessRights($0), in: region) }
    guard let task = rights.last, rights.allSatisfy({ $0 & 0xfffe_0f00 == 0 }) else { return false }
    // Type 3 or 11, not a code or data segment, present, usable (SDM vol. 3C 26.3.1.2).
    return task & 0x1_0097 == 0x83
  }
}
