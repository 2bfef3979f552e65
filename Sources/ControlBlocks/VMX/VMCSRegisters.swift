import Memory
import X86

extension DecodedVMCS {
  /// The registers of the vCPU as far as its VMCS alone has them (SDM vol. 3C, 25.4.1): without
  /// what a hypervisor keeps beside it, general registers among that.
  package func registers() -> RegisterFile {
    var file = RegisterFile.unknown(because: "the VMCS does not hold it")
    for (register, field) in [
      (Register.rip, VMCSField.rip), (.rsp, .rsp), (.rflags, .rflags), (.dr7, .dr7),
      (.sysenterCS, .sysenterCS), (.sysenterESP, .sysenterESP), (.sysenterEIP, .sysenterEIP),
    ] {
      file[register] = reading(field)
    }
    file[.cr0] = control(.cr0, mask: .cr0Mask, shadow: .cr0Shadow)
    file[.cr4] = control(.cr4, mask: .cr4Mask, shadow: .cr4Shadow)
    file[.cr3] = pageTableRoot
    file[.efer] = loaded(.efer, by: EntryControls.loadEFER)
    file[.pat] = loaded(.pat, by: EntryControls.loadPAT)
    for register in SegmentRegister.allCases { file[register] = segment(register) }
    file[.gdtr] = table(base: .gdtrBase, limit: .gdtrLimit)
    file[.idtr] = table(base: .idtrBase, limit: .idtrLimit)
    return file
  }

  /// CR0 and CR4 as the guest sees them: where the hypervisor owns a bit, reads give the shadow
  /// (SDM vol. 3C, 25.6.6).
  private func control(
    _ field: VMCSField, mask: VMCSField, shadow: VMCSField
  ) -> Reading<UInt64> {
    guard let live = value(field), let owned = value(mask), let seen = value(shadow) else {
      return .unknown(reason: whyUnknown([field, mask, shadow]))
    }
    return .known(
      live & ~owned | seen & owned, RegisterSource(.vmcs, "\(field.label), \(shadow.label)"))
  }

  /// Where loads of CR3 exit, the VMCS may have tables of the hypervisor's.
  private var pageTableRoot: Reading<UInt64> {
    guard let controls = value(.primaryControls) else {
      return .unknown(reason: whyUnknown([.primaryControls]))
    }
    return controls & VMCSField.cr3LoadExiting == 0
      ? reading(.cr3)
      : .unknown(reason: "loads of CR3 exit, and the VMCS has what the hypervisor put there")
  }

  /// A register that VM entry loads only if a control says so; the field is stale otherwise.
  private func loaded(_ field: VMCSField, by control: UInt64) -> Reading<UInt64> {
    guard let controls = value(.entryControls) else {
      return .unknown(reason: whyUnknown([.entryControls]))
    }
    return controls & control != 0
      ? reading(field) : .unknown(reason: "VM entry does not load \(field.label)")
  }

  private func segment(_ register: SegmentRegister) -> Reading<Segment> {
    let number = VMCSField.number(of: register)
    let fields: [VMCSField] = [
      .selector(number), .base(number), .limit(number), .accessRights(number),
    ]
    let values = fields.compactMap { value($0) }
    guard values.count == fields.count else { return .unknown(reason: whyUnknown(fields)) }
    return .known(
      Segment(
        selector: UInt16(truncatingIfNeeded: values[0]), base: values[1],
        limit: UInt32(truncatingIfNeeded: values[2]),
        attributes: SegmentAttributes(vmx: UInt32(truncatingIfNeeded: values[3]))),
      RegisterSource(.vmcs, fields[0].label + " and its base, limit, access rights"))
  }

  private func whyUnknown(_ fields: [VMCSField]) -> String {
    for field in fields {
      if case .unknown(let reason) = reading(field) { return reason }
    }
    return "the VMCS does not hold it"
  }

  /// VM-entry controls (SDM vol. 3C, 25.8.1).
  private enum EntryControls {
    static let loadPAT: UInt64 = 1 << 14
    static let loadEFER: UInt64 = 1 << 15
  }
}

extension VMCSField {
  /// Bit 15 of the primary processor-based VM-execution controls (SDM vol. 3C, 25.6.2).
  package static let cr3LoadExiting: UInt64 = 1 << 15

  /// A segment's number in the encodings of its fields.
  package static func number(of register: SegmentRegister) -> Int {
    switch register {
    case .es: 0
    case .cs: 1
    case .ss: 2
    case .ds: 3
    case .fs: 4
    case .gs: 5
    case .ldtr: 6
    case .tr: 7
    }
  }
}
