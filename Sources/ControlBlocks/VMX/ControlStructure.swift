import Guest
import Memory

/// One vCPU's VMCS, for those who want to see it whole.
package struct ControlStructure: Sendable {
  /// The guest and the vCPU that it belongs to; nil if it was found in memory and no vCPU's it is.
  package let owner: (guest: GuestIdentity, processor: Int)?
  /// Where it lies in the host, if that is told.
  package let address: PhysicalAddress?
  /// True if it is that of a guest's guest: vmcs02.
  package let runsNestedGuest: Bool
  /// The host's processor that it was loaded on last.
  package let hostProcessor: Int64?
  package let region: [UInt8]
  package let state: State
  /// What is known of fields without the structure: from where, and whether the structure agrees.
  private let known: [VMCSField: (origin: String, agrees: Bool)]

  package init(
    owner: (guest: GuestIdentity, processor: Int)?, address: PhysicalAddress?,
    runsNestedGuest: Bool, hostProcessor: Int64?, region: [UInt8], state: State,
    known: [VMCSField: (origin: String, agrees: Bool)] = [:]
  ) {
    self.owner = owner
    self.address = address
    self.runsNestedGuest = runsNestedGuest
    self.hostProcessor = hostProcessor
    self.region = region
    self.state = state
    self.known = known
  }

  package enum State: Sendable {
    /// It is current: `agreeing` of the `compared` values that are known of it are in it.
    case current(VMCSLayout, agreeing: Int, compared: Int)
    /// It is not, for the reason given.
    case stale(String)
    /// No layout is known that it has.
    case noLayout
  }

  /// A field with what is known about it.
  package struct Field: Sendable {
    /// As VMREAD takes it.
    package let encoding: UInt32
    /// Linux's name, where it has one.
    package let name: String
    package let area: Area
    /// Bytes of the value.
    package let size: Int
    /// Nil if the places where it may lie hold different values.
    package let value: UInt64?
    /// Where the layout has it: offsets in bytes, more than one if it is one of them.
    package let offsets: [Int]
    /// Why the layout has it there, if it was inferred.
    package let evidence: String?
    /// What KVM or the host's kernel knows of the value, and whether that agrees.
    package let known: (origin: String, agrees: Bool)?
  }

  /// The groups that the SDM has fields in (vol. 3C 24.3).
  package enum Area: String, Sendable, CaseIterable {
    case guest = "guest-state area"
    case host = "host-state area"
    case control = "control fields"
    case readOnly = "VM-exit information fields"
  }

  /// The fields that the layout has, in the order of the SDM's areas.
  package var fields: [Field] {
    guard let layout else { return [] }
    return layout.fields.map { field in
      Field(
        encoding: field.encoding, name: field.label, area: field.area, size: field.size,
        value: layout.value(of: field, in: region), offsets: layout.offsets(of: field),
        evidence: layout.evidence[field], known: known[field])
    }
  }

  /// The revision identifier in its head.
  package var revision: UInt32 { VMCSLayout.revision(of: region) }

  /// The layout that it was read by.
  package var layout: VMCSLayout? {
    if case .current(let layout, _, _) = state { layout } else { nil }
  }
}

extension VMCSField {
  /// Bits 11:10 of the encoding (SDM vol. 3C 24.11.2).
  fileprivate var area: ControlStructure.Area {
    switch group & 3 {
    case 0: .control
    case 1: .readOnly
    case 2: .guest
    default: .host
    }
  }
}
