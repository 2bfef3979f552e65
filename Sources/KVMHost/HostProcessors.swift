import LinuxKernel
import Memory
import X86

/// What the host dump's own notes say of the host's processors.
public struct HostProcessors: Sendable {
  /// Registers by processor number, from QEMU's notes: there is one for each processor of a host
  /// that is itself a virtual machine and was dumped from outside.
  private let registers: [RegisterFile]
  /// `pr_pid` of each NT_PRSTATUS: the task that ran when the processor was stopped.
  let stoppedTasks: Set<UInt32>

  public init(notes: [(name: String, type: UInt32, descriptor: [UInt8])]) {
    registers = notes.lazy.filter { $0.name == ProcessorNotes.QEMUState.name }.enumerated()
      .compactMap { index, note in
        ProcessorNotes.registers(
          inQEMUState: note.descriptor,
          source: RegisterSource(.hostProcessor, "host CPU \(index), QEMU note"))
      }
    stoppedTasks = Set(
      notes.lazy.filter {
        $0.name == ProcessorNotes.ProcessStatus.name && $0.type == ProcessorNotes.ProcessStatus.type
      }.compactMap { ProcessorNotes.pid(inProcessStatus: $0.descriptor) })
  }

  /// True if the dump was taken from outside the host, by its hypervisor.
  var wereStoppedFromOutside: Bool { !registers.isEmpty }

  /// The guest's registers that a host processor held when it was stopped in guest mode, or nil if
  /// it was in the host.
  ///
  /// In guest mode CR3 is guest-physical: taken for a host address, it does not lead to the host's
  /// kernel, whereas every address space of the host does.
  func guestRegisters(onProcessor number: Int, of kernel: LinuxKernel) -> RegisterFile? {
    guard registers.indices.contains(number) else { return nil }
    let registers = registers[number]
    guard let cr3 = registers[.cr3].value, let text = kernel.vmcoreinfo.symbol("_stext") else {
      return nil
    }
    let tables = PageTables(
      root: PhysicalAddress(cr3), levels: kernel.memory.tables.levels,
      encryptionMask: kernel.memory.tables.encryptionMask)
    let space = VirtualMemory(physical: kernel.memory.physical, tables: tables)
    let seen = try? space.translate(text)
    return seen != nil && seen == (try? kernel.memory.translate(text)) ? nil : registers
  }

  /// The registers that a host processor held when it was stopped in user mode in an address space,
  /// or nil if it was elsewhere.
  func userRegisters(onProcessor number: Int, in tables: PageTables) -> UserRegisters? {
    guard registers.indices.contains(number) else { return nil }
    let registers = registers[number]
    guard let cr3 = registers[.cr3].value, let selector = registers[.cs].value?.selector,
      selector & 3 == 3
    else { return nil }
    // With page-table isolation, user mode has tables of its own in the page behind the kernel's
    // (`PTI_USER_PGTABLE_BIT`). A guest's user mode has a guest-physical CR3.
    let root = PageTables(
      root: PhysicalAddress(cr3), levels: tables.levels, encryptionMask: tables.encryptionMask
    ).root
    guard root == tables.root || root == tables.root + pageSize else { return nil }
    var user = UserRegisters(registers)
    // What a system call that was not made would have.
    user[.originalRAX] = .max
    return user
  }
}
