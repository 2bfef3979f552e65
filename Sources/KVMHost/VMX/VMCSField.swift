import Memory

/// A field of Intel's virtual-machine control structure, by its encoding (SDM vol. 3D, appendix B).
struct VMCSField: Hashable, Comparable, Sendable {
  let encoding: UInt32

  init(_ encoding: UInt32) { self.encoding = encoding }

  static func < (first: VMCSField, second: VMCSField) -> Bool { first.encoding < second.encoding }

  /// Bytes that VMREAD gives of it: bits 14:13 of the encoding (SDM vol. 3C, 24.11.2).
  var size: Int {
    switch encoding >> 13 & 3 {
    case 0: 2
    case 2: 4
    default: 8
    }
  }

  /// The name that Linux has for it, if it has one.
  var name: String? { Self.names[self] }

  private static let names: [VMCSField: String] = {
    var names: [VMCSField: String] = [:]
    let text = String(decoding: PackageResources.VMCSFields_tsv, as: UTF8.self)
    for line in text.split(separator: "\n").dropFirst() {
      let columns = line.split(separator: "\t")
      guard columns.count > 1, let encoding = UInt32(columns[0].dropFirst(2), radix: 16) else {
        continue
      }
      names[VMCSField(encoding)] = String(columns[1])
    }
    return names
  }()

  /// The field of that name.
  static func named(_ name: some StringProtocol) -> VMCSField? { byName[String(name)] }

  private static let byName: [String: VMCSField] = Dictionary(
    names.map { ($0.value, $0.key) }, uniquingKeysWith: { first, _ in first })
}

/// The fields that this program uses.
extension VMCSField {
  static let vpid = VMCSField(0x0000)
  static let msrBitmap = VMCSField(0x2004)
  static let tscOffset = VMCSField(0x2010)
  static let linkPointer = VMCSField(0x2800)
  static let pinControls = VMCSField(0x4000)
  static let primaryControls = VMCSField(0x4002)
  static let exitControls = VMCSField(0x400c)
  static let entryControls = VMCSField(0x4012)
  static let secondaryControls = VMCSField(0x401e)
  static let sysenterCS = VMCSField(0x482a)
  static let cr0 = VMCSField(0x6800)
  static let cr3 = VMCSField(0x6802)
  static let cr4 = VMCSField(0x6804)
  static let gdtrBase = VMCSField(0x6816)
  static let idtrBase = VMCSField(0x6818)
  static let gdtrLimit = VMCSField(0x4810)
  static let idtrLimit = VMCSField(0x4812)
  static let rsp = VMCSField(0x681c)
  static let rip = VMCSField(0x681e)
  static let rflags = VMCSField(0x6820)
  static let sysenterESP = VMCSField(0x6824)
  static let sysenterEIP = VMCSField(0x6826)
  static let hostCR3 = VMCSField(0x6c02)
  static let hostCR4 = VMCSField(0x6c04)
  static let hostRSP = VMCSField(0x6c14)
  static let hostRIP = VMCSField(0x6c16)
}
