/// A segment register with its hidden part.
public struct Segment: Hashable, Sendable {
  public var selector: UInt16
  public var base: UInt64
  /// In bytes, as the processor keeps it: already scaled by granularity.
  public var limit: UInt32
  public var attributes: SegmentAttributes

  public init(selector: UInt16, base: UInt64, limit: UInt32, attributes: SegmentAttributes) {
    self.selector = selector
    self.base = base
    self.limit = limit
    self.attributes = attributes
  }
}

/// A segment's attributes, held where a descriptor's upper doubleword has them: type in bits 8-11,
/// S 12, DPL 13-14, P 15, AVL 20, L 21, D/B 22, G 23 (SDM vol. 3A 3.4.5). QEMU's notes use the same
/// form.
public struct SegmentAttributes: Hashable, Sendable {
  public var rawValue: UInt32

  public init(descriptor rawValue: UInt32) {
    self.rawValue = rawValue & 0x00f0_ff00
  }

  /// From a VMCB, which packs bits 8-15 and 20-23 of the descriptor into 12 bits (APM vol. 2,
  /// 15.5.1).
  public init(vmcb packed: UInt16) {
    self.init(descriptor: (UInt32(packed) & 0xff) << 8 | (UInt32(packed) & 0xf00) << 12)
  }

  /// From the access rights of a VMCS (SDM vol. 3C 24.4.1): descriptor bits 8-15 in 0-7, 20-23 in
  /// 12-15, and "unusable" in 16.
  public init(vmx rights: UInt32) {
    self.init(
      descriptor: rights & 1 << 16 != 0 ? 0 : (rights & 0xff) << 8 | (rights & 0xf000) << 8)
  }

  /// A segment that cannot be used.
  public static let unusable = SegmentAttributes(descriptor: 0)

  public var type: UInt32 {
    get { rawValue >> 8 & 0xf }
    set { rawValue = rawValue & ~0xf00 | (newValue & 0xf) << 8 }
  }

  public var privilegeLevel: UInt32 {
    get { rawValue >> 13 & 3 }
    set { rawValue = rawValue & ~0x6000 | (newValue & 3) << 13 }
  }

  public var isPresent: Bool { rawValue & 1 << 15 != 0 }

  public var hasPageGranularity: Bool {
    get { rawValue & 1 << 23 != 0 }
    set { rawValue = rawValue & ~(1 << 23) | (newValue ? 1 << 23 : 0) }
  }
}

/// GDTR or IDTR.
public struct DescriptorTable: Hashable, Sendable {
  public var base: UInt64
  public var limit: UInt32

  public init(base: UInt64, limit: UInt32) {
    self.base = base
    self.limit = limit
  }
}
