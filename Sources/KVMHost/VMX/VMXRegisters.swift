import ControlBlocks
import LinuxKernel
import Memory
import X86

/// The registers of a vCPU of kvm_intel: which of the VMCS and KVM's copies has the current value
/// of each.
struct VMXRegisters {
  private let structures: VMXStructures
  private let host: KVMHost

  init(_ structures: VMXStructures, on host: KVMHost) {
    self.structures = structures
    self.host = host
  }

  private var vcpu: KernelObject { structures.vcpu }
  private var vmx: KernelObject { structures.vmx }

  /// What the guest resumes with, if the vCPU runs a guest of its own.
  func resumeState() throws(KernelError) -> VMCS12? { try VMCS12(of: structures) }

  /// Adds what the control structure and kvm_intel have to what KVM's copies gave.
  ///
  /// - Parameter vmcs: the control structure; nil if it is not current or its layout is not known.
  func read(_ vmcs: DecodedVMCS?, into file: inout RegisterFile) throws(KernelError) {
    let realMode = try realModeEmulation()
    let isUntold = try isRealModeUntold(vmcs)
    for (register, field) in [(Register.rip, VMCSField.rip), (.rsp, .rsp)]
    where file[register].value == nil {
      file[register] = Self.reading(field, vmcs)
    }
    file[.rflags] = try flags(vmcs, realMode)
    file[.cr0] = try control("cr0", .cr0, vmcs)
    file[.cr4] = try control("cr4", .cr4, vmcs)
    if file[.cr3].value == nil { file[.cr3] = try pageTableRoot(vmcs) }
    for (register, field) in [
      (Register.sysenterCS, VMCSField.sysenterCS), (.sysenterESP, .sysenterESP),
      (.sysenterEIP, .sysenterEIP),
    ] {
      file[register] = Self.reading(field, vmcs)
    }
    for place in SegmentPlace.all {
      let segment = try segment(place, vmcs)
      // The task register's stand-in is KVM's own; LDTR has none (`vmx_get_segment`).
      if let realMode, place.register != .ldtr {
        file[place.register] = try emulated(place, in: realMode, standIn: segment)
      } else if isUntold, place.register != .ldtr {
        file[place.register] = .unknown(reason: Self.untoldRealMode)
      } else {
        file[place.register] = segment
      }
    }
    file[.gdtr] = Self.table(base: .gdtrBase, limit: .gdtrLimit, vmcs)
    file[.idtr] = Self.table(base: .idtrBase, limit: .idtrLimit, vmcs)
    file[.kernelGSBase] = try kernelGSBase()
    try readSystemCallRegisters(into: &file)
  }

  // MARK: The control structure

  private static func reading(_ field: VMCSField, _ vmcs: DecodedVMCS?) -> Reading<UInt64> {
    vmcs?.reading(field) ?? .unknown(reason: "only the VMCS has it, which cannot be read")
  }

  /// Why a field has no value.
  private static func reason(_ field: VMCSField, _ vmcs: DecodedVMCS?) -> String {
    if case .unknown(let reason) = reading(field, vmcs) { reason } else { "" }
  }

  private static func table(
    base: VMCSField, limit: VMCSField, _ vmcs: DecodedVMCS?
  ) -> Reading<DescriptorTable> {
    vmcs?.table(base: base, limit: limit) ?? .unknown(reason: reason(base, vmcs))
  }

  private func flags(
    _ vmcs: DecodedVMCS?, _ realMode: KernelObject?
  ) throws(KernelError) -> Reading<UInt64> {
    // What KVM writes to its copy it writes to the VMCS too.
    if try isAvailable("VCPU_EXREG_RFLAGS"), let copy = vmx.memberIfPresent("rflags") {
      return .known(try copy.unsigned(), RegisterSource(.kvm, "vcpu_vmx.rflags"))
    }
    if try isRealModeUntold(vmcs) { return .unknown(reason: Self.untoldRealMode) }
    guard let realMode, let live = vmcs?.value(.rflags) else { return Self.reading(.rflags, vmcs) }
    // Real mode emulated as virtual-8086: VM and IOPL are the host's.
    let own = Self.virtual8086 | 3 << 12
    let saved = try realMode["save_rflags"].unsigned()
    return .known(
      live & ~own | saved & own, RegisterSource(.vmcs, "GUEST_RFLAGS, rmode.save_rflags"))
  }

  /// CR0 and CR4: the bits that the guest may change without an exit are in the VMCS, the others
  /// in KVM's copy; what else the VMCS has is forced by the host. Before 5.8 there is no bit of
  /// `regs_avail` for them, and KVM reads the guest's bits each time that it wants them.
  private func control(
    _ member: String, _ field: VMCSField, _ vmcs: DecodedVMCS?
  ) throws(KernelError) -> Reading<UInt64> {
    let kept = try vcpu["arch"].member(member).unsigned()
    let own = try vcpu["arch"].member("\(member)_guest_owned_bits").unsigned()
    let isCurrent = try isAvailable("VCPU_EXREG_" + member.uppercased())
    if isCurrent || own == 0 {
      return .known(kept, RegisterSource(.kvm, "arch.\(member)"))
    }
    guard let vmcs, let live = vmcs.value(field) else {
      return .unknown(
        reason: "\(Self.reason(field, vmcs)); KVM's copy lacks the bits \(hexadecimal(own))")
    }
    return .known(
      kept & ~own | live & own, RegisterSource(.vmcs, "arch.\(member), \(field.label)"))
  }

