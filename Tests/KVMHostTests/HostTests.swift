import Guest
import KVMHost
import LinuxKernel
import Memory
import SyntheticDumps
import Testing
import X86

private typealias Change = @Sendable (inout KernelTypes) -> Void

/// Layouts of kernels in the field, each with every structure shuffled.
@Suite struct LayoutTests {
  @Test(arguments: [1, 2, 3] as [UInt64])
  func `a guest is found whole wherever the members of structures lie`(seed: UInt64) throws {
    var options = SyntheticHost.Options()
    options.seed = seed
    let one = try OneGuest(options)
    try expectWhole(one)
    let guest = try Analysis(one.host).guest
    #expect(guest.identity.command == "qemu-system-x86")
    #expect(guest.identity.backend == "KVM (AMD SVM)")
    #expect(guest.findings.isEmpty)
  }

  private static let kernels: [(name: String, change: Change)] = [
    ("vCPUs in an array (until 5.16)", Variant.vcpuArray),
    ("slots in a flexible array (5.7 to 5.16)", Variant.slotArray),
    ("slots in an array (until 5.6, el8)", Variant.fixedSlotArray),
    ("no mm.owner (no CONFIG_MEMCG)", Variant.noOwner),
    ("one control block (until 5.11)", Variant.oneControlBlock),
    ("a member for each word of intercepts (until 5.9)", Variant.interceptWords),
    ("misc_ctl in the VMCB (by 7.2)", Variant.miscellaneousControls),
    ("kvm_x86_ops without a name (until 6.0)", Variant.noName),
    ("Linux 5.4, RHEL 8.3", Variant.linux5_4),
    ("RHEL 8.4", Variant.el8),
    ("Linux 5.10", Variant.linux5_10),
    ("Linux 5.14, 5.15, RHEL 9.0", Variant.linux5_14),
    ("Linux 6.8 to 6.15", Variant.linux6_8),
    ("Linux 6.16", Variant.linux6_16),
    ("Linux 7.2", Variant.linux7_2),
  ]

  @Test(arguments: kernels.map(\.name))
  func `a guest is found whole under a kernel with`(what: String) throws {
    for seed in [4, 5] as [UInt64] {
      var options = SyntheticHost.Options()
      options.seed = seed
      options.change = try #require(Self.kernels.first { $0.name == what }).change
      try expectWhole(try OneGuest(options))
    }
  }

  @Test(arguments: [true, false])
  func `a kernel before 6_0, whose symbols and types are found in its image`(
    namesTypes: Bool
  ) throws {
    var options = SyntheticHost.Options()
    options.kernel.exportsSymbolTables = false
    options.kernel.namesTypes = namesTypes
    options.change = Variant.linux5_10
    try expectWhole(try OneGuest(options))
  }

