import DumpFiles
import Memory
import SyntheticDumps
import Testing

@Suite struct NoteTests {
  static func dump(_ notes: [SyntheticNote]) -> SyntheticFile {
    SyntheticMemory().elf(
      SyntheticELF(notes: notes, loads: [SyntheticELF.Load(physical: 0, fileSize: 0x1000)]))
  }

  @Test func keepsNamesAndDescriptionsOfAllLengths() throws {
    let notes = (0..<40).map { length in
      SyntheticNote(
        name: String(repeating: "n", count: length % 9), type: UInt32(length),
        description: Array(repeating: UInt8(length), count: length))
    }
    let read = try openDump(Self.dump(notes)).notes
    #expect(read.map(\.name) == notes.map(\.name))
    #expect(read.map(\.type) == notes.map(\.type))
    #expect(read.map(\.description) == notes.map(\.description))
  }

  @Test func encodesWhatItReads() throws {
    let note = Note(name: "VMCORE", type: 0x1234, description: [1, 2, 3, 4, 5])
    var file = Self.dump([
      SyntheticNote(name: "VMCORE", type: 0x1234, description: [1, 2, 3, 4, 5])
    ])
    let offset: UInt64 = file.load(at: 64 + 8)
    #expect(Array(file.bytes[Int(offset)...].prefix(note.encoded.count)) == note.encoded)
    file.write(note.encoded, at: offset)
    #expect(try openDump(file).notes == [note])
  }

  @Test func findsNotesBehindOneTooLongToKeep() throws {
    let notes = [
      SyntheticNote(
        name: "LINUX", type: 0x700, description: Array(repeating: 1, count: (1 << 20) + 4)),
      SyntheticNote(name: "LONG", type: 2, description: Array(repeating: 2, count: 1 << 20)),
      .vmcoreinfo("OSRELEASE=6.1.0\n"),
    ]
    let dump = try openDump(Self.dump(notes))
    #expect(dump.notes.map(\.name) == ["LONG", "VMCOREINFO"])
    #expect(dump.vmcoreinfo == Array("OSRELEASE=6.1.0\n".utf8))
  }

  @Test func skipsEmptyNotes() throws {
    var file = Self.dump([
      SyntheticNote(name: "PADDING", type: 0, description: Array(repeating: 0, count: 100)),
      .vmcoreinfo("A=1\n"),
    ])
    let offset: UInt64 = file.load(at: 64 + 8)
    file.write([UInt8](repeating: 0, count: 12 + 8 + 100), at: offset)
    #expect(try openDump(file).notes.map(\.name) == ["VMCOREINFO"])
  }

  @Test func stopsAtANoteThatDoesNotFit() throws {
    var file = Self.dump([.processStatus(cpu: 0), .vmcoreinfo("A=1\n"), .processStatus(cpu: 1)])
    let offset: UInt64 = file.load(at: 64 + 8)
    // n_descsz of the second note.
    file.store(UInt32.max, at: offset + 12 + 8 + 336 + 4)
    let dump = try openDump(file)
    #expect(dump.notes.map(\.name) == ["CORE"])
    #expect(dump.vmcoreinfo == nil)
  }

  @Test(arguments: [0, 1, 1 << 40, UInt64.max])
  func readsADumpWhoseNotesAreElsewhere(offset: UInt64) throws {
    var file = Self.dump([.vmcoreinfo("A=1\n")])
    file.store(offset, at: 64 + 8)
    file.store(UInt64.max, at: 64 + 32)
    let dump = try openDump(file)
    #expect(dump.read(PageFrameNumber(0)) == .bytes(Array(repeating: 0, count: 4096)))
  }

  @Test func takesTheKernelsVmcoreinfoNotXens() throws {
    let dump = try openDump(
      Self.dump([
        SyntheticNote(name: "VMCOREINFO_XEN", type: 0, description: Array("XEN=1\n".utf8)),
        .vmcoreinfo("OSRELEASE=6.1.0\n\0\0\0"),
      ]))
    #expect(dump.vmcoreinfo == Array("OSRELEASE=6.1.0\n".utf8))
  }

  @Test func saysErasedWhereMakedumpfileSaysSo() throws {
    let note = SyntheticNote(name: "ERASEINFO", type: 0, description: Array("erase x".utf8))
    #expect(try openDump(Self.dump([note])).hasErasures)
  }
}