  /// Where the guest's loads of CR3 exit, as they do with shadow paging and, without unrestricted
  /// guest, while the guest's paging is off, the VMCS has tables of the host's.
  private func pageTableRoot(_ vmcs: DecodedVMCS?) throws(KernelError) -> Reading<UInt64> {
    let told = vmcs?.value(.primaryControls).map { $0 & VMCSField.cr3LoadExiting != 0 }
    guard let exits = told ?? structures.loadsOfCR3Exit(on: host) else {
      return .unknown(reason: Self.reason(.primaryControls, vmcs))
    }
    if !exits { return Self.reading(.cr3, vmcs) }
    return .known(try vcpu["arch.cr3"].unsigned(), RegisterSource(.kvm, "arch.cr3"))
  }

  // MARK: Segments

  /// Where the parts of a segment are.
  private struct SegmentPlace {
    let register: SegmentRegister
    /// Its number in KVM: enum VCPU_SREG_* has TR before LDTR.
    let index: Int

    static let all = [
      SegmentRegister.es, .cs, .ss, .ds, .fs, .gs, .tr, .ldtr,
    ].enumerated().map { SegmentPlace(register: $1, index: $0) }

    /// Its number in the encodings of the VMCS.
    private var number: Int { VMCSField.number(of: register) }

    /// Selector, base, limit and access rights, with the members of KVM's cache in the order of
    /// their bits (enum segment_cache_field).
    var parts: [(field: VMCSField, member: String)] {
      [
        (.selector(number), "selector"), (.base(number), "base"), (.limit(number), "limit"),
        (.accessRights(number), "ar"),
      ]
    }
  }

  /// Each part from the VMCS, or else from KVM's cache, if KVM read it since the last exit.
  private func segment(
    _ place: SegmentPlace, _ vmcs: DecodedVMCS?
  ) throws(KernelError) -> Reading<Segment> {
    let cache = try segmentCache(place)
    var values: [UInt64] = []
    var copies: [String] = []
    for (field, member) in place.parts {
      if let live = vmcs?.value(field) {
        values.append(live)
      } else if let copy = cache[member] {
        values.append(copy)
        copies.append("segment_cache.seg[\(place.index)].\(member)")
      } else {
        return .unknown(reason: Self.reason(field, vmcs))
      }
    }
    let source =
      copies.count == values.count
      ? RegisterSource(.kvm, "vcpu_vmx.segment_cache.seg[\(place.index)]")
      : RegisterSource(
        .vmcs,
        place.parts[0].field.label + " and its base, limit, access rights"
          + copies.map { ", \($0)" }.joined())
    return .known(
      Segment(
        selector: UInt16(truncatingIfNeeded: values[0]), base: values[1],
        limit: UInt32(truncatingIfNeeded: values[2]),
        attributes: SegmentAttributes(vmx: UInt32(truncatingIfNeeded: values[3]))), source)
  }

  private func segmentCache(_ place: SegmentPlace) throws(KernelError) -> [String: UInt64] {
    guard try isAvailable("VCPU_EXREG_SEGMENTS"), let cache = vmx.memberIfPresent("segment_cache")
    else { return [:] }
    let bits = try cache["bitmask"].unsigned() >> UInt64(4 * place.index)
    let saved = try cache["seg"].element(place.index)
    var values: [String: UInt64] = [:]
    for (bit, part) in place.parts.enumerated() where bits >> UInt64(bit) & 1 != 0 {
      values[part.member] = try saved.member(part.member).unsigned()
    }
    return values
  }

  /// `vcpu_vmx.rmode` while the guest's real mode is emulated as virtual-8086 mode, which a
  /// processor without unrestricted guest needs.
  private func realModeEmulation() throws(KernelError) -> KernelObject? {
    guard let state = vmx.memberIfPresent("rmode"), try state["vm86_active"].isTrue() else {
      return nil
    }
    return state
  }

  /// True if the VMCS is that of an emulated real mode, and where KVM keeps the guest's own state
  /// only types tell: KVM sets VM in the flags (`enter_rmode`), which are those of virtual-8086 mode
  /// if the guest's PE is set.
  private func isRealModeUntold(_ vmcs: DecodedVMCS?) throws(KernelError) -> Bool {
    guard !vmx.has("rmode") else { return false }
    let isProtected = try vcpu["arch.cr0"].unsigned() & ControlBits.protection != 0
    // Without the flags nothing tells that the segments are the guest's.
    return !isProtected && vmcs?.value(.rflags).map { $0 & Self.virtual8086 != 0 } ?? true
  }

