import DumpFiles
import Guest
import LinuxKernel
import Memory
import Output
import X86

/// The notes of a guest's vmcore, in the order that QEMU writes them, and the headers before them.
struct VmcoreHeader {
  /// What readers of kernel dumps know.
  private let notes: [Note]

  /// The note that says where everything in the file comes from. Its type and name are none that
  /// crash, gdb or readelf know: crash switches on the type before it looks at the name.
  enum ProvenanceNote {
    static let name = "VMCORESPLIT"
    static let type: UInt32 = 0x5653_504c
  }

  init(_ guest: Guest, kernel: GuestKernel?, canTrustTables: Bool) {
    var notes: [Note] = []
    for processor in guest.processors {
      notes.append(
        Note(
          name: ProcessorNotes.ProcessStatus.name, type: ProcessorNotes.ProcessStatus.type,
          description: ProcessorNotes.processStatus(
            index: processor.index, processor.registers)))
    }
    // Without VMCOREINFO crash finds the kernel by CR3 and IDTR of these notes, and opens the dump
    // with garbage if they do not lead there.
    if kernel != nil || canTrustTables {
      for processor in guest.processors {
        notes.append(
          Note(
            name: ProcessorNotes.QEMUState.name, type: ProcessorNotes.QEMUState.type,
            description: ProcessorNotes.qemuState(processor.registers)))
      }
    }
    if let kernel {
      notes.append(Note(name: "VMCOREINFO", type: 0, description: kernel.vmcoreinfo.text))
    }
    self.notes = notes
  }

  /// Bytes that the notes take with a provenance note of `provenanceSize` bytes.
  func noteSize(provenanceSize: Int) -> UInt64 {
    UInt64(encodedNotes(provenance: [], room: provenanceSize).count)
  }

  /// All notes. The provenance, a JSON text, is padded with spaces to fill `room` bytes.
  func notes(provenance: [UInt8], room: Int) -> [Note] {
    let padding = max(0, room - provenance.count)
    let ours = Note(
      name: ProvenanceNote.name, type: ProvenanceNote.type,
      description: provenance + [UInt8](repeating: UInt8(ascii: " "), count: padding))
    return notes + [ours]
  }

  /// The file's first `layout.headerSize` bytes. The provenance fills the room that the layout has
  /// for it.
  func encoded(for layout: VmcoreLayout, provenance: [UInt8]) -> [UInt8] {
    let room = Int(layout.headerSize - layout.noteOffset) - Int(noteSize(provenanceSize: 0))
    let notes = encodedNotes(provenance: provenance, room: room & ~3)
    var bytes = ELFCoreHeader.encoded(programHeaders: layout.loads.count + 1)
    ProgramHeader(.note, offset: layout.noteOffset, fileSize: UInt64(notes.count))
      .append(to: &bytes)
    for load in layout.loads {
      var header = ProgramHeader(
        .load,
        flags: ProgramHeader.readable | ProgramHeader.writable | ProgramHeader.executable,
        offset: load.fileOffset, fileSize: load.fileSize, memorySize: load.fileSize)
      header.virtualAddress = load.virtualAddress
      header.physicalAddress = load.start.rawValue
      header.append(to: &bytes)
    }
    bytes += notes
    bytes += [UInt8](repeating: 0, count: Int(layout.headerSize) - bytes.count)
    return bytes
  }

  private func encodedNotes(provenance: [UInt8], room: Int) -> [UInt8] {
    notes(provenance: provenance, room: room).flatMap(\.encoded)
  }
}
