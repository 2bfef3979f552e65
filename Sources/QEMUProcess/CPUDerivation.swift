import Guest
import LinuxKernel
import Memory
import X86

extension Guest {
  /// The guest with what its kernel's memory tells of vCPUs of which nothing is known.
  ///
  /// That is what all vCPUs of the kernel share and readers find the kernel by: its page tables and
  /// its interrupt descriptor table. It is not what a vCPU had: in a process CR3 names that process's
  /// tables. So it is labelled, and nothing else is made up.
  public func derivingLostRegisters(
    from kernel: GuestKernel, in source: any FrameSource
  ) -> Guest {
    let lost = processors.filter { $0.registers.knowsNothing }
    guard !lost.isEmpty,
      let space = try? VirtualMemory(
        ofKernel: kernel.vmcoreinfo, in: GuestMemory(memory, in: source))
    else { return self }
    let table = InterruptTable(of: kernel, in: space)?.register
    var findings = findings
    let names = lost.map { String($0.index) }.joined(separator: ", ")
    findings.append(
      Finding(
        .note, "vcpu.derived",
        (lost.count == 1 ? "vCPU " : "vCPUs ") + names + ": CR3"
          + (table == nil ? " is" : " and IDTR are")
          + " the kernel's own, so that readers find it, and not what the vCPU had"))
    return Guest(
      identity: identity, memory: memory,
      processors: processors.map { processor in
        guard processor.registers.knowsNothing else { return processor }
        var registers = processor.registers
        registers[.cr3] = .known(
          space.tables.root.rawValue, RegisterSource(.derived, "swapper_pg_dir"))
        if let table { registers[.idtr] = .known(table, RegisterSource(.derived, "idt_descr")) }
        return VirtualProcessor(
          index: processor.index, state: processor.state, registers: registers,
          nested: processor.nested)
      }, findings: findings)
  }
}

/// The interrupt descriptor table of all CPUs: `idt_descr` (Linux arch/x86/kernel/idt.c), what LIDT
/// loads: a limit of 2 bytes, an address of 8.
private struct InterruptTable {
  let register: DescriptorTable

  init?(of kernel: GuestKernel, in space: VirtualMemory) {
    guard let address = kernel.symbols?.address(of: "idt_descr"),
      let limit: UInt16 = try? space.load(address),
      let base: UInt64 = try? space.load(address + 2),
      (try? space.translate(VirtualAddress(base))) != nil
    else { return nil }
    register = DescriptorTable(base: base, limit: UInt32(limit))
  }
}

extension RegisterFile {
  fileprivate var knowsNothing: Bool {
    Register.allCases.allSatisfy { self[$0].value == nil }
      && SegmentRegister.allCases.allSatisfy { self[$0].value == nil }
      && TableRegister.allCases.allSatisfy { self[$0].value == nil }
  }
}
