import Memory

/// A process made in code, and its core as the kernel writes it.
public struct SyntheticCore: Sendable {
  /// A mapping of the process: a PT_LOAD.
  public struct Mapping: Sendable {
    public var start: UInt64
    public var size: UInt64
    /// The file that it maps, and from which offset on.
    public var file: String?
    public var fileOffset: UInt64
    /// Whether its bytes are in the core.
    public var isDumped: Bool
    /// p_flags.
    public var flags: UInt32

    public init(
      _ start: UInt64, size: UInt64, file: String? = nil, fileOffset: UInt64 = 0,
      isDumped: Bool = true, flags: UInt32 = 7
    ) {
      self.start = start
      self.size = size
      self.file = file
      self.fileOffset = fileOffset
      self.isDumped = isDumped
      self.flags = flags
    }
  }

  /// By virtual address.
  public var memory = SyntheticMemory()
  public var mappings: [Mapping] = []
  public var auxiliaryVector: [(type: UInt64, value: UInt64)] = []
  public var pid: Int32 = 4711
  public var command = "qemu-system-x86"
  /// What the note has of the command line.
  public var argumentStart = ""
  /// The thread IDs.
  public var threads: [Int32] = [4711]
  public var hasExtendedCount = false
  /// Behind those of the kernel.
  public var furtherNotes: [SyntheticNote] = []

  public init() {}

  /// A thread's FS base, which is its `pthread_t`, too.
  public static func threadBase(_ thread: Int32) -> UInt64 {
    0x7fe0_0000_0000 + UInt64(UInt32(bitPattern: thread)) << 12
  }

  public mutating func store<Integer: FixedWidthInteger>(_ value: Integer, at address: UInt64) {
    memory.store(value, at: PhysicalAddress(address))
  }

  public mutating func write(_ bytes: [UInt8], at address: UInt64) {
    memory.write(bytes, at: PhysicalAddress(address))
  }

  /// Texts as a program starts with them: the arguments, and behind all the name it was executed by.
  /// Fills the auxiliary vector's AT_EXECFN.
  public mutating func addStack(_ arguments: [String], environment: [String], at stack: UInt64) {
    let size: UInt64 = 0x4000
    mappings.append(Mapping(stack, size: size))
    var text = stack + size / 2
    func put(_ string: String) -> UInt64 {
      defer { text += UInt64(string.utf8.count) + 1 }
      write(Array(string.utf8) + [0], at: text)
      return text
    }
    let argumentPointers = arguments.map(put)
    let environmentPointers = environment.map(put)
    auxiliaryVector.append((31, put(arguments.first ?? "")))
    var words: [UInt64] = [UInt64(arguments.count)]
    words += argumentPointers + [0] + environmentPointers + [0]
    words += auxiliaryVector.flatMap { [$0.type, $0.value] } + [0, 0]
    for (index, word) in words.enumerated() { store(word, at: stack + 0x800 + 8 * UInt64(index)) }
  }

  public var notes: [SyntheticNote] {
    var status = SyntheticNote.processStatus(cpu: 0)
    var notes: [SyntheticNote] = []
    for thread in threads {
      status.description.replaceSubrange(32..<36, with: bytes(of: thread))
      status.description.replaceSubrange(280..<288, with: bytes(of: Self.threadBase(thread)))
      notes.append(status)
    }
    var info = [UInt8](repeating: 0, count: 136)
    info.replaceSubrange(24..<28, with: bytes(of: pid))
    info.replaceSubrange(40..<40 + min(15, command.utf8.count), with: command.utf8.prefix(15))
    let start = argumentStart.utf8.prefix(79)
    info.replaceSubrange(56..<56 + start.count, with: start)
    notes.append(SyntheticNote(name: "CORE", type: 3, description: info))
    let vector = auxiliaryVector.flatMap { bytes(of: $0.type) + bytes(of: $0.value) }
    notes.append(
      SyntheticNote(name: "CORE", type: 6, description: vector + [UInt8](repeating: 0, count: 16)))
    let files = mappings.filter { $0.file != nil }
    var table = bytes(of: UInt64(files.count)) + bytes(of: pageSize)
    for mapping in files {
      table += bytes(of: mapping.start) + bytes(of: mapping.start + mapping.size)
      table += bytes(of: mapping.fileOffset / pageSize)
    }
    for mapping in files { table += Array((mapping.file ?? "").utf8) + [0] }
    notes.append(SyntheticNote(name: "CORE", type: 0x4649_4c45, description: table))
    return notes + furtherNotes
  }

  public var file: SyntheticFile {
    let loads = mappings.sorted { $0.start < $1.start }.map { mapping in
      SyntheticELF.Load(
        physical: 0, virtual: mapping.start, fileSize: mapping.isDumped ? mapping.size : 0,
        memorySize: mapping.size,
        content: mapping.isDumped
          ? memory.bytes(at: PhysicalAddress(mapping.start), count: Int(mapping.size)) : nil,
        flags: mapping.flags)
    }
    return SyntheticMemory().elf(
      SyntheticELF(notes: notes, loads: loads, hasExtendedCount: hasExtendedCount))
  }

  private func bytes(of value: some FixedWidthInteger) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.append(littleEndian: value)
    return bytes
  }
}
