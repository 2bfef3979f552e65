import Memory

/// A vCPU's control block as the core of its VMM carries it: the notes `VMCS` and `VMCB`
/// (docs/VMCSINFO.md, section 8).
package struct ControlBlockNote: Hashable, Sendable {
  /// Whose processor the block is for.
  package enum Kind: String, CaseIterable, Hashable, Sendable {
    /// Intel's, in the layout of the core's note `VMCSINFO`.
    case vmcs = "VMCS"
    /// AMD's.
    case vmcb = "VMCB"
  }

  package let kind: Kind
  /// The vCPU's number.
  package let processor: Int
  /// True if memory held what the processor had when the vCPU left guest mode last.
  package var isCurrent: Bool
  /// True if it is that of a guest which the guest ran.
  package let runsNestedGuest: Bool
  /// Where in the host it was.
  package let address: PhysicalAddress?
  package let block: [UInt8]

  package init(
    kind: Kind, processor: Int, isCurrent: Bool, runsNestedGuest: Bool,
    address: PhysicalAddress?, block: [UInt8]
  ) {
    self.kind = kind
    self.processor = processor
    self.isCurrent = isCurrent
    self.runsNestedGuest = runsNestedGuest
    self.address = address
    self.block = block
  }

  /// The notes' type: none that gdb, which looks at the type alone, takes for another.
  package static let type: UInt32 = 0

  /// The head of the description: its own size, the vCPU, flags, 0, the host-physical address.
  private enum Offset {
    static let processor = 4
    static let flags = 8
    static let address = 16
    static let end = 24
  }

  private enum Flag {
    static let current: UInt32 = 1
    static let nested: UInt32 = 2
  }

  private static let noAddress = UInt64.max
  /// VMCS regions have at most a page (SDM vol. 3C, 25.11.5), VMCBs have one.
  private static let blockLimit = Int(pageSize)

  /// The block out of a note's description; nil if it is cut short.
  package init?(name: String, description bytes: [UInt8]) {
    guard let kind = Kind(rawValue: name), let head: UInt32 = bytes.load(at: 0),
      let start = Int(exactly: head), start >= Offset.end, start <= bytes.count,
      let processor: UInt32 = bytes.load(at: Offset.processor),
      let flags: UInt32 = bytes.load(at: Offset.flags),
      let address: UInt64 = bytes.load(at: Offset.address)
    else { return nil }
    self.init(
      kind: kind, processor: Int(processor), isCurrent: flags & Flag.current != 0,
      runsNestedGuest: flags & Flag.nested != 0,
      address: address == Self.noAddress ? nil : PhysicalAddress(address),
      block: Array(bytes[start...].prefix(Self.blockLimit)))
  }

  package var description: [UInt8] {
    var bytes: [UInt8] = []
    bytes.append(littleEndian: UInt32(Offset.end))
    bytes.append(littleEndian: UInt32(clamping: processor))
    bytes.append(
      littleEndian: (isCurrent ? Flag.current : 0) | (runsNestedGuest ? Flag.nested : 0))
    bytes.append(littleEndian: UInt32(0))
    bytes.append(littleEndian: address?.rawValue ?? Self.noAddress)
    return bytes + block
  }
}
