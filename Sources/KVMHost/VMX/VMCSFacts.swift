import ControlBlocks
import LinuxKernel
import Memory
import X86

/// A value that a field of a VMCS must have, known without the VMCS: from KVM's copies, or from the
/// host's kernel itself.
struct VMCSFact: Sendable {
  let field: VMCSField
  let value: UInt64
  /// The bits of the value that are known.
  var mask: UInt64
  /// Where the value was read, as a reader would look it up.
  let origin: String
  /// True of what the processor or KVM writes at every exit or entry, unlike what is set up once.
  var isOfLastExit = false
  /// True of what is the same in every VMCS of a host.
  var isConstant = false

  func agrees(with other: UInt64) -> Bool { other & mask == value & mask }

  /// True if the value is unlikely to stand in a region by chance.
  var isDistinctive: Bool {
    field.size == 8 && mask & ~0xfff == ~0xfff && value >= 1 << 16 && value != .max
  }
}

/// Collects facts; a source that this kernel does not have gives none.
private struct FactCollector {
  private(set) var facts: [VMCSFact]

  init(facts: [VMCSFact] = []) { self.facts = facts }

  mutating func add(
    _ field: VMCSField, _ value: UInt64?, mask: UInt64 = .max, _ origin: String,
    ofLastExit: Bool = false
  ) {
    guard let value else { return }
    let width: UInt64 = field.size == 8 ? .max : (1 << UInt64(field.size * 8)) - 1
    facts.append(
      VMCSFact(
        field: field, value: value & mask & width, mask: mask & width, origin: origin,
        isOfLastExit: ofLastExit))
  }

  mutating func add(
    _ field: VMCSField, _ object: KernelObject?, mask: UInt64 = .max, ofLastExit: Bool = false
  ) {
    guard let object else { return }
    add(field, try? object.unsigned(), mask: mask, object.path, ofLastExit: ofLastExit)
  }
}

/// What the host's kernel alone tells of every VMCS: where an exit leads, and the state that the
/// processor loads then (`vmx_set_constant_host_state`, `vmx_vcpu_load_vmcs` of
/// arch/x86/kvm/vmx/vmx.c).
struct VMCSHostFacts: Sendable {
  /// Where an exit of every guest leads.
  let exitHandler: (address: VirtualAddress, origin: String)?
  private let constant: [VMCSFact]
  private let entryAreas: EntryAreas?

  /// - Parameter symbol: looks up a symbol of KVM.
  init(_ kernel: LinuxKernel, symbol: (String) -> VirtualAddress?) {
    var facts = FactCollector()
    facts.add(.linkPointer, .max, "the link pointer without a shadow VMCS")
    exitHandler = Self.exitHandler(symbol, in: kernel.memory)
    if let exitHandler {
      facts.add(.hostRIP, exitHandler.address.rawValue, exitHandler.origin)
    }
    facts.add(
      .hostSysenterEIP, kernel.symbol("entry_SYSENTER_compat")?.rawValue,
      "entry_SYSENTER_compat")
    // arch/x86/include/asm/segment.h: __KERNEL_CS, __KERNEL_DS, GDT_ENTRY_TSS * 8 of 64-bit kernels.
    facts.add(.hostCS, 0x10, "__KERNEL_CS")
    facts.add(.hostSS, 0x18, "__KERNEL_DS")
    facts.add(.hostTR, 0x40, "GDT_ENTRY_TSS")
    for field in [VMCSField.hostES, .hostDS] {
      facts.add(field, 0, "the null selector of 64-bit kernels")
    }
    facts.add(.hostSysenterCS, 0x10, "__KERNEL_CS")
    // CR0_STATE of arch/x86/include/uapi/asm/processor-flags.h.
    facts.add(.hostCR0, 0x8005_0033, mask: ~0xa, "CR0 of a 64-bit kernel")
    entryAreas = EntryAreas(kernel)
    if entryAreas != nil {
      facts.add(.hostIDTRBase, EntryAreas.start.rawValue, "CPU_ENTRY_AREA_RO_IDT")
    }
    constant = facts.facts.map {
      var fact = $0
      fact.isConstant = true
      return fact
    }
  }

