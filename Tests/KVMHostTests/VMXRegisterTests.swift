import ControlBlocks
import Guest
import KVMHost
import LinuxKernel
import Memory
import SyntheticDumps
import Testing
import X86

/// An Intel host with one guest, whose layout of the VMCS the user gives.
struct IntelGuest {
  var one: OneGuest
  let layout: SyntheticVMCSLayout

  init(_ options: SyntheticHost.Options = .intel, processors: Int = 1) throws {
    one = try OneGuest(options, processors: processors)
    layout = options.vmcs
  }

  var processor: SyntheticHost.Processor { one.machine.processors[0] }

  var vmx: SyntheticObject {
    get throws { try #require(processor.vmx) }
  }

  /// Sets a field of the VMCS.
  mutating func set(_ encoding: UInt32, to value: UInt64) throws {
    one.host.set(encoding, of: try #require(processor.vmcs), to: value)
  }

  /// Sets a member of `kvm_vcpu.arch`.
  mutating func setArch(_ member: String, to value: UInt64) {
    one.host.kernel.set(processor.vcpu, "arch.\(member)", value)
  }

  mutating func setVMX(_ member: String, to value: UInt64) throws {
    one.host.kernel.set(try vmx, member, value)
  }

  mutating func setAvailable(_ names: String..., isCurrent: Bool = true) {
    for name in names { one.host.setAvailable(processor.vcpu, name, isCurrent) }
  }

  func analysis(knowingLayout isKnown: Bool = true) throws -> Analysis {
    try Analysis(one.host, layout: isKnown ? layout.text() : nil)
  }

  func registers(of index: Int = 0) throws -> RegisterFile {
    try analysis().guest.processors[index].registers
  }
}

/// Whether the reading is this value, of this kind of source.
func expect(
  _ reading: Reading<UInt64>, _ value: UInt64, _ kind: RegisterSource.Kind,
  at location: SourceLocation = #_sourceLocation
) {
  guard case .known(let found, let source) = reading else {
    Issue.record("\(reading)", sourceLocation: location)
    return
  }
  #expect(found == value, sourceLocation: location)
  #expect(source.kind == kind, sourceLocation: location)
}

private typealias Change = @Sendable (inout KernelTypes) -> Void

/// Each register from the place that has its current value.
@Suite struct VMXRegisterTests {
  private static let numbers: [SegmentRegister: UInt32] = [
    .es: 0, .cs: 1, .ss: 2, .ds: 3, .fs: 4, .gs: 5, .ldtr: 6, .tr: 7,
  ]

  private static func base(_ register: SegmentRegister, _ index: Int) -> UInt64 {
    SyntheticHost.fieldValue(0x6806 + 2 * (numbers[register] ?? 0), index)
  }

  private static func selector(_ register: SegmentRegister, _ index: Int) -> UInt16 {
    UInt16(
      truncatingIfNeeded: SyntheticHost.fieldValue(0x0800 + 2 * (numbers[register] ?? 0), index))
  }

  private static func limit(_ register: SegmentRegister, _ index: Int) -> UInt32 {
    UInt32(
      truncatingIfNeeded: SyntheticHost.fieldValue(0x4800 + 2 * (numbers[register] ?? 0), index))
  }

  /// All that is known of a vCPU of which KVM has read nothing since its exit.
  private static func expectWhole(_ registers: RegisterFile, _ index: Int) {
    for register in Register.general where register != .rsp {
      expect(registers[register], SyntheticHost.value(register.rawValue, index), .kvm)
    }
    for (register, encoding) in [
      (Register.rip, UInt32(0x681e)), (.rsp, 0x681c), (.rflags, 0x6820), (.cr3, 0x6802),
      (.sysenterCS, 0x482a), (.sysenterESP, 0x6824), (.sysenterEIP, 0x6826),
    ] {
      expect(registers[register], SyntheticHost.fieldValue(encoding, index), .vmcs)
    }
    for register in [
      Register.cr0, .cr2, .cr4, .cr8, .efer, .dr0, .dr1, .dr2, .dr3, .dr6, .dr7, .pat, .xcr0,
      .apicBase, .kernelGSBase,
    ] {
      expect(registers[register], SyntheticHost.value(register.rawValue, index), .kvm)
    }
    for (register, number) in [
      (Register.star, "c0000081"), (.lstar, "c0000082"), (.cstar, "c0000083"),
      (.sfmask, "c0000084"),
    ] {
      expect(registers[register], SyntheticHost.value("msr \(number)", index), .kvm)
    }
    for register in SegmentRegister.allCases {
      let segment = registers[register].value
      #expect(segment?.base == base(register, index), "\(register)")
      #expect(segment?.selector == selector(register, index), "\(register)")
      #expect(segment?.limit == limit(register, index), "\(register)")
      let attributes: UInt32 =
        switch register {
        case .cs: 0xa0_9b00
        case .tr: 0x8b00
        // Unusable: as KVM and QEMU have it, not present.
        case .ldtr: 0
        default: 0xc0_9300
        }
      #expect(segment?.attributes.rawValue == attributes, "\(register)")
    }
    for (register, base, limit) in [
      (TableRegister.gdtr, UInt32(0x6816), UInt32(0x4810)), (.idtr, 0x6818, 0x4812),
    ] {
      #expect(registers[register].value?.base == SyntheticHost.fieldValue(base, index))
      #expect(
        (registers[register].value?.limit).map(UInt64.init)
          == SyntheticHost.fieldValue(limit, index))
    }
    #expect(registers.unknown.isEmpty)
  }

  private static let kernels: [(name: String, change: Change, extra: [String])] = {
    let all = ["PDPTR", "CR0", "CR3", "CR4", "RFLAGS", "SEGMENTS"]
    let few = ["PDPTR", "CR3", "RFLAGS", "SEGMENTS"]
    return [
      ("6.1 to 6.15", { _ in }, all),
      ("6.8 to 6.15", Variant.linux6_8, all),
      (
        "6.16",
        {
          Variant.linux6_16(&$0)
          Variant.trustDomains(&$0)
          Variant.sharedWithTDX(&$0)
        }, all
      ),
      ("5.13 to 5.16", Variant.linux5_14, all),
      (
        "5.10",
        {
          Variant.linux5_14(&$0)
          Variant.registersBySlot(&$0)
        }, all
      ),
      (
        "4.18 of RHEL 8.3",
        {
          Variant.vcpuArray(&$0)
          Variant.fixedSlotArray(&$0)
          Variant.noName(&$0)
          Variant.sharedRegisters(&$0)
        }, all
      ),
      (
        "4.19",
        {
          Variant.vcpuArray(&$0)
          Variant.fixedSlotArray(&$0)
          Variant.noName(&$0)
          Variant.sharedRegisters(&$0)
          Variant.loadedState(&$0)
          Variant.noControls(&$0)
        }, few
      ),
    ]
  }()

  @Test(arguments: kernels.map(\.name), [1, 2] as [UInt64])
  func `an Intel guest is found whole under Linux`(release: String, seed: UInt64) throws {
    let kernel = try #require(Self.kernels.first { $0.name == release })
    var options = SyntheticHost.Options.intel
    options.seed = seed
    options.vmcs = SyntheticVMCSLayout(seed: seed)
    options.change = kernel.change
    options.extraRegisters = kernel.extra
    let guest = try IntelGuest(options, processors: 2)
    let found = try guest.analysis().guest
    #expect(found.identity.backend == "KVM (Intel VMX)")
    for (index, processor) in found.processors.enumerated() {
      #expect(processor.nested == nil)
      Self.expectWhole(processor.registers, index)
    }
    #expect(found.findings.map(\.name) == ["vcpu.vmcs-layout"])
  }

  @Test func `KVM built in`() throws {
    var options = SyntheticHost.Options.intel
    options.modules = []
    Self.expectWhole(try IntelGuest(options).registers(), 0)
  }

  // MARK: RIP, RSP, RFLAGS

  @Test func `RIP and RSP that KVM has read or written are its own`() throws {
    var guest = try IntelGuest()
    guest.setAvailable("rip")
    // Behind an instruction that KVM emulated; the VMCS has its start.
    guest.setArch("regs_dirty", to: 0xffff_ffff)
    guest.one.host.setRegister(guest.processor.vcpu, "rip", to: 0x1234)
    let registers = try guest.registers()
    expect(registers[.rip], 0x1234, .kvm)
    expect(registers[.rsp], SyntheticHost.fieldValue(0x681c, 0), .vmcs)
  }

  @Test func `RFLAGS that KVM has read are its own`() throws {
    var guest = try IntelGuest()
    guest.setAvailable("RFLAGS")
    try guest.setVMX("rflags", to: 0x246)
    expect(try guest.registers()[.rflags], 0x246, .kvm)
  }

  // MARK: Control registers

  @Test(arguments: [false, true])
  func `bits of CR0 and CR4 that the guest owns are the VMCS's, unless KVM has read them`(
    isCurrent: Bool
  ) throws {
    var guest = try IntelGuest()
    // TS is set since; NE is the host's.
    guest.setArch("cr0", to: 0x8005_0013)
    guest.setArch("cr0_guest_owned_bits", to: 1 << 3)
    try guest.set(0x6800, to: 0x8005_003b)
    // PGE is cleared since; VMXE and MCE are the host's, UMIP is emulated.
    guest.setArch("cr4", to: 0x8a0)
    guest.setArch("cr4_guest_owned_bits", to: 0x7a6)
    try guest.set(0x6804, to: 0x2060)
    if isCurrent { guest.setAvailable("CR0", "CR4") }
    let registers = try guest.registers()
    expect(registers[.cr0], isCurrent ? 0x8005_0013 : 0x8005_001b, isCurrent ? .kvm : .vmcs)
    expect(registers[.cr4], isCurrent ? 0x8a0 : 0x820, isCurrent ? .kvm : .vmcs)
  }

  @Test func `without bits for CR0 and CR4 the guest's own are always the VMCS's (until 5.7)`()
    throws
  {
    var options = SyntheticHost.Options.intel
    options.extraRegisters = ["PDPTR", "CR3", "RFLAGS", "SEGMENTS"]
    var guest = try IntelGuest(options)
    guest.setArch("cr0", to: 0x8005_0013)
    guest.setArch("cr0_guest_owned_bits", to: 1 << 3)
    try guest.set(0x6800, to: 0x8005_003b)
    expect(try guest.registers()[.cr0], 0x8005_001b, .vmcs)
  }

  @Test func `CR3 that KVM has read is its own`() throws {
    var guest = try IntelGuest()
    guest.setAvailable("CR3")
    expect(try guest.registers()[.cr3], SyntheticHost.value("cr3", 0), .kvm)
  }

  @Test(arguments: [false, true])
  func `with shadow paging CR3 is not that of the VMCS`(hasCopies: Bool) throws {
    var options = SyntheticHost.Options.intel
    if !hasCopies { options.change = Variant.noControls }
    var guest = try IntelGuest(options)
    guest.one.host.interceptCR3Loads(guest.processor)
    expect(try guest.registers()[.cr3], SyntheticHost.value("cr3", 0), .kvm)
  }

  @Test func `EFER is never the VMCS's`() throws {
    var guest = try IntelGuest()
    guest.setArch("efer", to: 0xd01)
    try guest.set(0x2806, to: 0x500)
    expect(try guest.registers()[.efer], 0xd01, .kvm)
  }

  @Test func `with KVM's own APIC, CR8 is in its page`() throws {
    var guest = try IntelGuest()
    guest.one.host.addAPIC(to: guest.processor, taskPriority: 0xb0)
    expect(try guest.registers()[.cr8], 0xb, .kvm)
  }

  // MARK: Segments

  @Test(arguments: SyntheticVMCSLayout.AccessRights.allCases, [false, true])
  func `access rights in every form, told bit by bit or found out`(
    form: SyntheticVMCSLayout.AccessRights, isTold: Bool
  ) throws {
    var options = SyntheticHost.Options.intel
    options.vmcs = SyntheticVMCSLayout(seed: 3, accessRights: form)
    let guest = try IntelGuest(options)
    let found = try Analysis(guest.one.host, layout: options.vmcs.text(bits: isTold))
    Self.expectWhole(try found.guest.processors[0].registers, 0)
  }

  @Test func `an unusable segment is not present`() throws {
    var guest = try IntelGuest()
    try guest.set(0x481a, to: 0x1_c0f3)
    let registers = try guest.registers()
    #expect(registers[.ldtr].value?.attributes.isPresent == false)
    #expect(registers[.ds].value?.attributes.isPresent == false)
    #expect(registers[.es].value?.attributes.isPresent == true)
  }

  @Test func `segments are the VMCS's even if KVM has them in its cache`() throws {
    var guest = try IntelGuest()
    guest.setAvailable("SEGMENTS")
    guest.one.host.fillSegmentCache(try guest.vmx, index: 0)
    let registers = try guest.registers()
    Self.expectWhole(registers, 0)
    guard case .known(_, let source) = registers[.cs] else { return }
    #expect(source.kind == .vmcs)
  }

  @Test func `what a layout lacks of a segment is in KVM's cache`() throws {
    var guest = try IntelGuest()
    guest.setAvailable("SEGMENTS")
    guest.one.host.fillSegmentCache(try guest.vmx, index: 0)
    var layout = guest.layout
    for encoding in [0x0802, 0x4802, 0x4816] as [UInt32] { layout.places[encoding] = nil }
    for encoding in [0x080e, 0x6814, 0x480e, 0x4822] as [UInt32] { layout.places[encoding] = nil }
    let found = try Analysis(guest.one.host, layout: layout.text())
    let registers = try found.guest.processors[0].registers
    Self.expectWhole(registers, 0)
    #expect(
      registers[.tr]
        == .known(
          try #require(registers[.tr].value),
          RegisterSource(.kvm, "vcpu_vmx.segment_cache.seg[6]")))
  }

