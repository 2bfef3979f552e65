import LinuxKernel
import Memory
import X86

/// The part of a vCPU that kvm_intel keeps: `struct vcpu_vmx` and its control structure (VMCS).
///
/// A VMCS may be in the processor instead of in memory until VMCLEAR. A crashing host's kernel
/// does that on every processor that answers (since 3.8, f23d1f4a1160); a host dumped otherwise has
/// whatever was written back. So a region is used only where it agrees with what KVM remembers of
/// it, and so is a layout.
struct VMXProcessor {
  private let vcpu: KernelObject
  private let vmx: KernelObject
  private let loaded: KernelObject
  private let host: KVMHost
  private let region: [UInt8]

  /// How the control structure could be read.
  enum Decoding {
    case decoded(VMCSLayout, agreeing: Int)
    /// No layout at hand fits; `tried` had been for this revision.
    case noLayout(revision: UInt32, tried: Int)
  }

  init(_ vcpu: KernelObject, on host: KVMHost, types: BTF) throws(KernelError) {
    guard let type = types.structure(named: "vcpu_vmx") else { throw .noType("vcpu_vmx") }
    self.vcpu = vcpu
    self.host = host
    vmx = try vcpu.container(of: type, member: "vcpu")
    loaded = try vmx["loaded_vmcs"].required()
    let address = try loaded["vmcs"].pointer()
    do throws(MemoryError) {
      region = try vcpu.memory.read(address, count: Int(pageSize))
    } catch {
      throw .unreadable(what: "VMCS at \(address)", error)
    }
  }

  /// True if the structure in use is that of a guest of the guest.
  func runsNestedGuest() throws(KernelError) -> Bool {
    guard let nested = try vmx["nested"].memberIfPresent("vmcs02") else { return false }
    return loaded.address == nested.address
  }

  // MARK: Choosing the layout

  /// The revision identifier: the region's first 31 bits (SDM vol. 3C 24.2).
  private var revision: UInt32 { (region.load(UInt32.self, at: 0) ?? 0) & 0x7fff_ffff }

  func decoding() -> Decoding {
    let candidates =
      host.vmcsLayouts.filter { $0.revision == nil || $0.revision == revision }
      + VMCSLayoutDatabase.layouts(for: revision)
    let known = knownValues()
    for layout in candidates {
      let compared = known.compactMap { value in
        layout.value(of: value.field, in: region).map {
          $0 & value.mask == value.value & value.mask
        }
      }
      let agreeing = compared.count { $0 }
      // Either nearly all agree or nearly none does. A field or two that KVM was about to write
      // may differ.
      if agreeing >= 4, agreeing * 10 >= compared.count * 8 {
        return .decoded(layout.withAccessRights(fitting: region), agreeing: agreeing)
      }
    }
    return .noLayout(revision: revision, tried: candidates.count)
  }

  private struct KnownValue {
    let field: VMCSField
    let value: UInt64
    var mask: UInt64 = .max
  }

  /// What KVM remembers of the contents of this structure.
  private func knownValues() -> [KnownValue] {
    var known = [KnownValue(field: .linkPointer, value: .max)]
    if let exit = host.symbol("vmx_vmexit") {
      known.append(KnownValue(field: .hostRIP, value: exit.rawValue))
    }
    let members: [(VMCSField, KernelObject?)] = [
      (.vpid, vmx.memberIfPresent("vpid")),
      (.tscOffset, try? vcpu["arch.tsc_offset"]),
      (.hostCR3, try? loaded["host_state.cr3"]), (.hostCR4, try? loaded["host_state.cr4"]),
      (.hostRSP, try? loaded["host_state.rsp"]),
      (.pinControls, try? loaded["controls_shadow.pin"]),
      (.primaryControls, try? loaded["controls_shadow.exec"]),
      (.secondaryControls, try? loaded["controls_shadow.secondary_exec"]),
      (.entryControls, try? loaded["controls_shadow.vm_entry"]),
      (.exitControls, try? loaded["controls_shadow.vm_exit"]),
    ]
    for (field, member) in members {
      guard let value = try? member?.unsigned() else { continue }
      let mask = field.size == 8 ? UInt64.max : (1 << UInt64(field.size * 8)) - 1
      known.append(KnownValue(field: field, value: value, mask: mask))
    }
    if let bitmap = try? loaded["msr_bitmap"].pointer(), bitmap.rawValue != 0,
      let physical = try? vcpu.memory.translate(bitmap)
    {
      known.append(KnownValue(field: .msrBitmap, value: physical.rawValue))
    }
    return known
  }

  // MARK: Registers

  /// Adds what the control structure has to what KVM's copies gave.
  func read(by layout: VMCSLayout, into file: inout RegisterFile) throws(KernelError) {
    let vmcs = DecodedVMCS(layout: layout, region: region)
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
      kept & ~own | live & own, RegisterSource(.vmcs, "arch.\(member), \(vmcs.name(field))"))
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