  private static let untoldRealMode =
    "KVM may emulate the guest's real mode, and where it keeps the guest's state only types tell"

  /// VM of RFLAGS.
  private static let virtual8086: UInt64 = 1 << 17

  /// The segment that the guest loaded, of which the VMCS has a stand-in. If the selectors differ,
  /// the guest has loaded another since, as virtual-8086 mode does without an exit.
  private func emulated(
    _ place: SegmentPlace, in realMode: KernelObject, standIn: Reading<Segment>
  ) throws(KernelError) -> Reading<Segment> {
    let saved = try realMode["segs"].element(place.index)
    let location = "vcpu_vmx.rmode.segs[\(place.index)]"
    var segment = Segment(
      selector: UInt16(truncatingIfNeeded: try saved["selector"].unsigned()),
      base: try saved["base"].unsigned(),
      limit: UInt32(truncatingIfNeeded: try saved["limit"].unsigned()),
      attributes: try saved.segmentAttributes)
    if place.register == .tr { return .known(segment, RegisterSource(.kvm, location)) }
    guard case .known(let live, let source) = standIn else { return standIn }
    guard live.selector != segment.selector else {
      return .known(segment, RegisterSource(.kvm, location))
    }
    segment.selector = live.selector
    segment.base = live.base
    return .known(
      segment, RegisterSource(source.kind, "selector and base of \(source.location), \(location)"))
  }

  // MARK: Model-specific registers

  /// The live value is in the processor's register while `guest_state_loaded`, and no dump has
  /// that. Since 6.16 the member is in `vt`; from 4.19 to 5.1 it is the pointer `loaded_cpu_state`,
  /// before that `host_state.loaded`.
  private func kernelGSBase() throws(KernelError) -> Reading<UInt64> {
    let state = vmx.memberIfPresent("vt") ?? vmx
    let isLoaded =
      state.memberIfPresent("guest_state_loaded") ?? state.memberIfPresent("loaded_cpu_state")
      ?? state.memberIfPresent("host_state")?.memberIfPresent("loaded")
    guard let isLoaded, let copy = vmx.memberIfPresent("msr_guest_kernel_gs_base") else {
      return .unknown(reason: Self.untold("its copy"))
    }
    if try isLoaded.isTrue() {
      return .unknown(reason: "it was in the host processor's register, which no dump holds")
    }
    return .known(
      try copy.unsigned(), RegisterSource(.kvm, "vcpu_vmx.msr_guest_kernel_gs_base"))
  }

  private static func untold(_ what: String) -> String {
    "where kvm_intel keeps \(what) only types tell"
  }

  /// `guest_uret_msrs[]`, in the order of kvm.ko's list of their numbers (since 5.13,
  /// 8ea8b8d6f869). Before, each entry tells its place in a list of kvm_intel's own, and unused
  /// ones follow those in use; before 5.10 all of it has other names.
  func readSystemCallRegisters(into file: inout RegisterFile) throws(KernelError) {
    let name = vmx.has("guest_uret_msrs") ? "guest_uret_msrs" : "guest_msrs"
    guard let slots = vmx.memberIfPresent(name) else {
      for register in Self.systemCallRegisters.values {
        file[register] = .unknown(reason: Self.untold("it"))
      }
      return
    }
    let tellsPlace = ["slot", "index"].first { (try? slots.element(0).has($0)) == true }
    let lists =
      tellsPlace == nil ? ["kvm_uret_msrs_list"] : ["vmx_uret_msrs_list", "vmx_msr_index"]
    guard let list = lists.lazy.compactMap({ host.symbol($0) }).first else {
      for register in Self.systemCallRegisters.values {
        file[register] = .unknown(reason: "the host's symbols do not have \(lists[0])")
      }
      return
    }
    let used = try (vmx.memberIfPresent("nr_uret_msrs") ?? vmx.memberIfPresent("nmsrs"))?.unsigned()
    var found: Set<Register> = []
    for index in 0..<Int(clamping: min(used ?? .max, slots.type.elementCount ?? 0, 16)) {
      let entry = try slots.element(index)
      let place = try tellsPlace.map { member throws(KernelError) in
        try entry.member(member).unsigned()
      }
      let number = try? vcpu.memory.load(
        list + (place ?? UInt64(index)) &* 4, as: UInt32.self)
      guard let register = number.flatMap({ Self.systemCallRegisters[$0] }),
        found.insert(register).inserted
      else { continue }
      file[register] = .known(
        try entry["data"].unsigned(), RegisterSource(.kvm, "vcpu_vmx.\(name)[\(index)]"))
    }
  }

  private static let systemCallRegisters: [UInt32: Register] = [
    0xc000_0081: .star, 0xc000_0082: .lstar, 0xc000_0083: .cstar, 0xc000_0084: .sfmask,
  ]

  private func isAvailable(_ name: String) throws(KernelError) -> Bool {
    guard let bit = host.types.enumerator(named: name), (0..<64).contains(bit) else { return false }
    return try vcpu["arch.regs_avail"].unsigned() >> UInt64(bit) & 1 != 0
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
