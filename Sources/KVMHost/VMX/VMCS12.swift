import LinuxKernel
import X86

/// The VMCS that a guest made for its own guest, as KVM keeps it while that guest runs: `struct
/// vmcs12`. An exit loads its host-state area (`load_vmcs12_host_state()` of
/// arch/x86/kvm/vmx/nested.c; SDM vol. 3C 28.5).
struct VMCS12: ResumeState {
  private let nested: KernelObject

  /// Nil unless the control structure in use is that of a guest's guest.
  init?(of structures: VMXStructures) throws(KernelError) {
    guard structures.runsNestedGuest else { return nil }
    nested = try structures.vmx["nested"]
  }

  static let passing: Set<Register> = Set(Register.general).subtracting([.rsp]).union([
    .cr2, .dr0, .dr1, .dr2, .dr3, .dr6, .xcr0,
  ])
  static let passingSegments: Set<SegmentRegister> = []
  static let owned: Set<Register> = [.cr8, .apicBase]

  /// Bits of the VM-exit controls (SDM vol. 3C 25.7.1).
  private enum ExitControl {
    static let hostAddressSpaceSize: UInt64 = 1 << 9
    static let loadPAT: UInt64 = 1 << 19
    static let loadEFER: UInt64 = 1 << 21
  }

  private static let path = "nested.cached_vmcs12->"

  func read(into file: inout RegisterFile, after nested: RegisterFile) throws(KernelError) {
    guard let cache = self.nested.memberIfPresent("cached_vmcs12") else {
      throw .noType("vmcs12")
    }
    let vmcs12 = try cache.required()
    func host(_ member: String) throws(KernelError) -> Reading<UInt64> {
      .known(try vmcs12.member(member).unsigned(), RegisterSource(.kvm, Self.path + member))
    }
    for (register, member) in [
      (Register.rip, "host_rip"), (.rsp, "host_rsp"), (.cr0, "host_cr0"), (.cr3, "host_cr3"),
      (.cr4, "host_cr4"), (.sysenterCS, "host_ia32_sysenter_cs"),
      (.sysenterESP, "host_ia32_sysenter_esp"), (.sysenterEIP, "host_ia32_sysenter_eip"),
    ] {
      file[register] = try host(member)
    }
    file[.rflags] = .known(2, Self.byExit)
    file[.dr7] = .known(0x400, Self.byExit)
    let controls = try vmcs12["vm_exit_controls"].unsigned()
    let isLong = controls & ExitControl.hostAddressSpaceSize != 0
    // The exit loads MSRs from a list in the guest's memory too, over those of the host state.
    let listed = try vmcs12["vm_exit_msr_load_count"].unsigned()
    file[.efer] =
      controls & ExitControl.loadEFER != 0
      ? try host("host_ia32_efer") : Self.efer(nested[.efer], isLong: isLong)
    file[.pat] =
      controls & ExitControl.loadPAT != 0 ? try host("host_ia32_pat") : nested[.pat]
    for register in [Register.star, .lstar, .cstar, .sfmask, .kernelGSBase] {
      file[register] =
        listed == 0
        ? nested[register].passedOn
        : .unknown(
          reason: "the exit loads \(listed) MSRs by a list in the guest's memory, maybe this one")
    }
    try readSegments(of: vmcs12, isLong: isLong, into: &file)
    for register in TableRegister.allCases {
      let member = "host_\(register.rawValue)_base"
      file[register] = .known(
        DescriptorTable(base: try vmcs12.member(member).unsigned(), limit: 0xffff),
        RegisterSource(.kvm, Self.path + member))
    }
  }

  private static let byExit = RegisterSource(.kvm, "set by every exit of a nested guest")

  /// Without a value to load, an exit sets LMA and LME by the size of the host's addresses.
  private static func efer(_ nested: Reading<UInt64>, isLong: Bool) -> Reading<UInt64> {
    guard case .known(let value, let source) = nested else { return nested }
    let mode = ControlBits.longModeActive | ControlBits.longModeEnabled
    return .known(
      isLong ? value | mode : value & ~mode,
      RegisterSource(source.kind, source.location + ", LMA and LME by vm_exit_controls"))
  }

  /// Selectors are the area's, and the bases of FS, GS and TR; all else of a segment is fixed.
  private func readSegments(
    of vmcs12: KernelObject, isLong: Bool, into file: inout RegisterFile
  ) throws(KernelError) {
    for register in SegmentRegister.allCases where register != .ldtr {
      let member = "host_\(register.rawValue)_selector"
      let attributes: UInt32 =
        switch register {
        case .cs: isLong ? 0xa0_9b00 : 0xc0_9b00
        case .tr: 0x00_8b00
        default: 0xc0_9300
        }
      let hasBase = [.fs, .gs, .tr].contains(register)
      file[register] = .known(
        Segment(
          selector: UInt16(truncatingIfNeeded: try vmcs12.member(member).unsigned()),
          base: hasBase ? try vmcs12.member("host_\(register.rawValue)_base").unsigned() : 0,
          limit: register == .tr ? 0x67 : 0xffff_ffff,
          attributes: SegmentAttributes(descriptor: attributes)),
        RegisterSource(.kvm, Self.path + member + (hasBase ? " and its base" : "")))
    }
    file[.ldtr] = .known(
      Segment(selector: 0, base: 0, limit: 0, attributes: .unusable), Self.byExit)
  }
}