  /// A host without types of its modules, whose vCPUs point at control blocks as the architecture
  /// has them.
  private static func hostWithoutModuleTypes() throws -> OneGuest {
    var options = SyntheticHost.Options()
    options.modulesHaveTypes = false
    options.change = {
      Variant.linux5_10(&$0)
      $0["vcpu_svm"].add("room", .array(.u64, 256))
    }
    // The room must lie behind the vCPU, as all that kvm_amd adds does.
    options.seed = try #require(
      (1...100).first { seed in
        var types = KernelTypes.host(seed: seed)
        options.change(&types)
        var kernel = SyntheticKernel(types)
        let svm = kernel.make("vcpu_svm")
        return kernel.address(svm, "room") > kernel.address(svm, "vcpu")
      })
    var one = try OneGuest(options)
    for (index, processor) in one.machine.processors.enumerated() {
      let frame = one.host.kernel.machine.allocate(1)
      one.host.kernel.write(block(index), at: one.host.kernel.direct(frame.address))
      let svm = try #require(processor.svm)
      one.host.kernel.set(svm, "room[70]", one.host.kernel.direct(frame.address))
      one.host.kernel.set(svm, "room[71]", frame.address.rawValue)
    }
    return one
  }

  /// A VMCB by the architecture (APM vol. 2, appendix B).
  private static func block(_ index: Int) -> [UInt8] {
    var block = [UInt8](repeating: 0, count: Int(pageSize))
    func set(_ offset: Int, _ value: UInt64) {
      for byte in 0..<8 {
        block[offset + byte] = UInt8(truncatingIfNeeded: value >> UInt64(8 * byte))
      }
    }
    set(0x000, 1 << 16)
    set(0x010, 1)
    set(0x090, 1)
    set(0x410, 0x0000_ffff_029b_0010)
    set(0x418, 0x1111_0000)
    set(0x4d0, 1 << 12)
    set(0x550, 0x1234_5000 + UInt64(index))
    set(0x570, 0x246 + UInt64(index))
    set(0x608, 0xffff_ffff_8160_0000 + UInt64(index))
    return block
  }

  @Test func `control blocks are found by what all vCPUs point at, where no types tell`() throws {
    let one = try Self.hostWithoutModuleTypes()
    let guest = try Analysis(one.host).guest
    #expect(guest.processors.count == 2)
    for processor in guest.processors {
      let index = UInt64(processor.index)
      #expect(processor.registers[.rflags].value == 0x246 + index)
      #expect(processor.registers[.cr3].value == 0x1234_5000 + index)
      #expect(processor.registers[.lstar].value == 0xffff_ffff_8160_0000 + index)
      #expect(processor.registers[.cs].value?.selector == 0x10)
      #expect(processor.registers[.cs].value?.base == 0x1111_0000)
      #expect(processor.registers[.rip].value == SyntheticHost.value("rip", processor.index))
      #expect(processor.registers[.cr0].value == SyntheticHost.value("cr0", processor.index))
    }
    #expect(guest.findings.map(\.name) == ["vcpu.found-by-structure"])
  }

  @Test func `without types a nested guest's registers are not taken for the guest's`() throws {
    var one = try Self.hostWithoutModuleTypes()
    one.host.kernel.set(one.machine.processors[1].vcpu, "arch.hflags", 1 << 5)
    let guest = try Analysis(one.host).guest
    #expect(guest.processors[0].nested == nil)
    let processor = guest.processors[1]
    for register in [Register.rip, .rsp, .rax, .cr0, .cr3, .rflags] {
      #expect(processor.registers[register].value == nil, "\(register)")
      #expect(processor.nested?[register].value != nil, "\(register)")
    }
    #expect(processor.registers[.cs].value == nil)
    expect(processor.registers[.rbx], SyntheticHost.value("rbx", 1), .kvm)
    #expect(processor.nested?[.rip].value == SyntheticHost.value("rip", 1))
    let finding = try #require(guest.findings.first { $0.name == "vcpu.nested" })
    #expect(finding.severity == .warning)
    #expect(finding.text.contains("module kvm_amd"))
  }

  @Test(arguments: ["pointer", "VMRUN", "EFER.SVME"])
  func `what is no control block in one vCPU is none in any`(defect: String) throws {
    var one = try Self.hostWithoutModuleTypes()
    let svm = try #require(one.machine.processors[1].svm)
    let block = VirtualAddress(one.host.kernel.load(svm, "room[70]"))
    switch defect {
    case "pointer": one.host.kernel.set(svm, "room[71]", block)
    case "VMRUN": one.host.kernel.write([0], at: block + 0x10)
    default: one.host.kernel.write([0, 0], at: block + 0x4d0)
    }
    let guest = try Analysis(one.host).guest
    let findings = guest.findings.filter { $0.name == "vcpu.no-control-block" }
    #expect(findings.count == 2)
    #expect(findings.allSatisfy { $0.text.contains("module kvm_amd") })
    #expect(guest.processors[0].registers[.rflags].value == nil)
  }

  private static let buildIDs: [(place: String, change: Change)] = [
    ("the module", Variant.buildIDInModule), ("notes", Variant.buildIDInNotes),
    ("a list of notes (since 6.14)", Variant.buildIDInNoteList),
  ]

  @Test(arguments: buildIDs.map(\.place))
  func `types that are missing are named by the module's build-id, from`(
    place: String
  ) throws {
    let change = try #require(Self.buildIDs.first { $0.place == place }).change
    var options = SyntheticHost.Options()
    options.modulesHaveTypes = false
    options.moduleBuildID = (0..<20).map { 0xe0 &+ $0 }
    options.change = {
      Variant.linux5_10(&$0)
      change(&$0)
    }
    let guest = try Analysis(try OneGuest(options).host).guest
    let finding = try #require(guest.findings.first { $0.name == "vcpu.no-control-block" })
    #expect(finding.text.contains("build-id e0e1e2e3e4e5e6e7e8e9eaebecedeeeff0f1f2f3,"))
  }

  @Test(arguments: [2, 6])
  func `without types the control blocks tell what is encrypted`(control: UInt8) throws {
    var one = try Self.hostWithoutModuleTypes()
    let svm = try #require(one.machine.processors[0].svm)
    let block = VirtualAddress(one.host.kernel.load(svm, "room[70]"))
    one.host.kernel.write([control | 1], at: block + 0x90)
    let guest = try Analysis(one.host).guest
    #expect(guest.findings.contains { $0.name == "guest.encrypted" })
    #expect((guest.processors[0].registers[.rip].value == nil) == (control == 6))
  }

  @Test func `five levels of page tables`() throws {
    var options = SyntheticHost.Options()
    options.kernel.levels = 5
    try expectWhole(try OneGuest(options))
  }

  @Test(arguments: [4, 5])
  func `a host whose memory is encrypted`(levels: Int) throws {
    var options = SyntheticHost.Options()
    options.kernel.levels = levels
    options.kernel.encryptionMask = 1 << 47
    try expectWhole(try OneGuest(options))
  }

  @Test func `a kernel that KASLR put above its link address in physical memory`() throws {
    var options = SyntheticHost.Options()
    options.kernel.kaslrOffset = 0
    options.kernel.imageAddress = PhysicalAddress(0x1400_0000)
    try expectWhole(try OneGuest(options))
  }

  // MARK: Modules

  @Test func `KVM's types are in its modules only`() throws {
    var options = SyntheticHost.Options()
    options.kernelHasKVMTypes = false
    try expectWhole(try OneGuest(options))
  }

  @Test func `a module whose pointer to its symbols is null`() throws {
    var options = SyntheticHost.Options()
    options.moduleSymbols = .embedded
    try expectWhole(try OneGuest(options))
  }

  @Test func `a module that has its symbols itself (before 4.5)`() throws {
    var options = SyntheticHost.Options()
    options.moduleSymbols = .inModule
    options.change = Variant.symbolsInModule
    try expectWhole(try OneGuest(options))
  }

  @Test(arguments: [[], ["kvm_amd"]] as [Set<String>])
  func `KVM built in`(modules: Set<String>) throws {
    var options = SyntheticHost.Options()
    options.modules = modules
    try expectWhole(try OneGuest(options))
  }

  @Test func `page flags told by VMCOREINFO only`() throws {
    var options = SyntheticHost.Options()
    options.hasPageFlagTypes = false
    try expectWhole(try OneGuest(options))
  }

  @Test func `on an Intel host memory is whole whatever is known of its VMCS`() throws {
    var one = try OneGuest(.intel)
    for processor in one.machine.processors {
      let vmcs = try #require(processor.vmcs)
      one.host.kernel.write([UInt8](repeating: 0, count: Int(pageSize)), at: vmcs)
    }
    let guest = try Analysis(one.host).guest
    #expect(guest.identity.backend == "KVM (Intel VMX)")
    let survey = MemorySurvey(of: guest.memory)
    #expect(survey.present == 3 && survey.missingPages == 0)
    #expect(guest.processors.count == 2)
    #expect(guest.processors.allSatisfy { $0.registers[.cs].value == nil })
    #expect(guest.processors.allSatisfy { $0.registers[.rax].value != nil })
    #expect(guest.findings.filter { $0.severity == .warning }.count == 2)
  }
}