  /// The symbol is `vmx_vmexit` since 5.0; before, `vmx_return` has the address.
  private static func exitHandler(
    _ symbol: (String) -> VirtualAddress?, in memory: VirtualMemory
  ) -> (VirtualAddress, String)? {
    if let exit = symbol("vmx_vmexit") { return (exit, "vmx_vmexit") }
    guard let pointer = symbol("vmx_return"),
      let exit = try? memory.load(pointer, as: UInt64.self)
    else { return nil }
    return (VirtualAddress(exit), "*vmx_return")
  }

  /// - Parameter processor: the host processor that the VMCS was loaded on last.
  func facts(onProcessor processor: Int?) -> [VMCSFact] {
    var facts = FactCollector()
    if let processor, let area = entryAreas?.area(of: processor) {
      facts.add(.hostGDTRBase, area.memberIfPresent("gdt")?.address.rawValue, "\(area.path), gdt")
      facts.add(.hostTRBase, area.memberIfPresent("tss")?.address.rawValue, "\(area.path), tss")
      // struct entry_stack: 512 bytes in older kernels, then a page.
      if let stack = try? area["entry_stack_page.stack"], let size = stack.type.size {
        facts.add(.hostSysenterESP, (stack.address + size).rawValue, "end of \(stack.path)")
      }
    }
    return constant + facts.facts
  }
}

/// Where each host processor has its descriptor tables (arch/x86/include/asm/cpu_entry_area.h).
struct EntryAreas: Sendable {
  /// CPU_ENTRY_AREA_BASE, where the table of interrupts that all processors share is seen.
  static let start = VirtualAddress(0xffff_fe00_0000_0000)

  private let kernel: LinuxKernel
  private let type: BTFType
  private let offset: VirtualAddress?
  private let bases: VirtualAddress?

  init?(_ kernel: LinuxKernel) {
    guard let type = kernel.types.structure(named: "cpu_entry_area") else { return nil }
    self.kernel = kernel
    self.type = type
    // Since 6.2 (97e3d26b5e5f) the areas lie in random order.
    offset = kernel.symbol("_cea_offset")
    bases = offset == nil ? nil : kernel.symbol("__per_cpu_offset")
  }

  func area(of processor: Int) -> KernelObject? {
    guard (0..<8192).contains(processor), let size = type.size else { return nil }
    var index = UInt32(processor)
    if let offset {
      guard let bases,
        let base = try? kernel.memory.load(bases + UInt64(processor) * 8, as: UInt64.self),
        let random = try? kernel.memory.load(offset + base, as: UInt32.self)
      else { return nil }
      index = random
    }
    return KernelObject(
      in: kernel.memory, at: Self.start + pageSize + UInt64(index) &* size, type: type,
      path: "cpu_entry_area of host CPU \(processor)")
  }
}

extension VMXProcessor {
  /// What KVM remembers of the contents of this structure. What belongs to the guest is left out
  /// where the structure is that of a guest's guest: KVM's copies then mix both.
  func facts() -> [VMCSFact] {
    var facts = FactCollector(
      facts: host.vmcsFacts.facts(
        onProcessor: structures.hostProcessor.flatMap(Int.init(exactly:))))
    addHostState(&facts)
    addControls(&facts)
    addLists(&facts)
    if !structures.runsNestedGuest {
      addVirtualMachine(&facts)
      addGuestState(&facts)
    }
    return facts.facts
  }

  /// The host's state that KVM writes when it changes (`loaded_vmcs.host_state`, since 5.0,
  /// d7ee039e2b66).
  private func addHostState(_ facts: inout FactCollector) {
    guard let state = loaded.memberIfPresent("host_state") ?? vmx.memberIfPresent("host_state")
    else { return }
    facts.add(.hostCR3, state.memberIfPresent("cr3"))
    facts.add(.hostCR4, state.memberIfPresent("cr4"))
    facts.add(.hostFSBase, state.memberIfPresent("fs_base"))
    facts.add(.hostGSBase, state.memberIfPresent("gs_base"))
    facts.add(.hostRSP, state.memberIfPresent("rsp"))
  }

