import Memory

/// What the core of a process tells besides its memory: threads, mapped files, how it was started.
///
/// Sources: Linux fs/binfmt_elf.c, include/uapi/linux/elfcore.h, include/uapi/linux/auxvec.h.
public struct ProcessCore: Hashable, Sendable {
  /// A PT_LOAD: a mapping of the process, whether its bytes are in the core or not.
  public struct Segment: Hashable, Sendable {
    public let start: VirtualAddress
    /// In bytes.
    public let size: UInt64
    public let isWritable: Bool
    /// Why the core has none of its bytes; nil if it has some.
    public let gap: SegmentGap?

    public init(
      start: VirtualAddress, size: UInt64, isWritable: Bool, gap: SegmentGap? = nil
    ) {
      self.start = start
      self.size = size
      self.isWritable = isWritable
      self.gap = gap
    }

    public var end: VirtualAddress { start + size }
  }

  /// A mapping of a file (NT_FILE).
  public struct MappedFile: Hashable, Sendable {
    public let start: VirtualAddress
    public let end: VirtualAddress
    /// Where in the file the mapping starts, in bytes.
    public let fileOffset: UInt64
    public let path: String

    public func contains(_ address: VirtualAddress) -> Bool { start <= address && address < end }
  }

  /// A thread (NT_PRSTATUS).
  public struct Thread: Hashable, Sendable {
    public let id: Int32
    /// The signal that the process died of, in the thread that got it.
    public let signal: Int16
    /// The members of `struct user_regs_struct`, in its order.
    public let registers: [UInt64]
  }

  /// A pair of the auxiliary vector (NT_AUXV), by which the kernel told the process about itself.
  public struct AuxiliaryEntry: Hashable, Sendable {
    public let type: UInt64
    public let value: UInt64
  }

  /// By ascending address.
  public let segments: [Segment]
  /// In the order of the note, which is that of addresses.
  public let files: [MappedFile]
  public let threads: [Thread]
  public let auxiliaryVector: [AuxiliaryEntry]
  public let pid: Int64
  /// The first 15 characters of the program's name (pr_fname).
  public let command: String?
  /// The first 79 characters of the command line, its arguments with blanks between (pr_psargs).
  public let argumentStart: String?

  /// A value of the auxiliary vector.
  public func auxiliary(_ type: UInt64) -> UInt64? {
    auxiliaryVector.first { $0.type == type }?.value
  }

  /// Types of the auxiliary vector.
  public enum Auxiliary {
    /// AT_PHDR: where the program headers of the executable are.
    public static let programHeaders: UInt64 = 3
    /// AT_PHNUM: how many there are.
    public static let programHeaderCount: UInt64 = 5
    /// AT_ENTRY: the entry point of the executable.
    public static let entry: UInt64 = 9
    /// AT_EXECFN: where the executable's name is, behind all arguments.
    public static let executableName: UInt64 = 31
  }

  /// The segment that holds an address.
  public func segment(at address: VirtualAddress) -> Segment? {
    let next = segments.partitioningIndex { $0.start > address }
    guard next > 0, address.distance(from: segments[next - 1].start) < segments[next - 1].size
    else { return nil }
    return segments[next - 1]
  }

  /// The mapping of a file that holds an address.
  public func file(at address: VirtualAddress) -> MappedFile? {
    files.first { $0.contains(address) }
  }
}

extension ProcessCore {
  /// Types of `CORE` notes that only a process has.
  private enum NoteType {
    static let processInfo: UInt32 = 3
    static let auxiliaryVector: UInt32 = 6
    static let mappedFiles: UInt32 = 0x4649_4c45
  }

  /// `struct elf_prstatus`: pr_cursig, pr_pid, pr_reg.
  private enum Status {
    static let signal = 12
    static let pid = 32
    static let registers = 112
    static let registerCount = 27
  }

  /// `struct elf_prpsinfo`: pr_pid, pr_fname, pr_psargs.
  private enum Info {
    static let pid = 24
    static let command = 40
    static let commandSize = 16
    static let arguments = 56
    static let argumentsSize = 80
  }

  /// Nil unless the notes are those of a process. Only of one does the kernel write an auxiliary
  /// vector or mapped files, and only of a machine a VMCOREINFO.
  init?(notes: [Note], segments: [Segment]) {
    guard !notes.contains(where: { $0.name == "VMCOREINFO" }) else { return nil }
    let own = notes.filter { $0.name == "CORE" }
    let vector = own.first { $0.type == NoteType.auxiliaryVector }
    let files = own.first { $0.type == NoteType.mappedFiles }
    guard vector != nil || files != nil else { return nil }
    self.segments = segments.sorted { $0.start < $1.start }
    self.files = files.map { Self.files($0.description) } ?? []
    auxiliaryVector = vector.map { Self.vector($0.description) } ?? []
    threads = own.filter { $0.type == ELFLayout.processStatus }.compactMap {
      Self.thread($0.description)
    }
    let info = own.first { $0.type == NoteType.processInfo }?.description ?? []
    pid =
      info.load(Int32.self, at: Info.pid).map(Int64.init) ?? threads.first.map { Int64($0.id) }
      ?? 0
    command = info.cString(at: Info.command, limit: Info.commandSize)
    argumentStart = info.cString(at: Info.arguments, limit: Info.argumentsSize)
  }

  private static func thread(_ note: [UInt8]) -> Thread? {
    guard let id: Int32 = note.load(at: Status.pid),
      let signal: Int16 = note.load(at: Status.signal)
    else { return nil }
    let registers = (0..<Status.registerCount).compactMap {
      note.load(UInt64.self, at: Status.registers + 8 * $0)
    }
    return registers.count == Status.registerCount
      ? Thread(id: id, signal: signal, registers: registers) : nil
  }

  private static func vector(_ note: [UInt8]) -> [AuxiliaryEntry] {
    stride(from: 0, to: note.count, by: 16).compactMap { offset in
      guard let type: UInt64 = note.load(at: offset),
        let value: UInt64 = note.load(at: offset + 8), type != 0
      else { return nil }
      return AuxiliaryEntry(type: type, value: value)
    }
  }

  /// A count, the unit of offsets, then start, end and offset of each, then the names.
  private static func files(_ note: [UInt8]) -> [MappedFile] {
    guard let count: UInt64 = note.load(at: 0), let unit: UInt64 = note.load(at: 8),
      count <= UInt64(note.count / 24)
    else { return [] }
    var files: [MappedFile] = []
    var name = 16 + 24 * Int(count)
    for index in 0..<Int(count) {
      let entry = 16 + 24 * index
      guard let start: UInt64 = note.load(at: entry), let end: UInt64 = note.load(at: entry + 8),
        let offset: UInt64 = note.load(at: entry + 16), name < note.count
      else { break }
      let nameEnd = note[name...].firstIndex(of: 0) ?? note.count
      files.append(
        MappedFile(
          start: VirtualAddress(start), end: VirtualAddress(end), fileOffset: offset &* unit,
          path: String(decoding: note[name..<nameEnd], as: UTF8.self)))
      name = nameEnd + 1
    }
    return files
  }
}
