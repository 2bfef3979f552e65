import ControlBlocks
import Guest
import KVMHost
import LinuxKernel
import Memory
import SyntheticDumps
import Testing
import X86

/// Intel hosts whose kernel has no types of its modules.
@Suite struct UntypedIntelTests {
  private static func guest(
    processors: Int = 2, _ change: @escaping @Sendable (inout KernelTypes) -> Void = { _ in }
  ) throws -> IntelGuest {
    var options = SyntheticHost.Options.intel
    options.modulesHaveTypes = false
    options.change = {
      change(&$0)
      Variant.untyped(&$0)
    }
    var guest = try IntelGuest(options, processors: processors)
    for (index, processor) in guest.one.machine.processors.enumerated() {
      guest.one.host.completeLazyRegisters(try #require(processor.vmx))
      try protect(&guest, processor, index)
    }
    return guest
  }

  /// Sets CR0.PE: without it the flags tell whether real mode is emulated.
  private static func protect(
    _ guest: inout IntelGuest, _ processor: SyntheticHost.Processor, _ index: Int
  ) throws {
    let vmcs = try #require(processor.vmcs)
    for encoding in [0x6800, 0x6004] as [UInt32] {
      guest.one.host.set(encoding, of: vmcs, to: SyntheticHost.fieldValue(encoding, index) | 1)
    }
    let cr0 = SyntheticHost.value("cr0", index) | 1
    guest.one.host.kernel.set(processor.vcpu, "arch.cr0", cr0)
  }

  private static func names(_ guest: Guest) -> Set<String> { Set(guest.findings.map(\.name)) }

  /// KERNEL_GS_BASE is told by nothing but types.
  @Test(arguments: ["5.13", "5.10 to 5.12", "until 5.9"])
  func `registers are found by what all vCPUs point at, with the MSRs of`(kernel: String) throws {
    let guest = try Self.guest {
      switch kernel {
      case "5.10 to 5.12": Variant.registersBySlot(&$0)
      case "until 5.9": Variant.sharedRegisters(&$0)
      default: break
      }
    }
    let found = try guest.analysis().guest
    for processor in found.processors {
      let registers = processor.registers
      for (register, encoding) in [
        (Register.rip, UInt32(0x681e)), (.rsp, 0x681c), (.rflags, 0x6820), (.cr3, 0x6802),
        (.sysenterCS, 0x482a), (.sysenterEIP, 0x6826),
      ] {
        expect(
          registers[register], SyntheticHost.fieldValue(encoding, processor.index), .vmcs)
      }
      for (register, number) in [
        (Register.star, "c0000081"), (.lstar, "c0000082"), (.cstar, "c0000083"),
        (.sfmask, "c0000084"),
      ] {
        expect(registers[register], SyntheticHost.value("msr \(number)", processor.index), .kvm)
      }
      #expect(registers[.cs].value?.base == SyntheticHost.fieldValue(0x6808, processor.index))
      #expect(registers[.idtr].value?.base == SyntheticHost.fieldValue(0x6818, processor.index))
      #expect(registers.unknown == ["kernel_gs_base"])
    }
    #expect(Self.names(found) == ["vcpu.found-by-structure", "vcpu.vmcs-layout"])
    let finding = try #require(found.findings.first { $0.name == "vcpu.found-by-structure" })
    #expect(finding.text.contains("all 2 vCPUs"))
    #expect(finding.text.contains("module kvm_intel"))
  }

  @Test(arguments: [
    "pointer", "page", "revision 0", "another revision", "shadow", "abort",
  ])
  func `what is no VMCS in one vCPU is none in any`(defect: String) throws {
    var guest = try Self.guest()
    let processor = guest.one.machine.processors[1]
    let vmx = try #require(processor.vmx)
    let vmcs = try #require(processor.vmcs)
    switch defect {
    case "pointer":
      let first = guest.one.host.kernel.address(vmx, "vmcs01")
      guest.one.host.kernel.set(vmx, "loaded_vmcs", first + 8)
    case "page": guest.one.host.kernel.set(vmx, "vmcs01.vmcs", vmcs + 8)
    case "revision 0": guest.one.host.kernel.store(0 as UInt32, at: vmcs)
    case "another revision":
      guest.one.host.kernel.store(guest.layout.revision + 1, at: vmcs)
    case "shadow": guest.one.host.kernel.store(guest.layout.revision | 1 << 31, at: vmcs)
    default: guest.one.host.kernel.store(1 as UInt32, at: vmcs + 4)
    }
    let found = try guest.analysis().guest
    let findings = found.findings.filter { $0.name == "vcpu.no-control-block" }
    #expect(findings.count == 2)
    #expect(findings.allSatisfy { $0.text.contains("module kvm_intel") })
    #expect(!Self.names(found).contains("vcpu.found-by-structure"))
    #expect(found.processors[0].registers[.rflags].value == nil)
    #expect(found.processors[0].registers[.cr3].value == nil)
    expect(found.processors[0].registers[.rbx], SyntheticHost.value("rbx", 0), .kvm)
  }

  @Test func `a VMCS that the dump does not have says nothing against the place`() throws {
    let guest = try Self.guest()
    let vmcs = try #require(guest.one.machine.processors[1].vmcs)
    let frame = try #require(guest.one.host.kernel.physical(vmcs)).frame
    let found = try Analysis(guest.one.host, excluding: [frame], layout: guest.layout.text()).guest
    expect(found.processors[0].registers[.rflags], SyntheticHost.fieldValue(0x6820, 0), .vmcs)
    #expect(found.processors[1].registers[.rflags].value == nil)
    #expect(Self.names(found).contains("vcpu.no-control-block"))
  }

  @Test func `a second pointer to the same VMCS is no contradiction, one to another is`() throws {
    var guest = try Self.guest(Variant.loadedState)
    for processor in guest.one.machine.processors {
      let vmx = try #require(processor.vmx)
      let first = guest.one.host.kernel.address(vmx, "vmcs01")
      guest.one.host.kernel.set(vmx, "loaded_cpu_state", first)
    }
    #expect(Self.names(try guest.analysis().guest).contains("vcpu.found-by-structure"))
    for (index, processor) in guest.one.machine.processors.enumerated() {
      let vmx = try #require(processor.vmx)
      let copy = guest.one.host.makeVMCS(index)
      guest.one.host.kernel.set(vmx, "nested.vmcs02.vmcs", copy)
      let second = guest.one.host.kernel.address(vmx, "nested.vmcs02")
      guest.one.host.kernel.set(vmx, "loaded_cpu_state", second)
    }
    #expect(!Self.names(try guest.analysis().guest).contains("vcpu.found-by-structure"))
  }

  @Test func `MSRs are unknown where their list has no symbol`() throws {
    var options = SyntheticHost.Options.intel
    options.modulesHaveTypes = false
    options.hasLazyRegisterList = false
    options.change = Variant.untyped
    var guest = try IntelGuest(options)
    try Self.protect(&guest, guest.processor, 0)
    let registers = try guest.registers()
    #expect(registers.unknown == ["kernel_gs_base", "star", "lstar", "cstar", "sfmask"])
  }

  @Test func `the APIC's registers are found by its vCPU and its version`() throws {
    var guest = try Self.guest()
    for (index, processor) in guest.one.machine.processors.enumerated() {
      guest.one.host.addAPIC(to: processor, taskPriority: UInt32(index + 3) << 4)
    }
    let found = try guest.analysis().guest
    for (index, processor) in found.processors.enumerated() {
      expect(processor.registers[.cr8], UInt64(index + 3), .kvm)
    }
    let apic = guest.one.host.kernel.load(guest.one.machine.processors[1].vcpu, "arch.apic")
    let object = SyntheticObject(VirtualAddress(apic), "kvm_lapic")
    guest.one.host.kernel.set(object, "vcpu", guest.processor.vcpu.address)
    for processor in try guest.analysis().guest.processors {
      #expect(processor.registers[.cr8].value == nil)
    }
  }

  // MARK: What is not known of the vCPU

  @Test func `segments of an emulated real mode are unknown, those of virtual-8086 mode are not`()
    throws
  {
    var guest = try Self.guest(processors: 1)
    try guest.set(0x6820, to: 1 << 17 | 2)
    guest.setArch("cr0", to: 1 | 1 << 4)
    try guest.set(0x6800, to: 1 | 1 << 4 | 1 << 5)
    try guest.set(0x6004, to: 1 | 1 << 4)
    expect(try guest.registers()[.rflags], 1 << 17 | 2, .vmcs)
    #expect(try guest.registers()[.tr].value != nil)
    guest.setArch("cr0", to: 1 << 4)
    try guest.set(0x6004, to: 1 << 4)
    let registers = try guest.registers()
    #expect(
      registers.unknown == [
        "rflags", "kernel_gs_base", "cs", "ds", "es", "fs", "gs", "ss", "tr",
      ])
    #expect(registers[.ldtr].value != nil)
    #expect(registers[.idtr].value != nil)
    try guest.set(0x6820, to: 2)
    #expect(try guest.registers().unknown == ["kernel_gs_base"])
  }

