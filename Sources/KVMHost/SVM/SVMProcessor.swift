import ControlBlocks
import LinuxKernel
import Memory
import X86

/// The part of a vCPU that kvm_amd keeps: `struct vcpu_svm` and its control blocks (VMCB, APM
/// vol. 2, appendix B; the processor writes the save area at every exit).
struct SVMProcessor {
  private let vcpu: KernelObject
  private let svm: KernelObject
  /// The control block in use.
  private let current: KernelObject
  /// The one whose save area VMSAVE writes: since 5.13 (4995a3685f1b) always the first, also while
  /// a nested guest runs.
  private let first: KernelObject

  init(_ vcpu: KernelObject, types: BTF) throws(KernelError) {
    guard let type = types.structure(named: "vcpu_svm"),
      types.structure(named: "vmcb") != nil
    else { throw .noType("vcpu_svm") }
    self.vcpu = vcpu
    svm = try vcpu.container(of: type, member: "vcpu")
    current = try svm["vmcb"].required()
    first = try svm.memberIfPresent("vmcb01")?["ptr"].dereferenced() ?? current
  }

  /// What the guest resumes with, if the vCPU runs a guest of its own: the control block in use is
  /// the second. Before 5.12 there is one only, and a flag tells.
  func resumeState() throws(KernelError) -> VMCBResumeState? {
    guard let second = try svm["nested"].memberIfPresent("vmcb02") else {
      guard try vcpu["arch.hflags"].unsigned() & Self.guestMode != 0 else { return nil }
      return VMCBResumeState(block: try svm["nested.hsave"], path: "nested.hsave->save")
    }
    guard try svm["current_vmcb"].pointer() == second.address else { return nil }
    return VMCBResumeState(block: try svm["vmcb01.ptr"], path: "vmcb01.ptr->save")
  }

  /// HF_GUEST_MASK as kernels without a second control block have it
  /// (arch/x86/include/asm/kvm_host.h); a macro, so that no types tell it.
  static let guestMode: UInt64 = 1 << 5

  /// Adds what the control blocks have, and settles where both they and KVM have a copy.
  func read(into file: inout RegisterFile) throws(KernelError) {
    try readSegments(into: &file)
    try readControlRegisters(into: &file)
    try take(.rflags, "rflags", from: current, into: &file)
    for (register, member) in [
      (Register.kernelGSBase, "kernel_gs_base"), (.star, "star"), (.lstar, "lstar"),
      (.cstar, "cstar"), (.sfmask, "sfmask"), (.sysenterCS, "sysenter_cs"),
      (.sysenterESP, "sysenter_esp"), (.sysenterEIP, "sysenter_eip"),
    ] {
      try take(register, member, from: first, into: &file)
    }
  }

  /// The control blocks as notes: the one in use, and the first, if a nested guest runs in another.
  func notes(of processor: Int) -> [ControlBlockNote] {
    let blocks = current.address == first.address ? [current] : [current, first]
    return blocks.compactMap { block in
      guard let address = try? block.memory.translate(block.address),
        let bytes = try? block.memory.physical.read(address, count: VMCB.size)
      else { return nil }
      return ControlBlockNote(
        kind: .vmcb, processor: processor, isCurrent: block.address == current.address,
        runsNestedGuest: blocks.count == 2 && block.address == current.address,
        address: address, block: bytes)
    }
  }

  private func take(
    _ register: Register, _ member: String, from block: KernelObject, into file: inout RegisterFile
  ) throws(KernelError) {
    file[register] = .known(
      try block["save"].member(member).unsigned(), RegisterSource(.vmcb, "save.\(member)"))
  }

  /// CR4 and EFER are KVM's: the control block adds what the host needs (MCE, SVME). CR2 and CR3
  /// agree, but with nested paging CR3 changes without an exit, and without it the control block
  /// has the host's shadow tables. Of CR0 the guest may change MP and TS without an exit.
  private func readControlRegisters(into file: inout RegisterFile) throws(KernelError) {
    let usesNestedPaging =
      try current["control"].member("nested_ctl", "misc_ctl").unsigned()
      & ControlBlock.nestedPaging != 0
    if usesNestedPaging { try take(.cr3, "cr3", from: current, into: &file) }
    let intercepts = try controlRegisterIntercepts()
    if intercepts & ControlBlock.interceptCR0Write == 0, let kept = file[.cr0].value {
      file[.cr0] = Self.merged(kept: kept, live: try current["save.cr0"].unsigned())
    }
  }

  /// CR0 of a guest that may change MP and TS without an exit.
  static func merged(kept: UInt64, live: UInt64) -> Reading<UInt64> {
    let own = ControlBits.monitorAndTaskSwitched
    return .known(
      kept & ~own | live & own, RegisterSource(.kvm, "arch.cr0, MP and TS of save.cr0"))
  }

