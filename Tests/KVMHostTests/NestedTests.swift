import ControlBlocks
import Guest
import KVMHost
import LinuxKernel
import Memory
import SyntheticDumps
import Testing
import X86

/// vCPUs that were running a guest of their guest.
@Suite struct NestedGuestTests {
  /// An Intel vCPU whose nested guest has the values of index 9.
  private struct NestedIntel {
    var guest: IntelGuest
    let vmcs12: SyntheticObject

    init(controls: UInt64 = 1 << 9 | 1 << 19 | 1 << 21) throws {
      guest = try IntelGuest()
      (_, vmcs12) = guest.one.host.enterNestedGuest(try guest.vmx, index: 9)
      guest.one.host.kernel.set(vmcs12, "vm_exit_controls", controls)
    }

    mutating func set(_ member: String, to value: UInt64) {
      guest.one.host.kernel.set(vmcs12, member, value)
    }

    func read() throws -> VirtualProcessor { try guest.analysis().guest.processors[0] }
  }

  private func vmcs12(_ member: String) -> UInt64 { SyntheticHost.value("vmcs12.\(member)", 9) }

  private func location<Value>(_ reading: Reading<Value>) -> String? {
    if case .known(_, let source) = reading { source.location } else { nil }
  }

  @Test func `on Intel a guest resumes with the host state of its VMCS`() throws {
    let nested = try NestedIntel()
    let registers = try nested.read().registers
    for (register, member) in [
      (Register.rip, "host_rip"), (.rsp, "host_rsp"), (.cr0, "host_cr0"), (.cr3, "host_cr3"),
      (.cr4, "host_cr4"), (.efer, "host_ia32_efer"), (.pat, "host_ia32_pat"),
      (.sysenterESP, "host_ia32_sysenter_esp"), (.sysenterEIP, "host_ia32_sysenter_eip"),
    ] {
      expect(registers[register], vmcs12(member), .kvm)
      #expect(location(registers[register]) == "nested.cached_vmcs12->\(member)")
    }
    expect(registers[.sysenterCS], vmcs12("host_ia32_sysenter_cs") & 0xffff_ffff, .kvm)
    expect(registers[.rflags], 2, .kvm)
    expect(registers[.dr7], 0x400, .kvm)
    for (register, base, limit, attributes) in [
      (SegmentRegister.cs, nil, 0xffff_ffff, 0xa0_9b00), (.ss, nil, 0xffff_ffff, 0xc0_9300),
      (.ds, nil, 0xffff_ffff, 0xc0_9300), (.es, nil, 0xffff_ffff, 0xc0_9300),
      (.fs, "host_fs_base", 0xffff_ffff, 0xc0_9300), (.gs, "host_gs_base", 0xffff_ffff, 0xc0_9300),
      (.tr, "host_tr_base", 0x67, 0x8b00),
    ] as [(SegmentRegister, String?, UInt32, UInt32)] {
      let segment = registers[register].value
      #expect(
        segment?.selector
          == UInt16(truncatingIfNeeded: vmcs12("host_\(register.rawValue)_selector")))
      #expect(segment?.base == base.map(vmcs12) ?? 0, "\(register)")
      #expect(segment?.limit == limit, "\(register)")
      #expect(segment?.attributes.rawValue == attributes, "\(register)")
    }
    #expect(registers[.ldtr].value?.attributes == .unusable)
    for register in TableRegister.allCases {
      #expect(
        registers[register].value
          == DescriptorTable(base: vmcs12("host_\(register.rawValue)_base"), limit: 0xffff))
    }
    #expect(registers.unknown.isEmpty)
  }

  @Test func `what an exit does not load is as the nested guest left it`() throws {
    let registers = try NestedIntel().read().registers
    for register in Register.general where register != .rsp {
      expect(registers[register], SyntheticHost.value(register.rawValue, 0), .kvm)
      #expect(location(registers[register])?.hasSuffix(", as the nested guest left it") == true)
    }
    for register in [Register.cr2, .dr0, .dr3, .dr6, .xcr0] {
      expect(registers[register], SyntheticHost.value(register.rawValue, 0), .kvm)
    }
    expect(registers[.lstar], SyntheticHost.value("msr c0000082", 0), .kvm)
    #expect(location(registers[.lstar])?.hasSuffix(", as the nested guest left it") == true)
    // The guest's own at all times.
    expect(registers[.apicBase], SyntheticHost.value("apic_base", 0), .kvm)
    #expect(location(registers[.apicBase]) == "arch.apic_base")
  }

  @Test func `the nested guest's registers are those of the second VMCS`() throws {
    let found = try NestedIntel().guest.analysis().guest
    let registers = try #require(found.processors[0].nested)
    for (register, encoding) in [
      (Register.rip, UInt32(0x681e)), (.rsp, 0x681c), (.rflags, 0x6820), (.cr3, 0x6802),
    ] {
      expect(registers[register], SyntheticHost.fieldValue(encoding, 9), .vmcs)
    }
    #expect(registers[.gs].value?.base == SyntheticHost.fieldValue(0x6810, 9))
    expect(registers[.rax], SyntheticHost.value("rax", 0), .kvm)
    #expect(registers.unknown == ["cr8", "apic_base"])
    #expect(found.findings.map(\.name) == ["vcpu.vmcs-layout", "vcpu.nested"])
    #expect(found.findings.allSatisfy { $0.severity == .note })
  }

  @Test(arguments: [false, true])
  func `without a value to load, EFER's mode follows the exit's controls`(isLong: Bool) throws {
    var nested = try NestedIntel(controls: isLong ? 1 << 9 : 0)
    nested.guest.setArch("efer", to: isLong ? 1 : 0xd01)
    let registers = try nested.read().registers
    expect(registers[.efer], isLong ? 0x501 : 0x801, .kvm)
    expect(registers[.pat], SyntheticHost.value("pat", 0), .kvm)
    #expect(registers[.cs].value?.attributes.rawValue == (isLong ? 0xa0_9b00 : 0xc0_9b00))
  }

  @Test func `registers that a list in the guest's memory may load are unknown`() throws {
    var nested = try NestedIntel()
    nested.set("vm_exit_msr_load_count", to: 2)
    let registers = try nested.read().registers
    #expect(registers.unknown == ["kernel_gs_base", "star", "lstar", "cstar", "sfmask"])
  }

  @Test func `without the guest's VMCS its registers are unknown, the nested guest's are not`()
    throws
  {
    var nested = try NestedIntel()
    try nested.guest.setVMX("nested.cached_vmcs12", to: 0)
    let found = try nested.guest.analysis().guest
    let processor = found.processors[0]
    #expect(processor.registers[.rip].value == nil)
    #expect(processor.registers[.cs].value == nil)
    #expect(processor.registers[.idtr].value == nil)
    #expect(processor.registers[.rbx].value == SyntheticHost.value("rbx", 0))
    #expect(processor.nested?[.rip].value == SyntheticHost.fieldValue(0x681e, 9))
    let finding = try #require(found.findings.first { $0.name == "vcpu.nested" })
    #expect(finding.severity == .warning)
    #expect(finding.text.contains("cached_vmcs12"))
  }

  @Test func `without a layout the guest's registers are known, the nested guest's are not`()
    throws
  {
    let nested = try NestedIntel()
    let processor = try nested.guest.analysis(knowingLayout: false).guest.processors[0]
    expect(processor.registers[.rip], vmcs12("host_rip"), .kvm)
    #expect(processor.nested?[.rip].value == nil)
  }

  // MARK: A host that is KVM's guest

  @Test func `VMCSs of a host that is KVM's guest itself have the layout of KVM, which is known`()
    throws
  {
    let layout = try #require(VMCSLayoutDatabase.vmcs12)
    var options = SyntheticHost.Options.intel
    options.vmcs = SyntheticVMCSLayout(
      revision: try #require(layout.revision),
      places: layout.fields.reduce(into: [:]) { places, field in
        guard let offset = layout.offset(of: field), let size = layout.storedSize(of: field) else {
          return
        }
        places[field.encoding] = (offset, size)
      })
    let found = try IntelGuest(options).analysis(knowingLayout: false).guest
    let registers = found.processors[0].registers
    for (register, encoding) in [
      (Register.rip, UInt32(0x681e)), (.rsp, 0x681c), (.rflags, 0x6820), (.cr3, 0x6802),
      (.sysenterEIP, 0x6826),
    ] {
      expect(registers[register], SyntheticHost.fieldValue(encoding, 0), .vmcs)
    }
    #expect(registers[.gs].value?.base == SyntheticHost.fieldValue(0x6810, 0))
    #expect(registers[.tr].value?.limit == UInt32(SyntheticHost.fieldValue(0x480e, 0)))
    #expect(registers.unknown.isEmpty)
    #expect(found.findings.map(\.name) == ["vcpu.vmcs-kept-by-kvm", "vcpu.vmcs-layout"])
    #expect(found.findings[1].text.contains("KVM's vmcs12"))
  }

  // MARK: AMD

  @Test func `on AMD a guest resumes with what VMRUN saved in the first block`() throws {
    var one = try OneGuest(processors: 1)
    let svm = try #require(one.machine.processors[0].svm)
    let second = one.host.makeControlBlock(9)
    one.host.kernel.set(svm, "vmcb", second.address)
    one.host.kernel.set(svm, "nested.vmcb02.ptr", second.address)
    one.host.kernel.set(svm, "current_vmcb", one.host.kernel.address(svm, "nested.vmcb02"))
    let found = try Analysis(one.host).guest
    #expect(found.findings.map(\.name) == ["vcpu.nested"])
    try expectAMD(found.processors[0], saved: 0, path: "vmcb01.ptr->save")
  }

  @Test func `before 5.12 it is what KVM saved at VMRUN`() throws {
    var options = SyntheticHost.Options()
    options.change = Variant.linux5_10
    var one = try OneGuest(options, processors: 1)
    let processor = one.machine.processors[0]
    let svm = try #require(processor.svm)
    let saved = one.host.makeControlBlock(7)
    let current = one.host.makeControlBlock(9)
    one.host.kernel.set(svm, "vmcb", current.address)
    one.host.kernel.set(svm, "nested.hsave", saved.address)
    #expect(try Analysis(one.host).guest.processors[0].nested == nil)
    one.host.kernel.set(processor.vcpu, "arch.hflags", 1 << 5)
    let found = try Analysis(one.host).guest
    #expect(found.findings.map(\.name) == ["vcpu.nested"])
    try expectAMD(found.processors[0], saved: 7, shared: 9, path: "nested.hsave->save")
  }

  /// - Parameters:
  ///   - saved: the index of the values that VMRUN saved.
  ///   - shared: that of the block with what VMRUN does not switch.
  private func expectAMD(
    _ processor: VirtualProcessor, saved: Int, shared: Int = 0, path: String
  ) throws {
    let registers = processor.registers
    for register in [Register.rip, .rsp, .rax, .rflags, .cr3, .cr4, .efer] {
      expect(registers[register], SyntheticHost.value("save.\(register.rawValue)", saved), .vmcb)
      #expect(location(registers[register]) == "\(path).\(register.rawValue)")
    }
    expect(registers[.cr0], SyntheticHost.value("save.cr0", saved) | 1, .vmcb)
    expect(registers[.dr7], 0x400, .kvm)
    expect(registers[.rbx], SyntheticHost.value("rbx", 0), .kvm)
    #expect(location(registers[.rbx])?.hasSuffix(", as the nested guest left it") == true)
    for register in [SegmentRegister.cs, .ss, .ds, .es] {
      #expect(
        registers[register].value?.base
          == SyntheticHost.value("save.\(register.rawValue)", saved))
    }
    for register in [SegmentRegister.fs, .gs, .tr, .ldtr] {
      #expect(
        registers[register].value?.base
          == SyntheticHost.value("save.\(register.rawValue)", shared))
    }
    for register in TableRegister.allCases {
      #expect(
        registers[register].value?.base
          == SyntheticHost.value("save.\(register.rawValue)", saved))
    }
    expect(registers[.lstar], SyntheticHost.value("save.lstar", shared), .vmcb)
    expect(registers[.apicBase], SyntheticHost.value("apic_base", 0), .kvm)

    let nested = try #require(processor.nested)
    expect(nested[.cr3], SyntheticHost.value("save.cr3", 9), .vmcb)
    expect(nested[.rip], SyntheticHost.value("rip", 0), .kvm)
    #expect(nested[.cs].value?.base == SyntheticHost.value("save.cs", 9))
    #expect(nested[.idtr].value?.base == SyntheticHost.value("save.idtr", 9))
    #expect(nested[.gs].value?.base == SyntheticHost.value("save.gs", shared))
    #expect(nested[.lstar].value == SyntheticHost.value("save.lstar", shared))
    #expect(nested[.cr8].value == nil)
  }
}