  @Test func `the cache counts as far as it is filled since the last exit`() throws {
    var guest = try IntelGuest()
    guest.one.host.fillSegmentCache(try guest.vmx, index: 0)
    var layout = guest.layout
    layout.places[0x080c] = nil
    layout.places[0x6812] = nil
    // LDTR is the last in the cache: its selector is bit 28, its base bit 29.
    for (isCurrent, mask, isKnown) in [
      (false, UInt64(0xffff_ffff), false), (true, 0xffff_ffff, true), (true, 0x3000_0000, true),
      (true, 0x1000_0000, false), (true, 0xdfff_ffff, false), (true, 0, false),
    ] {
      guest.setAvailable("SEGMENTS", isCurrent: isCurrent)
      try guest.setVMX("segment_cache.bitmask", to: mask)
      let registers = try Analysis(guest.one.host, layout: layout.text())
        .guest.processors[0].registers
      #expect((registers[.ldtr].value != nil) == isKnown, "\(isCurrent) \(hexadecimal(mask))")
    }
  }

  // MARK: Model-specific registers

  private static let states: [(name: String, change: Change)] = [
    ("guest_state_loaded", { _ in }), ("vt.guest_state_loaded (since 6.16)", Variant.sharedWithTDX),
    ("loaded_cpu_state (until 5.1)", Variant.loadedState),
  ]

