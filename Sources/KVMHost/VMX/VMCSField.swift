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

  /// What to call it.
  var label: String { name ?? "field 0x" + String(encoding, radix: 16) }

  /// All that have a name, in order.
  static let known: [VMCSField] = names.keys.sorted()

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

/// The fields that this program uses, by the SDM's names (vol. 3D, appendix B).
extension VMCSField {
  static let vpid = VMCSField(0x0000)
  static let hostES = VMCSField(0x0c00)
  static let hostCS = VMCSField(0x0c02)
  static let hostSS = VMCSField(0x0c04)
  static let hostDS = VMCSField(0x0c06)
  static let hostTR = VMCSField(0x0c0c)
  static let msrBitmap = VMCSField(0x2004)
  static let exitMSRLoadAddress = VMCSField(0x2008)
  static let entryMSRLoadAddress = VMCSField(0x200a)
  static let tscOffset = VMCSField(0x2010)
  static let virtualAPICPage = VMCSField(0x2012)
  static let eptPointer = VMCSField(0x201a)
  static let tscMultiplier = VMCSField(0x2032)
  static let tertiaryControls = VMCSField(0x2034)
  static let linkPointer = VMCSField(0x2800)
  static let pat = VMCSField(0x2804)
  static let pinControls = VMCSField(0x4000)
  static let primaryControls = VMCSField(0x4002)
  static let exitControls = VMCSField(0x400c)
  static let exitMSRLoadCount = VMCSField(0x4010)
  static let entryControls = VMCSField(0x4012)
  static let entryMSRLoadCount = VMCSField(0x4014)
  static let secondaryControls = VMCSField(0x401e)
  static let exitReason = VMCSField(0x4402)
  static let vectoringInformation = VMCSField(0x4408)
  static let gdtrLimit = VMCSField(0x4810)
  static let idtrLimit = VMCSField(0x4812)
  static let sysenterCS = VMCSField(0x482a)
  static let hostSysenterCS = VMCSField(0x4c00)
  static let cr0Mask = VMCSField(0x6000)
  static let cr4Mask = VMCSField(0x6002)
  static let cr0Shadow = VMCSField(0x6004)
  static let cr4Shadow = VMCSField(0x6006)
  static let exitQualification = VMCSField(0x6400)
  static let cr0 = VMCSField(0x6800)
  static let cr3 = VMCSField(0x6802)
  static let cr4 = VMCSField(0x6804)
  static let gdtrBase = VMCSField(0x6816)
  static let idtrBase = VMCSField(0x6818)
  static let dr7 = VMCSField(0x681a)
  static let rsp = VMCSField(0x681c)
  static let rip = VMCSField(0x681e)
  static let rflags = VMCSField(0x6820)
  static let sysenterESP = VMCSField(0x6824)
  static let sysenterEIP = VMCSField(0x6826)
  static let hostCR0 = VMCSField(0x6c00)
  static let hostCR3 = VMCSField(0x6c02)
  static let hostCR4 = VMCSField(0x6c04)
  static let hostFSBase = VMCSField(0x6c06)
  static let hostGSBase = VMCSField(0x6c08)
  static let hostTRBase = VMCSField(0x6c0a)
  static let hostGDTRBase = VMCSField(0x6c0c)
  static let hostIDTRBase = VMCSField(0x6c0e)
  static let hostSysenterESP = VMCSField(0x6c10)
  static let hostSysenterEIP = VMCSField(0x6c12)
  static let hostRSP = VMCSField(0x6c14)
  static let hostRIP = VMCSField(0x6c16)

  /// The fields of a guest's segment, by its number in the encodings: ES CS SS DS FS GS LDTR TR.
  static func selector(_ segment: Int) -> VMCSField { VMCSField(0x0800 + UInt32(2 * segment)) }
  static func limit(_ segment: Int) -> VMCSField { VMCSField(0x4800 + UInt32(2 * segment)) }
  static func accessRights(_ segment: Int) -> VMCSField { VMCSField(0x4814 + UInt32(2 * segment)) }
  static func base(_ segment: Int) -> VMCSField { VMCSField(0x6806 + UInt32(2 * segment)) }

  /// Width, and control, read-only, guest or host: fields of a group are numbered in one row.
  var group: UInt32 { encoding >> 10 }
  /// The number in the group.
  var index: Int { Int(encoding >> 1 & 0x1ff) }
}