  /// `control.intercepts[]` (5.10, c45ad7229d13), before that a member for each word.
  private func controlRegisterIntercepts() throws(KernelError) -> UInt64 {
    if let words = try current["control"].memberIfPresent("intercepts") {
      return try words.element(0).unsigned()
    }
    return try current["control.intercept_cr"].unsigned()
  }

  private func readSegments(into file: inout RegisterFile) throws(KernelError) {
    let privilege = try current["save.cpl"].unsigned()
    for register in SegmentRegister.allCases {
      let block = Self.savedByVMSAVE.contains(register) ? first : current
      file[register] = .known(
        try block["save"].segment(register, privilege: UInt32(truncatingIfNeeded: privilege)),
        RegisterSource(.vmcb, "save.\(register.rawValue)"))
    }
    for register in TableRegister.allCases {
      file[register] = .known(
        try current["save"].table(register), RegisterSource(.vmcb, "save.\(register.rawValue)"))
    }
  }

  /// What VMLOAD and VMSAVE load and save of segments (APM vol. 2, 15.5.2).
  static let savedByVMSAVE: Set<SegmentRegister> = [.fs, .gs, .tr, .ldtr]
}

/// What a guest resumes with when the guest that it runs itself exits: what VMRUN saved of it
/// (`nested_svm_vmexit()` of arch/x86/kvm/svm/nested.c). VMRUN does not switch what VMLOAD and VMSAVE
/// do.
struct VMCBResumeState: ResumeState {
  /// Pointer to the control block.
  let block: KernelObject
  let path: String

  static let passing: Set<Register> = Set(Register.general).subtracting([.rsp, .rax]).union([
    .cr2, .dr0, .dr1, .dr2, .dr3, .dr6, .xcr0, .kernelGSBase, .star, .lstar, .cstar, .sfmask,
    .sysenterCS, .sysenterESP, .sysenterEIP,
  ])
  static let passingSegments = SVMProcessor.savedByVMSAVE
  static let owned: Set<Register> = [.cr8, .apicBase]

  func read(into file: inout RegisterFile, after nested: RegisterFile) throws(KernelError) {
    let save = try block.required()["save"]
    for register in [Register.rip, .rsp, .rax, .rflags, .cr3, .cr4, .efer] {
      file[register] = .known(
        try save.member(register.rawValue).unsigned(), source(register.rawValue))
    }
    file[.cr0] = .known(try save["cr0"].unsigned() | ControlBits.protection, source("cr0"))
    file[.dr7] = .known(0x400, RegisterSource(.kvm, "set by every exit of a nested guest"))
    file[.pat] = nested[.pat]
    for register in SegmentRegister.allCases where !Self.passingSegments.contains(register) {
      // VMRUN needs privilege level 0.
      file[register] = .known(
        try save.segment(register, privilege: 0), source(register.rawValue))
    }
    for register in TableRegister.allCases {
      file[register] = .known(try save.table(register), source(register.rawValue))
    }
  }

  private func source(_ member: String) -> RegisterSource {
    RegisterSource(.vmcb, "\(path).\(member)")
  }
}

/// Of a `struct vmcb_save_area`.
extension KernelObject {
  fileprivate func segment(
    _ register: SegmentRegister, privilege: UInt32
  ) throws(KernelError) -> Segment {
    let saved = try member(register.rawValue)
    var segment = Segment(
      selector: UInt16(truncatingIfNeeded: try saved["selector"].unsigned()),
      base: try saved["base"].unsigned(),
      limit: UInt32(truncatingIfNeeded: try saved["limit"].unsigned()),
      attributes: SegmentAttributes(
        vmcb: UInt16(truncatingIfNeeded: try saved["attrib"].unsigned())))
    segment.normalizeAsVMCB(as: register, privilege: privilege)
    return segment
  }

  fileprivate func table(_ register: TableRegister) throws(KernelError) -> DescriptorTable {
    let saved = try member(register.rawValue)
    return DescriptorTable(
      base: try saved["base"].unsigned(),
      limit: UInt32(truncatingIfNeeded: try saved["limit"].unsigned()))
  }
}

/// Bits of the control area (APM vol. 2, appendix B).
private enum ControlBlock {
  /// NP_ENABLE, bit 0 at offset 090h: of `nested_ctl`, by 7.2 `misc_ctl`.
  static let nestedPaging: UInt64 = 1
  /// Write of CR0, bit 16 at offset 000h.
  static let interceptCR0Write: UInt64 = 1 << 16
}