  /// `loaded_vmcs.controls_shadow`, since 5.2 (09e226cf07cd).
  private func addControls(_ facts: inout FactCollector) {
    guard let shadow = loaded.memberIfPresent("controls_shadow") else { return }
    facts.add(.pinControls, shadow.memberIfPresent("pin"))
    facts.add(.primaryControls, shadow.memberIfPresent("exec"))
    facts.add(.entryControls, shadow.memberIfPresent("vm_entry"))
    facts.add(.exitControls, shadow.memberIfPresent("vm_exit"))
    if uses(primary: 31) { facts.add(.secondaryControls, shadow.memberIfPresent("secondary_exec")) }
    if uses(primary: 17) { facts.add(.tertiaryControls, shadow.memberIfPresent("tertiary_exec")) }
  }

  /// True if a bit of the primary execution controls is set (SDM vol. 3C table 24-6).
  private func uses(primary bit: UInt64) -> Bool { control("exec", bit) }

  /// True if a bit of the secondary execution controls is set (SDM vol. 3C table 24-7).
  private func uses(secondary bit: UInt64) -> Bool {
    uses(primary: 31) && control("secondary_exec", bit)
  }

  private func control(_ member: String, _ bit: UInt64) -> Bool {
    let value = try? loaded.memberIfPresent("controls_shadow")?.memberIfPresent(member)?.unsigned()
    return (value ?? 0) >> bit & 1 != 0
  }

  /// Bit 1 of the secondary controls.
  private var usesExtendedPageTables: Bool {
    loaded.has("controls_shadow") ? uses(secondary: 1) : host.usesTwoLevelPaging == true
  }

  /// Areas that the processor finds through the structure.
  private func addLists(_ facts: inout FactCollector) {
    if uses(primary: 28) { add(.msrBitmap, pointer: try? loaded["msr_bitmap"], &facts) }
    if let lists = vmx.memberIfPresent("msr_autoload") {
      if let host = try? lists["host"]["val"] { add(.exitMSRLoadAddress, at: host, &facts) }
      if let guest = try? lists["guest"]["val"] { add(.entryMSRLoadAddress, at: guest, &facts) }
      facts.add(.exitMSRLoadCount, try? lists["host"]["nr"])
      facts.add(.entryMSRLoadCount, try? lists["guest"]["nr"])
    }
    if uses(primary: 21), let apic = try? vcpu["arch"].memberIfPresent("apic")?.dereferenced(),
      let type = host.types.structure(named: "kvm_lapic")
    {
      add(.virtualAPICPage, pointer: try? apic.cast(to: type)["regs"], &facts)
    }
  }

  private func add(
    _ field: VMCSField, pointer: KernelObject?, _ facts: inout FactCollector
  ) {
    guard let pointer, let address = try? pointer.pointer(), address.rawValue != 0 else { return }
    let physical = try? vcpu.memory.translate(address)
    facts.add(field, physical?.rawValue, "physical address of \(pointer.path)")
  }

  private func add(_ field: VMCSField, at object: KernelObject, _ facts: inout FactCollector) {
    let physical = try? vcpu.memory.translate(object.address)
    facts.add(field, physical?.rawValue, "physical address of \(object.path)")
  }

  /// What KVM sets up for the vCPU and seldom changes.
  private func addVirtualMachine(_ facts: inout FactCollector) {
    guard let arch = try? vcpu["arch"] else { return }
    if uses(secondary: 5) { facts.add(.vpid, vmx.memberIfPresent("vpid")) }
    if uses(primary: 3) { facts.add(.tscOffset, arch.memberIfPresent("tsc_offset")) }
    if uses(secondary: 25) {
      facts.add(.tscMultiplier, arch.memberIfPresent("tsc_scaling_ratio"))
    }
    if usesExtendedPageTables, let mmu = try? arch.memberIfPresent("mmu")?.dereferenced() {
      // root.hpa since 5.18 (b9e5603c2a3a). The low bits are memory type and levels.
      let root = mmu.memberIfPresent("root")?.memberIfPresent("hpa")
      let address = root ?? mmu.memberIfPresent("root_hpa")
      if let value = try? address?.unsigned(), value != .max {
        facts.add(.eptPointer, address, mask: ~0xfff)
      }
    }
    for (mask, member) in [
      (VMCSField.cr0Mask, "cr0_guest_owned_bits"), (.cr4Mask, "cr4_guest_owned_bits"),
    ] {
      guard let owned = try? arch.memberIfPresent(member)?.unsigned() else { continue }
      facts.add(mask, ~owned, "~arch.\(member)")
    }
    if control("vm_entry", 14) { facts.add(.pat, arch.memberIfPresent("pat")) }
  }