  @Test(arguments: states.map(\.name))
  func `KERNEL_GS_BASE is lost while the processor has it, by`(member: String) throws {
    var options = SyntheticHost.Options.intel
    options.change = try #require(Self.states.first { $0.name == member }).change
    var guest = try IntelGuest(options)
    guest.one.host.setGuestStateLoaded(try guest.vmx, true)
    let registers = try guest.registers()
    #expect(
      registers[.kernelGSBase]
        == .unknown(reason: "it was in the host processor's register, which no dump holds"))
    #expect(registers.unknown == ["kernel_gs_base"])
  }

  @Test func `without the list of lazily loaded registers they are unknown`() throws {
    var options = SyntheticHost.Options.intel
    options.hasLazyRegisterList = false
    let registers = try IntelGuest(options).registers()
    #expect(registers.unknown == ["star", "lstar", "cstar", "sfmask"])
    #expect(
      registers[.star] == .unknown(reason: "the host's symbols do not have kvm_uret_msrs_list"))
  }

  // MARK: Real mode

  /// A vCPU whose real mode KVM emulates as virtual-8086 mode.
  private func realMode() throws -> IntelGuest {
    var guest = try IntelGuest()
    try guest.setVMX("rmode.vm86_active", to: 1)
    // IOPL is 0 in the guest; VM and IOPL 3 are the host's.
    try guest.setVMX("rmode.save_rflags", to: 0x2)
    try guest.set(0x6820, to: 1 << 17 | 3 << 12 | 0x246)
    for index in 0..<8 as Range<UInt64> {
      let segment = "rmode.segs[\(index)]"
      for (member, value) in [
        ("selector", 0x1000 + index), ("base", 0x1_0000 + index << 4), ("limit", 0xffff),
        ("type", index == 6 ? 11 : 3), ("s", index == 6 ? 0 : 1), ("dpl", 0), ("present", 1),
        ("db", 0), ("l", 0), ("g", 0), ("avl", 0), ("unusable", 0),
      ] as [(String, UInt64)] {
        try guest.setVMX("\(segment).\(member)", to: value)
      }
      // The stand-in: a virtual-8086 segment with the same selector.
      if index < 6 {
        let number = UInt32(2 * index)
        try guest.set(0x0800 + number, to: 0x1000 + index)
        try guest.set(0x6806 + number, to: 0x1_0000 + index << 4)
        try guest.set(0x4814 + number, to: 0xf3)
      }
    }
    return guest
  }

  @Test func `real mode emulated as virtual-8086 mode shows as real mode`() throws {
    let registers = try realMode().registers()
    expect(registers[.rflags], 0x246, .vmcs)
    for (register, index) in [
      (SegmentRegister.es, 0), (.cs, 1), (.ss, 2), (.ds, 3), (.fs, 4), (.gs, 5),
    ] as [(SegmentRegister, UInt64)] {
      let segment = registers[register].value
      #expect(segment?.selector == UInt16(0x1000 + index))
      #expect(segment?.base == 0x1_0000 + index << 4)
      #expect(segment?.attributes.rawValue == 0x9300, "privilege level 0, not the stand-in's 3")
    }
    // enum VCPU_SREG_* has TR sixth; LDTR has no stand-in.
    #expect(registers[.tr].value?.selector == 0x1006)
    #expect(registers[.tr].value?.attributes.rawValue == 0x8b00)
    #expect(registers[.ldtr].value?.selector == Self.selector(.ldtr, 0))
  }

  @Test func `a segment that the guest has loaded since has the VMCS's selector and base`() throws {
    var guest = try realMode()
    try guest.set(0x0806, to: 0x2000)
    try guest.set(0x680c, to: 0x2_0000)
    let segment = try guest.registers()[.ds].value
    #expect(segment?.selector == 0x2000)
    #expect(segment?.base == 0x2_0000)
    #expect(segment?.attributes.rawValue == 0x9300)
  }

  @Test func `until 4_20 a pointer tells where exits lead`() throws {
    func layout(_ pointsAtExitHandler: Bool) throws -> String? {
      var options = SyntheticHost.Options.intel
      options.pointsAtExitHandler = pointsAtExitHandler
      let found = try IntelGuest(options).analysis().guest
      return found.findings.first { $0.name == "vcpu.vmcs-layout" }?.text
    }
    // As many values agree.
    #expect(try layout(true) == layout(false))
    #expect(try layout(true) != nil)
  }

  // MARK: No VMCS

  /// What KVM has of a vCPU whose VMCS cannot be read.
  private static func expectCopies(_ registers: RegisterFile) {
    for register in Register.general where register != .rsp {
      expect(registers[register], SyntheticHost.value(register.rawValue, 0), .kvm)
    }
    for register in [Register.cr0, .cr2, .cr4, .efer, .dr7, .pat, .kernelGSBase] {
      expect(registers[register], SyntheticHost.value(register.rawValue, 0), .kvm)
    }
    expect(registers[.lstar], SyntheticHost.value("msr c0000082", 0), .kvm)
    #expect(
      registers.unknown == [
        "rsp", "rip", "rflags", "cr3", "sysenter_cs", "sysenter_esp", "sysenter_eip", "cs", "ds",
        "es", "fs", "gs", "ss", "ldtr", "tr", "gdtr", "idtr",
      ])
    let reason = "only the VMCS has it, which cannot be read"
    #expect(registers[.rip] == .unknown(reason: reason))
    #expect(registers[.cr3] == .unknown(reason: reason))
    #expect(registers[.cs] == .unknown(reason: reason))
    #expect(registers[.gdtr] == .unknown(reason: reason))
  }

  @Test func `a VMCS that is not in the dump leaves what KVM has`() throws {
    let guest = try IntelGuest()
    let vmcs = try #require(guest.processor.vmcs)
    let frame = try #require(guest.one.host.kernel.physical(vmcs)).frame
    let found = try Analysis(guest.one.host, excluding: [frame], layout: guest.layout.text()).guest
    Self.expectCopies(found.processors[0].registers)
    #expect(found.findings.map(\.name) == ["vcpu.no-control-block"])
  }

  @Test func `a VMCS that the processor has not written back leaves what KVM has`() throws {
    var guest = try IntelGuest()
    let vmcs = try #require(guest.processor.vmcs)
    guest.one.host.kernel.write([UInt8](repeating: 0, count: 4088), at: vmcs + 8)
    let found = try guest.analysis().guest
    Self.expectCopies(found.processors[0].registers)
    #expect(found.findings.map(\.name) == ["vcpu.vmcs-stale"])
  }

  @Test func `without a VMCS everything that KVM has read since the last exit is known`() throws {
    var guest = try IntelGuest()
    let vmcs = try #require(guest.processor.vmcs)
    guest.one.host.kernel.write([UInt8](repeating: 0, count: 4088), at: vmcs + 8)
    guest.setAvailable("rip", "rsp", "RFLAGS", "CR3", "SEGMENTS")
    guest.one.host.setRegister(guest.processor.vcpu, "rip", to: 0x1234)
    guest.one.host.setRegister(guest.processor.vcpu, "rsp", to: 0x5678)
    try guest.setVMX("rflags", to: 0x246)
    guest.one.host.fillSegmentCache(try guest.vmx, index: 0)
    let registers = try guest.registers()
    expect(registers[.rip], 0x1234, .kvm)
    expect(registers[.rsp], 0x5678, .kvm)
    expect(registers[.rflags], 0x246, .kvm)
    expect(registers[.cr3], SyntheticHost.value("cr3", 0), .kvm)
    for register in SegmentRegister.allCases {
      #expect(registers[register].value?.base == Self.base(register, 0))
    }
    #expect(
      registers.unknown == ["sysenter_cs", "sysenter_esp", "sysenter_eip", "gdtr", "idtr"])
  }

  @Test func `without a VMCS CR3 is known where the guest's loads of it exit`() throws {
    var guest = try IntelGuest()
    guest.one.host.interceptCR3Loads(guest.processor)
    let vmcs = try #require(guest.processor.vmcs)
    guest.one.host.kernel.write([UInt8](repeating: 0, count: 4088), at: vmcs + 8)
    expect(try guest.registers()[.cr3], SyntheticHost.value("cr3", 0), .kvm)
  }

  @Test func `without a VMCS control registers that the guest has bits of are unknown`() throws {
    var guest = try IntelGuest()
    guest.setArch("cr0_guest_owned_bits", to: 8)
    let vmcs = try #require(guest.processor.vmcs)
    guest.one.host.kernel.write([UInt8](repeating: 0, count: 4088), at: vmcs + 8)
    let registers = try guest.registers()
    #expect(
      registers[.cr0]
        == .unknown(
          reason: "only the VMCS has it, which cannot be read; KVM's copy lacks the bits 0x8"))
    expect(registers[.cr4], SyntheticHost.value("cr4", 0), .kvm)
  }
}