  @Test func `with shadow paging CR3 is KVM's`() throws {
    var guest = try Self.guest(processors: 1)
    guest.one.host.interceptCR3Loads(guest.processor)
    expect(try guest.registers()[.cr3], SyntheticHost.value("cr3", 0), .kvm)
  }

  // MARK: Nested guests

  /// A host whose first vCPU runs a guest's guest.
  private static func nested() throws -> (guest: IntelGuest, vmcs12: VirtualAddress) {
    var guest = try Self.guest()
    _ = guest.one.host.enterNestedGuest(try guest.vmx, index: 9)
    let layout = try #require(VMCSLayoutDatabase.vmcs12)
    let page = guest.one.host.kernel.machine.allocate(1, filledWith: 0)
    let vmcs12 = guest.one.host.kernel.direct(page.address)
    guest.one.host.kernel.store(try #require(layout.revision), at: vmcs12)
    for (encoding, value) in [
      (UInt32(0x6c16), 0xffff_ffff_8100_1234 as UInt64), (0x6c14, 0xffff_c900_0000_5678),
      (0x6c02, 0x1234_5000), (0x400c, 1 << 9), (0x0c02, 0x10), (0x6c08, 0xffff_8881_0000_0000),
    ] {
      let offset = try #require(layout.offset(of: VMCSField(encoding)))
      if layout.storedSize(of: VMCSField(encoding)) == 8 {
        guest.one.host.kernel.store(value, at: vmcs12 + UInt64(offset))
      } else {
        guest.one.host.kernel.store(UInt16(value), at: vmcs12 + UInt64(offset))
      }
    }
    try guest.setVMX("nested.cached_vmcs12", to: vmcs12.rawValue)
    return (guest, vmcs12)
  }

  @Test func `a guest resumes with the host state of its VMCS, which all kernels lay out alike`()
    throws
  {
    let found = try Self.nested().guest.analysis().guest
    let registers = found.processors[0].registers
    expect(registers[.rip], 0xffff_ffff_8100_1234, .kvm)
    expect(registers[.rsp], 0xffff_c900_0000_5678, .kvm)
    expect(registers[.cr3], 0x1234_5000, .kvm)
    #expect(registers[.cs].value?.selector == 0x10)
    #expect(registers[.gs].value?.base == 0xffff_8881_0000_0000)
    expect(
      try #require(found.processors[0].nested)[.rip], SyntheticHost.fieldValue(0x681e, 9), .vmcs)
    expect(found.processors[1].registers[.rip], SyntheticHost.fieldValue(0x681e, 1), .vmcs)
    #expect(found.processors[1].nested == nil)
  }

  @Test func `without that VMCS the nested guest's registers are not the guest's`() throws {
    var (guest, vmcs12) = try Self.nested()
    guest.one.host.kernel.store(1 as UInt32, at: vmcs12)
    let found = try guest.analysis().guest
    let registers = found.processors[0].registers
    #expect(registers[.rip].value == nil)
    #expect(registers[.cr3].value == nil)
    #expect(registers[.cs].value == nil)
    expect(
      try #require(found.processors[0].nested)[.rip], SyntheticHost.fieldValue(0x681e, 9), .vmcs)
    let finding = try #require(found.findings.first { $0.name == "vcpu.nested" })
    #expect(finding.severity == .warning)
    #expect(finding.text.contains("module kvm_intel"))
  }

  @Test func `a host of which all vCPUs run guests' guests`() throws {
    var guest = try Self.guest(processors: 1)
    _ = guest.one.host.enterNestedGuest(try guest.vmx, index: 9)
    try guest.setVMX("vmcs01.vmcs", to: 0)
    let processor = try guest.analysis().guest.processors[0]
    expect(
      try #require(processor.nested)[.rip], SyntheticHost.fieldValue(0x681e, 9), .vmcs)
    #expect(processor.registers[.rip].value == nil)
  }
}
