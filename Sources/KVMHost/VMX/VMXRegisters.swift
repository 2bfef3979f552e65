import LinuxKernel
import Memory
import X86

/// The registers of a vCPU of kvm_intel: which of the VMCS and KVM's copies has the current value of
/// each.
struct VMXRegisters {
  private let vcpu: KernelObject
  private let vmx: KernelObject
  private let host: KVMHost

  init(of processor: VMXProcessor) {
    vcpu = processor.vcpu
    vmx = processor.vmx
    host = processor.host
  }

  /// Adds what the control structure has to what KVM's copies gave.
  func read(_ vmcs: DecodedVMCS, into file: inout RegisterFile) throws(KernelError) {
    for (register, field) in [(Register.rip, VMCSField.rip), (.rsp, .rsp)]
    where file[register].value == nil {
      file[register] = vmcs.reading(field)
    }
    let realMode = try realModeEmulation()
    if file[.rflags].value == nil { file[.rflags] = try flags(vmcs, realMode) }
    file[.cr0] = try control("cr0", .cr0, VMCSField.cr0, vmcs, file)
    file[.cr4] = try control("cr4", .cr4, VMCSField.cr4, vmcs, file)
    file[.cr3] = try pageTableRoot(vmcs, file)
    for (register, field) in [
      (Register.sysenterCS, VMCSField.sysenterCS), (.sysenterESP, .sysenterESP),
      (.sysenterEIP, .sysenterEIP),
    ] {
      file[register] = vmcs.reading(field)
    }
    for (index, register) in Self.segments.enumerated() {
      file[register] = vmcs.segment(index)
      if let realMode, register != .ldtr {
        file[register] = try emulated(index, in: realMode, vmcs, register)
      }
    }
    file[.gdtr] = vmcs.table(base: .gdtrBase, limit: .gdtrLimit)
    file[.idtr] = vmcs.table(base: .idtrBase, limit: .idtrLimit)
  }

  /// Adds what kvm_intel itself keeps copies of: needs no layout.
  func readCopies(into file: inout RegisterFile) throws(KernelError) {
    file[.kernelGSBase] = try kernelGSBase()
    if try isAvailable("VCPU_EXREG_RFLAGS") {
      file[.rflags] = .known(try vmx["rflags"].unsigned(), RegisterSource(.kvm, "vcpu_vmx.rflags"))
    }
    try readSystemCallRegisters(into: &file)
  }

  /// The order of the segments in encodings of the VMCS, and in `rmode.segs`: enum VCPU_SREG_* has
  /// TR before LDTR.
  private static let segments: [SegmentRegister] = [.es, .cs, .ss, .ds, .fs, .gs, .ldtr, .tr]

  private func flags(
    _ vmcs: DecodedVMCS, _ realMode: KernelObject?
  ) throws(KernelError) -> Reading<UInt64> {
    guard let realMode, let live = vmcs.value(.rflags) else { return vmcs.reading(.rflags) }
    // Real mode emulated as virtual-8086: VM and IOPL are the host's.
    let own: UInt64 = 1 << 17 | 3 << 12
    let saved = try realMode["save_rflags"].unsigned()
    return .known(
      live & ~own | saved & own, RegisterSource(.vmcs, "GUEST_RFLAGS, rmode.save_rflags"))
  }

  /// CR0 and CR4: the bits that the guest may change without an exit are in the VMCS, the others
  /// in KVM's copy; what else the VMCS has is forced by the host.
  private func control(
    _ member: String, _ register: Register, _ field: VMCSField, _ vmcs: DecodedVMCS,
    _ file: RegisterFile
  ) throws(KernelError) -> Reading<UInt64> {
    if file[register].value != nil { return file[register] }
    guard let live = vmcs.value(field) else { return vmcs.reading(field) }
    let own = try vcpu["arch"].member("\(member)_guest_owned_bits").unsigned()
    let kept = try vcpu["arch"].member(member).unsigned()
    return .known(
      kept & ~own | live & own, RegisterSource(.vmcs, "arch.\(member), \(field.label)"))
  }