  /// What the processor wrote at the last exit and KVM has read, and what KVM wrote of the guest's
  /// registers. A copy that is dirty is newer than the structure.
  private func addGuestState(_ facts: inout FactCollector) {
    let exit = vmx.memberIfPresent("vt") ?? vmx
    if let reason = exit.memberIfPresent("exit_reason") {
      facts.add(.exitReason, reason.memberIfPresent("full") ?? reason, ofLastExit: true)
    }
    facts.add(.vectoringInformation, vmx.memberIfPresent("idt_vectoring_info"), ofLastExit: true)
    if isCopied("VCPU_EXREG_EXIT_INFO_1") {
      facts.add(
        .exitQualification, exit.memberIfPresent("exit_qualification"), ofLastExit: true)
    }
    guard let arch = try? vcpu["arch"] else { return }
    for (field, name) in [(VMCSField.rsp, "VCPU_REGS_RSP"), (.rip, "VCPU_REGS_RIP")]
    where isCopied(name) {
      guard let index = host.types.enumerator(named: name) else { continue }
      facts.add(field, try? arch["regs"].element(Int(clamping: index)), ofLastExit: true)
    }
    let isEmulated = (try? vmx.memberIfPresent("rmode")?["vm86_active"].isTrue()) ?? false
    if isCopied("VCPU_EXREG_RFLAGS"), !isEmulated {
      facts.add(.rflags, vmx.memberIfPresent("rflags"), ofLastExit: true)
    }
    facts.add(.dr7, arch.memberIfPresent("dr7"))
    if isCopied("VCPU_EXREG_CR3"), structures.loadsOfCR3Exit(on: host) == false {
      facts.add(.cr3, arch.memberIfPresent("cr3"), ofLastExit: true)
    }
    addControlRegisters(arch, &facts)
  }

  /// The guest's CR0 and CR4, as `vmx_set_cr0` and `vmx_set_cr4` write them: bits that the guest
  /// owns are only in the structure, and the host forces some of the others.
  private func addControlRegisters(_ arch: KernelObject, _ facts: inout FactCollector) {
    func copy(_ name: String) -> (value: UInt64, shared: UInt64)? {
      guard let value = try? arch.memberIfPresent(name)?.unsigned(),
        let owned = try? arch.memberIfPresent("\(name)_guest_owned_bits")?.unsigned()
      else { return nil }
      return (value, ~owned)
    }
    if let (value, shared) = copy("cr0") {
      facts.add(.cr0Shadow, value, mask: shared, "arch.cr0")
      // NE is forced on, NW and CD off; WP too with shadow paging, and without unrestricted guest PE
      // and PG.
      facts.add(
        .cr0, value | 1 << 5, mask: shared & ~(3 << 29 | 1 << 16 | 1 << 31 | 1), "arch.cr0 | NE")
    }
    if let (value, shared) = copy("cr4") {
      facts.add(.cr4Shadow, value, mask: shared, "arch.cr4")
      // VMXE and MCE are forced on; UMIP, SMEP, SMAP and PKE may be off though the guest set them,
      // and PAE or VME on though it did not.
      facts.add(
        .cr4, value | 1 << 13 | 1 << 6, mask: shared & ~(0x70_0000 | 1 << 11 | 1 << 5 | 1),
        "arch.cr4 | VMXE | MCE")
    }
  }

  /// True if KVM's copy of a register is that of the structure: read from it, and not written since.
  private func isCopied(_ name: String) -> Bool {
    guard let bit = host.types.enumerator(named: name), (0..<64).contains(bit),
      let available = try? vcpu["arch.regs_avail"].unsigned(),
      let dirty = try? vcpu["arch.regs_dirty"].unsigned()
    else { return false }
    return available >> UInt64(bit) & 1 == 1 && dirty >> UInt64(bit) & 1 == 0
  }
}
