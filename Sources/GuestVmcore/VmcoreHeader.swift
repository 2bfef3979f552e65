import DumpFiles
import Guest
import LinuxKernel
import Memory
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
    UInt64(encodedNotes(provenance: [UInt8](repeating: 0, count: provenanceSize)).count)
  }

  /// The file's first `layout.headerSize` bytes. The provenance, a JSON text, is padded with
  /// spaces to fill the room that the layout has for it.
  func encoded(for layout: VmcoreLayout, provenance: [UInt8]) -> [UInt8] {
    let room = Int(layout.headerSize - layout.noteOffset) - Int(noteSize(provenanceSize: 0))
    let padding = max(0, (room & ~3) - provenance.count)
    let notes = encodedNotes(
      provenance: provenance + [UInt8](repeating: UInt8(ascii: " "), count: padding))
    var bytes = elfHeader(programHeaders: layout.loads.count + 1)
    append(
      type: .note, offset: layout.noteOffset, virtualAddress: 0, address: 0,
      size: UInt64(notes.count), inMemory: 0, to: &bytes)
    for load in layout.loads {
      append(
        type: .load, offset: load.fileOffset, virtualAddress: load.virtualAddress,
        address: load.start.rawValue, size: load.size, inMemory: load.size, to: &bytes)
    }
    bytes += notes
    bytes += [UInt8](repeating: 0, count: Int(layout.headerSize) - bytes.count)
    return bytes
  }

  private func encodedNotes(provenance: [UInt8]) -> [UInt8] {
    let ours = Note(
      name: ProvenanceNote.name, type: ProvenanceNote.type, description: provenance)
    return (notes + [ours]).flatMap(\.encoded)
  }

  // MARK: ELF (System V ABI, elf.h)

  private enum ProgramHeaderType: UInt32 {
    case load = 1
    case note = 4
  }

  private func elfHeader(programHeaders: Int) -> [UInt8] {
    var bytes: [UInt8] = [0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0]
    bytes += [UInt8](repeating: 0, count: 8)
    bytes.append(littleEndian: UInt16(4))  // ET_CORE
    bytes.append(littleEndian: UInt16(62))  // EM_X86_64
    bytes.append(littleEndian: UInt32(1))
    bytes.append(littleEndian: UInt64(0))
    bytes.append(littleEndian: VmcoreLayout.elfHeaderSize)
    bytes.append(littleEndian: UInt64(0))
    bytes.append(littleEndian: UInt32(0))
    bytes.append(littleEndian: UInt16(VmcoreLayout.elfHeaderSize))
    bytes.append(littleEndian: UInt16(VmcoreLayout.programHeaderSize))
    bytes.append(littleEndian: UInt16(programHeaders))
    bytes += [UInt8](repeating: 0, count: 6)
    return bytes
  }

  private func append(
    type: ProgramHeaderType, offset: UInt64, virtualAddress: UInt64, address: UInt64, size: UInt64,
    inMemory: UInt64, to bytes: inout [UInt8]
  ) {
    bytes.append(littleEndian: type.rawValue)
    bytes.append(littleEndian: UInt32(type == .load ? 7 : 0))
    for value in [offset, virtualAddress, address, size, inMemory, 0] {
      bytes.append(littleEndian: value)
    }
  }
}
