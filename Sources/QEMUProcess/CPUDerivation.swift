import Guest
import LinuxKernel
import Memory
import X86

extension Guest {
  /// The guest with what its kernel's memory tells of vCPUs of which nothing is known.
  ///
  /// A kernel that crashed with a crash kernel at hand saved the registers of its CPUs. All vCPUs
  /// share what readers find the kernel by: its page tables and its interrupt descriptor table. These
  /// are not what a vCPU had: in a process CR3 names that process's tables. So all is labelled, and
  /// nothing else is made up.
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
    let notes = CrashNotes(of: kernel, in: space)
    let saved = Dictionary(
      lost.compactMap { lost in notes?.registers(of: lost.index).map { (lost.index, $0) } },
      uniquingKeysWith: { first, _ in first })
    if !saved.isEmpty {
      findings.append(
        Finding(
          .note, "vcpu.crash-notes",
          "vCPUs \(saved.keys.sorted().map(String.init).joined(separator: ", ")): general registers,"
            + " RIP and RFLAGS are those that the guest's kernel saved when it crashed, of its CPUs of"
            + " the same numbers"))
    }
    return Guest(
      identity: identity, memory: memory,
      processors: processors.map { processor in
        guard processor.registers.knowsNothing else { return processor }
        var registers = saved[processor.index] ?? processor.registers
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

/// `crash_notes`: for each CPU a buffer of notes, of which `crash_save_cpu` writes the first when
/// the kernel crashes, an NT_PRSTATUS (Linux kernel/kexec_core.c, since 6.8 kernel/crash_core.c).
private struct CrashNotes {
  private let buffers: VirtualAddress
  private let offsets: VirtualAddress
  private let space: VirtualMemory

  init?(of kernel: GuestKernel, in space: VirtualMemory) {
    guard kernel.hasCrashed, let pointer = kernel.symbols?.address(of: "crash_notes"),
      let offsets = kernel.symbols?.address(of: "__per_cpu_offset"),
      let buffers: UInt64 = try? space.load(pointer)
    else { return nil }
    self.buffers = VirtualAddress(buffers)
    self.offsets = offsets
    self.space = space
  }

  func registers(of processor: Int) -> RegisterFile? {
    guard processor >= 0, let offset: UInt64 = try? space.load(offsets + 8 * UInt64(processor)),
      let note = try? space.read(
        buffers + offset, count: Self.headSize + ProcessorNotes.ProcessStatus.size),
      note.load(at: 0) == UInt32(Self.owner.count), note[12...].starts(with: Self.owner),
      note.load(at: 8) == ProcessorNotes.ProcessStatus.type
    else { return nil }
    return ProcessorNotes.registers(
      inProcessStatus: Array(note[Self.headSize...]),
      source: RegisterSource(.guestKernel, "crash_notes of CPU \(processor)"))
  }

  /// The note's head, with its owner padded to 4 bytes.
  private static let headSize = 20
  private static let owner = Array((ProcessorNotes.ProcessStatus.name + "\0").utf8)
}

extension RegisterFile {
  fileprivate var knowsNothing: Bool {
    Register.allCases.allSatisfy { self[$0].value == nil }
      && SegmentRegister.allCases.allSatisfy { self[$0].value == nil }
      && TableRegister.allCases.allSatisfy { self[$0].value == nil }
  }
}