@Suite struct VirtualProcessorTests {
  @Test(arguments: [0, 1, 2, 63, 64, 65, 130])
  func `vCPUs in an xarray of any depth`(count: Int) throws {
    let guest = try Analysis(try OneGuest(processors: count).host).guest
    #expect(
      guest.processors.map { $0.registers[.rbx].value }
        == (0..<count).map { SyntheticHost.value("rbx", $0) })
  }

  @Test(arguments: [1, 7, 288])
  func `vCPUs in an array`(count: Int) throws {
    var options = SyntheticHost.Options()
    options.change = Variant.vcpuArray
    let guest = try Analysis(try OneGuest(options, processors: count).host).guest
    #expect(
      guest.processors.map { $0.registers[.rbx].value }
        == (0..<count).map { SyntheticHost.value("rbx", $0) })
  }

  @Test func `sibling and zero entries are no vCPUs`() throws {
    var host = SyntheticHost()
    let process = host.addProcess(pid: 1, arguments: ["qemu"])
    _ = host.addMachine(process, slots: [], processors: 2) { addresses in
      // A sibling of slot 4, and XA_ZERO_ENTRY.
      [0: 257 << 2 | 2, 4: addresses[0], 5: 4 << 2 | 2, 6: 4 << 2 | 2, 70: addresses[1]]
    }
    let guest = try Analysis(host).guest
    #expect(guest.processors.count == 2)
    #expect(guest.processors[1].registers[.rsi].value == SyntheticHost.value("rsi", 1))
  }

  // MARK: Control blocks

  @Test(arguments: [false, true], [false, true])
  func `CR0 changes without an exit in MP and TS only, if writes are not intercepted`(
    isIntercepted: Bool, hasWords: Bool
  ) throws {
    var options = SyntheticHost.Options()
    if hasWords { options.change = Variant.interceptWords }
    var one = try OneGuest(options, processors: 1)
    let processor = one.machine.processors[0]
    let block = try #require(processor.block)
    one.host.kernel.set(processor.vcpu, "arch.cr0", 0x8005_0033 & ~UInt64(2))
    one.host.kernel.set(block, "save.cr0", 0x8005_001a)
    let word = hasWords ? "control.intercept_cr" : "control.intercepts[0]"
    one.host.kernel.set(block, word, isIntercepted ? 0x11_0000 : 0x10_ffff)
    let registers = try Analysis(one.host).guest.processors[0].registers
    #expect(registers[.cr0].value == (isIntercepted ? 0x8005_0031 : 0x8005_003b))
  }

  @Test func `with shadow paging CR3 is not that of the control block`() throws {
    var one = try OneGuest(processors: 1)
    one.host.kernel.set(
      try #require(one.machine.processors[0].block), "control.nested_ctl", 0)
    let registers = try Analysis(one.host).guest.processors[0].registers
    #expect(registers[.cr3].value == SyntheticHost.value("cr3", 0))
  }

  @Test func `segments are as KVM reports them`() throws {
    var one = try OneGuest(processors: 1)
    let block = try #require(one.machine.processors[0].block)
    func set(_ segment: String, attributes: UInt64, limit: UInt64) {
      one.host.kernel.set(block, "save.\(segment).attrib", attributes)
      one.host.kernel.set(block, "save.\(segment).limit", limit)
    }
    one.host.kernel.set(block, "save.cpl", 3)
    // Packed: type, S, DPL, P in bits 0 to 7, then AVL, L, D/B, G.
    set("cs", attributes: 0xa9b, limit: 0xffff_ffff)
    set("ds", attributes: 0xc92, limit: 0xffff_ffff)
    set("es", attributes: 0xc13, limit: 0xffff_ffff)
    set("ss", attributes: 0x493, limit: 0xf_ffff)
    set("tr", attributes: 0x089, limit: 0x67)
    set("fs", attributes: 0x892, limit: 0xffff)
    let registers = try Analysis(one.host).guest.processors[0].registers
    func attributes(_ segment: SegmentRegister) -> UInt32? {
      registers[segment].value?.attributes.rawValue
    }
    #expect(attributes(.cs) == 0xa0_9b00)
    #expect(attributes(.ds) == 0xc0_9300, "a data segment in use is accessed")
    #expect(attributes(.es) == 0, "a segment that is not present has no attributes")
    #expect(attributes(.ss) == 0x40_f300, "the stack has the privilege level of the processor")
    #expect(attributes(.tr) == 0x00_8b00, "a loaded task is busy")
    #expect(attributes(.fs) == 0x00_9300, "granularity follows from the limit")
  }

  // MARK: Encrypted guests

  @Test func `SEV hides memory, not registers`() throws {
    var one = try OneGuest()
    one.host.kernel.set(try #require(one.machine.svm), "sev_info.active", 1)
    let guest = try Analysis(one.host).guest
    #expect(guest.findings.map(\.name) == ["guest.encrypted"])
    #expect(MemorySurvey(of: guest.memory).missing == [.encrypted: OneGuest.pages])
    #expect(guest.processors[1].registers[.rip].value == SyntheticHost.value("rip", 1))
  }

  @Test func `SEV-ES hides registers too`() throws {
    var one = try OneGuest()
    one.host.kernel.set(try #require(one.machine.svm), "sev_info.active", 1)
    one.host.kernel.set(try #require(one.machine.svm), "sev_info.es_active", 1)
    let guest = try Analysis(one.host).guest
    #expect(MemorySurvey(of: guest.memory).missing == [.encrypted: OneGuest.pages])
    #expect(guest.processors.count == 2)
    #expect(guest.processors.allSatisfy { $0.registers[.rip].value == nil })
  }

  @Test func `SEV before SEV-ES (until 5.10)`() throws {
    var options = SyntheticHost.Options()
    options.change = { $0["kvm_sev_info"].remove("es_active") }
    var one = try OneGuest(options)
    one.host.kernel.set(try #require(one.machine.svm), "sev_info.active", 1)
    let guest = try Analysis(one.host).guest
    #expect(guest.processors[1].registers[.rip].value == SyntheticHost.value("rip", 1))
    #expect(MemorySurvey(of: guest.memory).missing == [.encrypted: OneGuest.pages])
  }

  // MARK: Modes

  @Test func `a vCPU in guest mode that nothing stopped is stale`() throws {
    var one = try OneGuest()
    one.host.kernel.set(one.machine.processors[1].vcpu, "mode", one.host.inGuestMode)
    let guest = try Analysis(one.host).guest
    #expect(guest.processors.map(\.state) == [.exited, .stale])
    #expect(guest.findings.map(\.name) == ["vcpu.stale"])
  }
}

@Suite struct MemorySlotTests {
  private func regions(
    _ slots: [SyntheticHost.Slot], _ change: @escaping Change, node: Int = 0
  ) throws -> [MemoryRegion] {
    var options = SyntheticHost.Options()
    options.change = change
    return try Analysis(try OneGuest(options, slots: slots, node: node).host).guest.memory.regions
  }

  private func slot(
    _ id: Int, _ guestFrame: UInt64, pages: UInt64 = 4, flags: UInt32 = 0, space: Int = 0
  ) -> SyntheticHost.Slot {
    .init(
      id: id, guestFrame: guestFrame, pages: pages, address: OneGuest.ram, flags: flags,
      space: space)
  }

  private static let forms: [(name: String, change: Change, node: Int, count: Int)] = [
    ("array", Variant.fixedSlotArray, 0, 512), ("flexible array", Variant.slotArray, 0, 512),
    ("hash, node 0", { _ in }, 0, 32767), ("hash, node 1", { _ in }, 1, 32767),
  ]

  @Test(arguments: forms.map(\.name))
  func `only slots with memory of the guest count`(form: String) throws {
    let form = try #require(Self.forms.first { $0.name == form })
    let last = form.count - 3
    let slots = [
      slot(0, 0), slot(1, 0x100, flags: 2), slot(2, 0x200, pages: 0),
      // Two in one bucket of the hash, and the last that a VMM can have.
      slot(129, 0x300), slot(last - 1, 0x400),
      // KVM's own: APIC access page, TSS, identity map.
      slot(last, 0xfee00, pages: 1), slot(last + 1, 0xfeffd, pages: 3),
      slot(last + 2, 0xfeffc, pages: 1),
      // System management mode's.
      slot(0, 0x30, pages: 0x10, space: 1),
    ]
    let regions = try regions(slots, form.change, node: form.node)
    #expect(regions.map(\.start.rawValue) == [0, 0x10_0000, 0x30_0000, 0x40_0000])
    #expect(regions.map(\.size) == Array(repeating: 0x4000, count: 4))
    #expect(regions.map(\.isReadOnly) == [false, true, false, false])
  }

  @Test(arguments: [1 << 31, 1 << 40, 1 << 52, 1 << 63, .max] as [UInt64])
  func `a slot larger than KVM takes is damage, not a walk without end`(pages: UInt64) throws {
    let found = try Analysis(try OneGuest(slots: [slot(0, 0, pages: pages)]).host)
    #expect(found.guests.isEmpty)
    #expect(found.failures.map(\.name) == ["kvm.machine"])
  }

  @Test(arguments: forms.map(\.name))
  func `a VM without slots has no memory`(form: String) throws {
    let form = try #require(Self.forms.first { $0.name == form })
    #expect(try regions([], form.change, node: form.node).isEmpty)
  }
}

@Suite struct IdentityTests {
  private func identity(_ arguments: [String]) throws -> GuestIdentity {
    try Analysis(try OneGuest(arguments: arguments).host).guest.identity
  }

  @Test(arguments: [
    (["/usr/bin/lkvm", "run", "--name", "x", "-n", "user"], "x"),
    (["lkvm", "run", "-n", "user"], nil), (["lkvm", "run", "--name=x"], "x"),
    (["crosvm", "run", "--name", "x", "--cpus", "2"], "x"),
    (["crosvm", "run", "vmlinux", "--", "--name", "y"], nil),
    (["/firecracker", "--id", "x", "--api-sock", "/run/s"], "x"),
    (["firecracker-v1.7.0-x86_64", "--id=x"], "x"), (["firecracker", "--api-sock", "/s"], nil),
    (["cloud-hypervisor", "--api-socket", "/run/vm7.sock"], nil), (["any", "--id", "x"], nil),
    (["any", "--name", "x", "--name", "y"], nil), (["any", "--name", "x", "--name", "x"], "x"),
    (["--name", "x"], nil), ([], nil),
  ])
  func `every VMM has options of its own`(arguments: [String], name: String?) {
    #expect(VMMCommandLine(arguments).name == name)
  }

  @Test func `Cloud Hypervisor has a UUID among the facts of the platform`() {
    let arguments = ["cloud-hypervisor", "--platform", "num_pci_segments=2,uuid=\(Self.uuid)"]
    #expect(VMMCommandLine(arguments).uuid == Self.uuid)
    #expect(VMMCommandLine(["qemu"] + arguments.dropFirst()).uuid == nil)
  }

  @Test(arguments: [["qemu", "-name", "twin"], ["any"]])
  func `VMs of one process are told apart`(arguments: [String]) throws {
    var host = SyntheticHost()
    let process = host.addProcess(pid: 100, command: "any", arguments: arguments)
    // The newest is the first of the list.
    for count in [1, 0, 2] { _ = host.addMachine(process, slots: [], processors: count) }
    let guests = try Analysis(host).guests
    let name = arguments.count > 1 ? "twin" : "any-100"
    #expect(guests.map(\.identity.displayName) == ["\(name)-3", "\(name)-2", name])
    #expect(guests.map(\.processors.count) == [1, 0, 2])
    #expect(Set(guests.map(\.identity)).count == 3)
    #expect(
      guests.map { $0.findings.map(\.name) } == [
        ["guest.several-in-process"], ["guest.no-vcpus", "guest.several-in-process"], [],
      ])
  }

  @Test(arguments: [false, true])
  func `a VM outlives its process, and what that gave back is lost`(hasSpace: Bool) throws {
    var one = try OneGuest()
    one.host.kernel.set(one.process.memory, "mm_users.counter", 0)
    one.host.kernel.set(one.process.memory, "owner", 0)
    one.host.kernel.set(one.process.task, "mm", 0)
    if !hasSpace { one.host.kernel.set(one.machine.object, "mm", 0) }
    let found = try Analysis(one.host)
    let guest = try found.guest
    #expect(guest.identity.displayName == (hasSpace ? "web1" : "guest-4711"))
    #expect(guest.findings.map(\.name) == ["guest.process-ended"])
    let survey = MemorySurvey(of: guest.memory)
    #expect(survey.present == (hasSpace ? 3 : 0))
    #expect(survey.zero.isEmpty, "what is not there may have held anything")
    #expect(survey.missing == [.released: OneGuest.pages - (hasSpace ? 3 : 0)])
    #expect(guest.processors[1].registers[.rip].value == SyntheticHost.value("rip", 1))
  }

  private static let uuid = "01234567-89ab-cdef-0123-456789abcdef"

  @Test(arguments: [
    (["-name", "x"], "x"), (["-name", "guest=web1,debug-threads=on"], "web1"),
    (["-name", "web1,process=q"], "web1"), (["-name", "debug-threads=on,guest=web1"], "web1"),
    (["-name", "process=q"], nil), (["-name", "guest=a,,b,debug-threads=on"], "a,b"),
    (["--name", "x"], "x"), (["-m", "1G"], nil), (["-name"], nil), (["-name", ""], nil),
    (["-name", "../../etc/passwd"], "../../etc/passwd"),
    (["-name", "\u{1b}[2Jx\n"], "\u{1b}[2Jx\n"),
  ])
  func `a guest is named by its VMM's command line`(
    options: [String], name: String?
  ) throws {
    #expect(try identity(["/usr/bin/qemu-system-x86_64"] + options).name == name)
  }

  @Test func `a UUID`() throws {
    let identity = try identity(["qemu", "-uuid", Self.uuid, "-m", "1G"])
    #expect(identity.uuid == Self.uuid)
    #expect(identity.displayName == "qemu-system-x86-4711")
  }

  @Test func `two guests may have one name`() throws {
    var host = SyntheticHost()
    for pid in [100, 200] as [Int32] {
      let process = host.addProcess(pid: pid, arguments: ["qemu", "-name", "twin"])
      _ = host.addMachine(process, slots: [])
    }
    let found = try Analysis(host)
    #expect(found.guests.map(\.identity.displayName) == ["twin", "twin"])
    #expect(found.guests.map(\.identity.pid) == [100, 200])
  }

  @Test func `a process without its command line is named by comm and pid`() throws {
    var one = try OneGuest()
    one.process.tables.setEntry(
      of: VirtualAddress(0x7ffd_1234_5f80), to: 0, in: &one.host.kernel.machine)
    let guest = try Analysis(one.host).guest
    #expect(guest.identity.displayName == "qemu-system-x86-4711")
    #expect(guest.findings.map(\.name) == ["guest.no-command-line"])
  }

  @Test func `a damaged list of tasks costs the name of the process only`() throws {
    var options = SyntheticHost.Options()
    options.change = Variant.noOwner
    var one = try OneGuest(options, arguments: ["qemu", "-name", "web1"])
    let tasks = one.host.kernel.member(one.process.task, "tasks")
    one.host.kernel.set(one.process.task, "mm", 0)
    one.host.kernel.set(tasks, "next", tasks.address)
    let guest = try Analysis(one.host).guest
    #expect(guest.identity.name == "web1")
    #expect(guest.identity.command == nil)
    #expect(MemorySurvey(of: guest.memory).present == 3)
  }
}
