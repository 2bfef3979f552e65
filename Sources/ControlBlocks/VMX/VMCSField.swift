import Memory

/// A field of Intel's virtual-machine control structure, by its encoding (SDM vol. 3D, appendix B).
package struct VMCSField: Hashable, Comparable, Sendable {
  package let encoding: UInt32

  package init(_ encoding: UInt32) { self.encoding = encoding }

  package static func < (first: VMCSField, second: VMCSField) -> Bool {
    first.encoding < second.encoding
  }

  /// Bytes that VMREAD gives of it: bits 14:13 of the encoding (SDM vol. 3C, 24.11.2).
  package var size: Int {
    switch encoding >> 13 & 3 {
    case 0: 2
    case 2: 4
    default: 8
    }
  }

  /// The name that Linux has for it, if it has one.
  package var name: String? { Self.names[self] }

  /// What to call it.
  package var label: String { name ?? "field 0x" + String(encoding, radix: 16) }

  /// All that have a name, in order.
  package static let known: [VMCSField] = names.keys.sorted()

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
  package static func named(_ name: some StringProtocol) -> VMCSField? { byName[String(name)] }

  private static let byName: [String: VMCSField] = Dictionary(
    names.map { ($0.value, $0.key) }, uniquingKeysWith: { first, _ in first })
}

/// The fields that this program uses, by the SDM's names (vol. 3D, appendix B).
extension VMCSField {
  package static let vpid = VMCSField(0x0000)
  package static let hostES = VMCSField(0x0c00)
  package static let hostCS = VMCSField(0x0c02)
  package static let hostSS = VMCSField(0x0c04)
  package static let hostDS = VMCSField(0x0c06)
  package static let hostTR = VMCSField(0x0c0c)
  package static let msrBitmap = VMCSField(0x2004)
  package static let exitMSRLoadAddress = VMCSField(0x2008)
  package static let entryMSRLoadAddress = VMCSField(0x200a)
  package static let tscOffset = VMCSField(0x2010)
  package static let virtualAPICPage = VMCSField(0x2012)
  package static let eptPointer = VMCSField(0x201a)
  package static let tscMultiplier = VMCSField(0x2032)
  package static let tertiaryControls = VMCSField(0x2034)
  package static let linkPointer = VMCSField(0x2800)
  package static let pat = VMCSField(0x2804)
  package static let efer = VMCSField(0x2806)
  package static let pinControls = VMCSField(0x4000)
  package static let primaryControls = VMCSField(0x4002)
  package static let exitControls = VMCSField(0x400c)
  package static let exitMSRLoadCount = VMCSField(0x4010)
  package static let entryControls = VMCSField(0x4012)
  package static let entryMSRLoadCount = VMCSField(0x4014)
  package static let secondaryControls = VMCSField(0x401e)
  package static let exitReason = VMCSField(0x4402)
  package static let vectoringInformation = VMCSField(0x4408)
  package static let gdtrLimit = VMCSField(0x4810)
  package static let idtrLimit = VMCSField(0x4812)
  package static let sysenterCS = VMCSField(0x482a)
  package static let hostSysenterCS = VMCSField(0x4c00)
  package static let cr0Mask = VMCSField(0x6000)
  package static let cr4Mask = VMCSField(0x6002)
  package static let cr0Shadow = VMCSField(0x6004)
  package static let cr4Shadow = VMCSField(0x6006)
  package static let exitQualification = VMCSField(0x6400)
  package static let cr0 = VMCSField(0x6800)
  package static let cr3 = VMCSField(0x6802)
  package static let cr4 = VMCSField(0x6804)
  package static let gdtrBase = VMCSField(0x6816)
  package static let idtrBase = VMCSField(0x6818)
  package static let dr7 = VMCSField(0x681a)
  package static let rsp = VMCSField(0x681c)
  package static let rip = VMCSField(0x681e)
  package static let rflags = VMCSField(0x6820)
  package static let sysenterESP = VMCSField(0x6824)
  package static let sysenterEIP = VMCSField(0x6826)
  package static let hostCR0 = VMCSField(0x6c00)
  package static let hostCR3 = VMCSField(0x6c02)
  package static let hostCR4 = VMCSField(0x6c04)
  package static let hostFSBase = VMCSField(0x6c06)
  package static let hostGSBase = VMCSField(0x6c08)
  package static let hostTRBase = VMCSField(0x6c0a)
  package static let hostGDTRBase = VMCSField(0x6c0c)
  package static let hostIDTRBase = VMCSField(0x6c0e)
  package static let hostSysenterESP = VMCSField(0x6c10)
  package static let hostSysenterEIP = VMCSField(0x6c12)
  package static let hostRSP = VMCSField(0x6c14)
  package static let hostRIP = VMCSField(0x6c16)

  /// The fields of a guest's segment, by its number in the encodings: ES CS SS DS FS GS LDTR TR.
  package static func selector(_ segment: Int) -> VMCSField {
    VMCSField(0x0800 + UInt32(2 * segment))
  }
  package static func limit(_ segment: Int) -> VMCSField { VMCSField(0x4800 + UInt32(2 * segment)) }
  package static func accessRights(_ segment: Int) -> VMCSField {
    VMCSField(0x4814 + UInt32(2 * segment))
  }
  package static func base(_ segment: Int) -> VMCSField { VMCSField(0x6806 + UInt32(2 * segment)) }

  /// Width, and control, read-only, guest or host: fields of a group are numbered in one row.
  package var group: UInt32 { encoding >> 10 }
  /// The number in the group.
  package var index: Int { Int(encoding >> 1 & 0x1ff) }
}
