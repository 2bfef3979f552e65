import Memory

/// What an NT_PRSTATUS note tells of a thread: `struct elf_prstatus` of x86-64
/// (include/linux/elfcore.h).
public struct ThreadStatus: Hashable, Sendable {
  public var id: Int32
  public var parent: Int32 = 0
  public var processGroup: Int32 = 0
  public var session: Int32 = 0
  /// Masks of signals: bit 0 is signal 1.
  public var pendingSignals: UInt64 = 0
  public var blockedSignals: UInt64 = 0
  /// In nanoseconds: in user mode, in the kernel, and of children that have ended.
  public var times: [UInt64] = []
  public var registers = UserRegisters()

  public init(id: Int32) { self.id = id }

  /// The description of the note. No signal ended the thread (pr_cursig is 0), and floating-point
  /// registers are in no other note (pr_fpvalid is 0).
  public var encoded: [UInt8] {
    // pr_info and pr_cursig.
    var note = [UInt8](repeating: 0, count: 16)
    note.append(littleEndian: pendingSignals)
    note.append(littleEndian: blockedSignals)
    for id in [id, parent, processGroup, session] { note.append(littleEndian: id) }
    // pr_utime, pr_stime, pr_cutime, pr_cstime: struct timeval.
    for index in 0..<4 {
      let time = times.indices.contains(index) ? times[index] : 0
      note.append(littleEndian: time / 1_000_000_000)
      note.append(littleEndian: time % 1_000_000_000 / 1000)
    }
    for value in registers.values { note.append(littleEndian: value) }
    return note + [UInt8](repeating: 0, count: ProcessorNotes.ProcessStatus.size - note.count)
  }
}
