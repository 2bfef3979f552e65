import DumpFiles
import LinuxKernel
import Memory
import X86

/// The notes by which Linux tells of a process in its core (fs/binfmt_elf.c,
/// include/uapi/linux/elfcore.h), in its order.
struct ProcessNotes {
  private enum NoteType {
    static let processInfo: UInt32 = 3
    static let auxiliaryVector: UInt32 = 6
    static let mappedFiles: UInt32 = 0x4649_4c45
  }

  /// The kernel's bound of NT_FILE (MAX_FILE_NOTE_SIZE): gdb and others take no more.
  private static let filesLimit = 4 << 20

  let notes: [Note]

  init(_ process: UserProcess) {
    var notes = process.threads.prefix(1).map { Self.status($0, process) }
    func add(_ type: UInt32, _ description: [UInt8]) {
      notes.append(Note(name: "CORE", type: type, description: description))
    }
    add(NoteType.processInfo, Self.info(process))
    if !process.auxiliaryVector.isEmpty {
      var words: [UInt8] = []
      for word in process.auxiliaryVector { words.append(littleEndian: word) }
      add(NoteType.auxiliaryVector, words)
    }
    add(NoteType.mappedFiles, Self.files(process.mappings))
    notes += process.threads.dropFirst().map { Self.status($0, process) }
    self.notes = notes
  }

  private static func status(_ thread: ProcessThread, _ process: UserProcess) -> Note {
    var status = ThreadStatus(id: thread.id)
    status.parent = process.credentials.parent
    status.processGroup = process.credentials.processGroup
    status.session = process.credentials.session
    status.pendingSignals = thread.pendingSignals
    status.blockedSignals = thread.blockedSignals
    status.times = thread.times
    status.registers = thread.registers ?? UserRegisters()
    return Note(
      name: ProcessorNotes.ProcessStatus.name, type: ProcessorNotes.ProcessStatus.type,
      description: status.encoded)
  }

  /// `struct elf_prpsinfo`.
  private static func info(_ process: UserProcess) -> [UInt8] {
    let credentials = process.credentials
    // The lowest bit of the state, counted from 1; its letter is one of these.
    let state = credentials.state == 0 ? 0 : credentials.state.trailingZeroBitCount + 1
    let letters = Array("RSDTZW".utf8)
    let letter = state < letters.count ? letters[state] : UInt8(ascii: ".")
    var note = [
      UInt8(truncatingIfNeeded: state), letter, letter == UInt8(ascii: "Z") ? 1 : 0,
      UInt8(bitPattern: credentials.nice), 0, 0, 0, 0,
    ]
    note.append(littleEndian: credentials.flags)
    note.append(littleEndian: credentials.user)
    note.append(littleEndian: credentials.group)
    for id in [
      process.id, credentials.parent, credentials.processGroup, credentials.session,
    ] { note.append(littleEndian: id) }
    note += text(process.identity.command ?? "", size: 16)
    note += text(process.identity.arguments.joined(separator: " "), size: 80)
    return note
  }

  /// NUL-terminated in a field of `size` bytes.
  private static func text(_ text: String, size: Int) -> [UInt8] {
    let bytes = Array(text.utf8.prefix(size - 1))
    return bytes + [UInt8](repeating: 0, count: size - bytes.count)
  }

  /// A count, the unit of offsets, then start, end and offset of each, then the names. Mappings whose
  /// file has no name that can be read are left out, as the kernel does.
  private static func files(_ mappings: [ProcessMapping]) -> [UInt8] {
    var entries: [UInt8] = []
    var names: [UInt8] = []
    var count: UInt64 = 0
    for mapping in mappings {
      guard let path = mapping.file?.path,
        entries.count + names.count + path.utf8.count + 25 <= filesLimit - 16
      else { continue }
      count += 1
      for value in [mapping.start.rawValue, mapping.end.rawValue, mapping.filePage] {
        entries.append(littleEndian: value)
      }
      names += Array(path.utf8) + [0]
    }
    var note: [UInt8] = []
    note.append(littleEndian: count)
    note.append(littleEndian: pageSize)
    return note + entries + names
  }
}
