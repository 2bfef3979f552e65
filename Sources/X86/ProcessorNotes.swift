import Memory

/// The ELF notes that describe one processor in a vmcore: Linux's NT_PRSTATUS and QEMU's own note.
/// Readers take the first for backtraces, the second for what the first has no room for.
public enum ProcessorNotes {
  /// Linux `struct elf_prstatus` of x86-64 (include/uapi/linux/elfcore.h): `pr_pid` at 32, the
  /// registers of `struct user_regs_struct` at 112, `pr_fpvalid` at the end.
  public enum ProcessStatus {
    public static let name = "CORE"
    public static let type: UInt32 = 1
    public static let size = 336
    static let pidOffset = 32
    static let registersOffset = 112
  }

  /// QEMU's `QEMUCPUState` (target/i386/arch_dump.c): version and size, 18 registers, 10 segments
  /// of 24 bytes, CR0-4, and since version 3.0 KERNEL_GS_BASE behind them.
  public enum QEMUState {
    public static let name = "QEMU"
    public static let type: UInt32 = 0
    public static let version: UInt32 = 1
    public static let size = 440
    static let sizeWithoutKernelGSBase = 432
  }

  /// One element of the QEMU note's order of registers.
  static let qemuRegisters: [Register] = Register.general + [.rip, .rflags]
}

// MARK: - Writing

extension ProcessorNotes {
  /// The descriptor of an NT_PRSTATUS note. A register that is not known is written as 0.
  ///
  /// `pr_pid` is the processor's index plus one, as QEMU has it: drgn finds a CPU's note by it.
  public static func processStatus(index: Int, _ registers: RegisterFile) -> [UInt8] {
    var status = ThreadStatus(id: Int32(truncatingIfNeeded: index + 1))
    status.registers = UserRegisters(registers)
    return status.encoded
  }

  /// The descriptor of QEMU's note. A register that is not known is written as 0.
  public static func qemuState(_ registers: RegisterFile) -> [UInt8] {
    var note: [UInt8] = []
    note.append(littleEndian: QEMUState.version)
    note.append(littleEndian: UInt32(QEMUState.size))
    for register in qemuRegisters { note.append(littleEndian: registers[register].value ?? 0) }
    for register in SegmentRegister.allCases {
      let segment = registers[register].value
      append(
        selector: segment?.selector ?? 0, limit: segment?.limit ?? 0,
        flags: segment?.attributes.rawValue ?? 0, base: segment?.base ?? 0, to: &note)
    }
    for register in TableRegister.allCases {
      let table = registers[register].value
      append(
        selector: 0, limit: table?.limit ?? 0, flags: 0, base: table?.base ?? 0, to: &note)
    }
    note.append(littleEndian: registers[.cr0].value ?? 0)
    note.append(littleEndian: UInt64(0))
    for register in [Register.cr2, .cr3, .cr4, .kernelGSBase] {
      note.append(littleEndian: registers[register].value ?? 0)
    }
    return note
  }

  private static func append(
    selector: UInt16, limit: UInt32, flags: UInt32, base: UInt64, to note: inout [UInt8]
  ) {
    note.append(littleEndian: UInt32(selector))
    note.append(littleEndian: limit)
    note.append(littleEndian: flags)
    note.append(littleEndian: UInt32(0))
    note.append(littleEndian: base)
  }
}

// MARK: - Reading

extension ProcessorNotes {
  /// `pr_pid` of an NT_PRSTATUS note.
  public static func pid(inProcessStatus note: [UInt8]) -> UInt32? {
    note.load(at: ProcessStatus.pidOffset)
  }

  /// The general registers, RIP and RFLAGS that an NT_PRSTATUS note has, or nil if it is none.
  public static func registers(
    inProcessStatus note: [UInt8], source: RegisterSource
  ) -> RegisterFile? {
    guard note.count >= ProcessStatus.size else { return nil }
    var registers = RegisterFile()
    for (index, member) in UserRegister.allCases.enumerated() {
      guard let register = member.register else { continue }
      registers[register] =
        note.load(at: ProcessStatus.registersOffset + 8 * index).map { .known($0, source) }
        ?? registers[register]
    }
    return registers
  }

  /// The registers that QEMU's note has, or nil if it is none.
  public static func registers(
    inQEMUState note: [UInt8], source: RegisterSource
  ) -> RegisterFile? {
    guard note.count >= QEMUState.sizeWithoutKernelGSBase,
      note.load(UInt32.self, at: 0) == QEMUState.version
    else { return nil }
    var registers = RegisterFile()
    var offset = 8
    func word() -> UInt64 {
      defer { offset += 8 }
      return note.load(at: offset) ?? 0
    }
    for register in qemuRegisters { registers[register] = .known(word(), source) }
    for register in SegmentRegister.allCases {
      let selector = note.load(UInt16.self, at: offset) ?? 0
      let limit = note.load(UInt32.self, at: offset + 4) ?? 0
      let flags = note.load(UInt32.self, at: offset + 8) ?? 0
      offset += 16
      registers[register] = .known(
        Segment(
          selector: selector, base: word(), limit: limit,
          attributes: SegmentAttributes(descriptor: flags)), source)
    }
    for register in TableRegister.allCases {
      let limit = note.load(UInt32.self, at: offset + 4) ?? 0
      offset += 16
      registers[register] = .known(DescriptorTable(base: word(), limit: limit), source)
    }
    registers[.cr0] = .known(word(), source)
    _ = word()
    for register in [Register.cr2, .cr3, .cr4] { registers[register] = .known(word(), source) }
    if note.count >= QEMUState.size { registers[.kernelGSBase] = .known(word(), source) }
    return registers
  }
}