  /// With extended page tables CR3 is the guest's own; without them it is that of the host's shadow
  /// tables.
  private func pageTableRoot(
    _ vmcs: DecodedVMCS, _ file: RegisterFile
  ) throws(KernelError) -> Reading<UInt64> {
    if file[.cr3].value != nil { return file[.cr3] }
    guard let controls = vmcs.value(.secondaryControls) else { return vmcs.reading(.cr3) }
    let usesExtendedTables = controls & 2 != 0
    if usesExtendedTables { return vmcs.reading(.cr3) }
    return .known(try vcpu["arch.cr3"].unsigned(), RegisterSource(.kvm, "arch.cr3"))
  }

  /// The live value is in the processor's register while `guest_state_loaded` (in `vt` since 6.16),
  /// and no dump has that.
  private func kernelGSBase() throws(KernelError) -> Reading<UInt64> {
    let isLoaded = try (vmx.has("vt") ? vmx["vt"] : vmx)["guest_state_loaded"].isTrue()
    if isLoaded {
      return .unknown(reason: "it was in the host processor's register, which no dump holds")
    }
    return .known(
      try vmx["msr_guest_kernel_gs_base"].unsigned(),
      RegisterSource(.kvm, "vcpu_vmx.msr_guest_kernel_gs_base"))
  }

  /// `guest_uret_msrs[]`, in the order of kvm.ko's list of them (since 5.11, 7bf662bb5e34).
  private func readSystemCallRegisters(into file: inout RegisterFile) throws(KernelError) {
    guard let slots = vmx.memberIfPresent("guest_uret_msrs"),
      let list = host.symbol("kvm_uret_msrs_list")
    else { return }
    let registers: [UInt32: Register] = [
      0xc000_0081: .star, 0xc000_0082: .lstar, 0xc000_0083: .cstar, 0xc000_0084: .sfmask,
    ]
    for index in 0..<Int(clamping: min(slots.type.elementCount ?? 0, 16)) {
      guard
        let number = try? vcpu.memory.load(list + UInt64(index * 4), as: UInt32.self),
        let register = registers[number]
      else { continue }
      file[register] = .known(
        try slots.element(index)["data"].unsigned(),
        RegisterSource(.kvm, "vcpu_vmx.guest_uret_msrs[\(index)]"))
    }
  }

  private func isAvailable(_ name: String) throws(KernelError) -> Bool {
    guard let bit = host.types.enumerator(named: name), (0..<64).contains(bit) else { return false }
    return try vcpu["arch.regs_avail"].unsigned() >> UInt64(bit) & 1 != 0
  }

  /// `vcpu_vmx.rmode` while the guest's real mode is emulated as virtual-8086 mode, which a
  /// processor without unrestricted guest needs.
  private func realModeEmulation() throws(KernelError) -> KernelObject? {
    guard let state = vmx.memberIfPresent("rmode"), try state["vm86_active"].isTrue() else {
      return nil
    }
    return state
  }

  /// The segment that the guest loaded, of which the VMCS has a stand-in (`vmx_get_segment`).
  private func emulated(
    _ index: Int, in realMode: KernelObject, _ vmcs: DecodedVMCS, _ register: SegmentRegister
  ) throws(KernelError) -> Reading<Segment> {
    // enum: ES CS SS DS FS GS TR LDTR
    let saved = try realMode["segs"].element(register == .tr ? 6 : index)
    var segment = Segment(
      selector: UInt16(truncatingIfNeeded: try saved["selector"].unsigned()),
      base: try saved["base"].unsigned(),
      limit: UInt32(truncatingIfNeeded: try saved["limit"].unsigned()),
      attributes: try saved.segmentAttributes)
    if register != .tr, let live = vmcs.segment(index).value, live.selector != segment.selector {
      segment.selector = live.selector
      segment.base = live.base
    }
    return .known(segment, RegisterSource(.kvm, "vcpu_vmx.rmode.segs"))
  }
}

extension KernelObject {
  /// Of a `struct kvm_segment` (arch/x86/include/uapi/asm/kvm.h).
  fileprivate var segmentAttributes: SegmentAttributes {
    get throws(KernelError) {
      if try self["unusable"].isTrue() { return .unusable }
      var bits: UInt64 = 0
      for (member, shift) in [
        ("type", UInt64(8)), ("s", 12), ("dpl", 13), ("present", 15), ("avl", 20), ("l", 21),
        ("db", 22), ("g", 23),
      ] {
        bits |= try self.member(member).unsigned() << shift
      }
      return SegmentAttributes(descriptor: UInt32(truncatingIfNeeded: bits))
    }
  }
}
