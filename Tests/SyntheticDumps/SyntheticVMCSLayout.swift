import Memory

/// Where a synthetic processor keeps the fields of a VMCS.
public struct SyntheticVMCSLayout: Sendable {
  /// How it stores access rights.
  public enum AccessRights: CaseIterable, Sendable {
    case plain
    /// Rotated left by 8.
    case rotated
    /// In 16 bits, with bit 16 in bit 11.
    case packed
  }

  public var revision: UInt32
  /// Offset and bytes by encoding.
  public var places: [UInt32: (offset: Int, size: Int)]
  public var accessRights: AccessRights

  public init(
    revision: UInt32, places: [UInt32: (offset: Int, size: Int)],
    accessRights: AccessRights = .plain
  ) {
    self.revision = revision
    self.places = places
    self.accessRights = accessRights
  }

  /// Every field of the architecture, one behind the other in an order of the seed's.
  public init(seed: UInt64, accessRights: AccessRights = .plain) {
    var generator = SeededGenerator(seed: seed &+ 0x12a)
    var places: [UInt32: (offset: Int, size: Int)] = [:]
    var offset = 0x20
    for encoding in Self.encodings.shuffled(using: &generator) {
      let size =
        accessRights == .packed && Self.isAccessRights(encoding) ? 2 : Self.size(of: encoding)
      offset = (offset + size - 1) / size * size
      places[encoding] = (offset, size)
      offset += size
    }
    self.init(
      revision: UInt32.random(in: 0x100...0x7fff_ffff, using: &generator), places: places,
      accessRights: accessRights)
  }

  /// SDM vol. 3D, appendix B.
  public static let encodings: [UInt32] = [
    0x0000...0x0004, 0x0800...0x0812, 0x0c00...0x0c0c, 0x2000...0x202e, 0x2400...0x2400,
    0x2800...0x2812, 0x2c00...0x2c04, 0x4000...0x4022, 0x4400...0x440e, 0x4800...0x482a,
    0x482e...0x482e, 0x4c00...0x4c00, 0x6000...0x600e, 0x6400...0x640a, 0x6800...0x6826,
    0x6c00...0x6c16,
  ].flatMap { (range: ClosedRange<UInt32>) in
    stride(from: range.lowerBound, through: range.upperBound, by: 2)
  }

  public static func isAccessRights(_ encoding: UInt32) -> Bool {
    (0x4814...0x4822).contains(encoding)
  }

  /// Bytes that VMREAD gives of a field.
  public static func size(of encoding: UInt32) -> Int { [2, 8, 4, 8][Int(encoding >> 13 & 3)] }

  /// For each bit of a value the bit of the region that holds it, if any.
  private func bits(of encoding: UInt32, offset: Int, size: Int) -> [Int?] {
    (0..<Self.size(of: encoding) * 8).map { bit in
      let stored: Int?
      switch Self.isAccessRights(encoding) ? accessRights : .plain {
      case .plain: stored = bit
      case .rotated: stored = (bit + 8) % 32
      case .packed: stored = bit == 16 ? 11 : bit < 16 && !(8..<12).contains(bit) ? bit : nil
      }
      return stored.flatMap { $0 < size * 8 ? offset * 8 + $0 : nil }
    }
  }

  /// The bytes of a field with a value, and where they go.
  public func encode(_ value: UInt64, as encoding: UInt32) -> (offset: Int, bytes: [UInt8])? {
    guard let (offset, size) = places[encoding] else { return nil }
    var bytes = [UInt8](repeating: 0, count: size)
    for (bit, place) in bits(of: encoding, offset: offset, size: size).enumerated() {
      guard let place, value >> UInt64(bit) & 1 != 0 else { continue }
      bytes[place / 8 - offset] |= 1 << UInt8(place % 8)
    }
    return (offset, bytes)
  }

  /// The layout as a text `VMCSINFO/1`.
  ///
  /// - Parameter bits: tells of transformed fields where each bit is, else only where they are.
  public func text(bits: Bool = true) -> String {
    var lines = ["VMCSINFO/1", "REVISION=0x\(String(revision, radix: 16))"]
    for (encoding, place) in places.sorted(by: { $0.key < $1.key }) {
      let name = String(encoding, radix: 16)
      if bits, accessRights != .plain, Self.isAccessRights(encoding) {
        let list = self.bits(of: encoding, offset: place.offset, size: place.size).map {
          String($0 ?? 0xffff, radix: 16)
        }
        lines.append("BITS(\(name))=4:\(list.joined(separator: ","))")
      } else {
        lines.append("OFF(\(name))=\(place.size):0x\(String(place.offset, radix: 16))")
      }
    }
    return (lines + ["END", ""]).joined(separator: "\n")
  }
}
