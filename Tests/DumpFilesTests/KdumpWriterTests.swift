import DumpFiles
import Memory
import SyntheticDumps
import SystemPackage
import Testing

@Suite struct KdumpWriterTests {
  static let memory: SyntheticMemory = {
    var generator = SeededGenerator(seed: 6)
    return SyntheticMemory(
      randomIn: [1..<200, 600_000..<600_100, 0x100_0000..<0x100_0003], using: &generator)
  }()

  static let notes = [
    Note(name: "CORE", type: 1, description: Array(repeating: 1, count: 336)),
    Note(name: "QEMU", type: 0, description: Array(repeating: 2, count: 440)),
  ]

  /// Writes `frames` of the memory and opens the result.
  static func write(
    _ frames: [PageFrameNumber], to file: TemporaryFile, isFlattened: Bool = false,
    compression: KdumpCompression = .zlib,
    vmcoreinfo: String? = "NUMBER(phys_base)=-654311424\n", notes: [Note] = notes
  ) throws {
    let descriptor = try FileDescriptor.open(FilePath(file.path), .readWrite)
    defer { try? descriptor.close() }
    var writer = try KdumpWriter(
      descriptor, path: FilePath(file.path), isFlattened: isFlattened, compression: compression,
      system: SystemName(release: "6.1.0"), vmcoreinfo: vmcoreinfo.map { Array($0.utf8) },
      notes: notes,
      dumpLevel: [.zeroPages, .freePages], ram: memory.frameRanges,
      capacity: UInt64(frames.count) + 10)
    for frame in frames { try writer.append(frame, memory[frame] ?? []) }
    try writer.finish()
  }

  @Test(arguments: KdumpCompression.allCases, [false, true])
  func writesWhatTheReaderReads(_ compression: KdumpCompression, _ isFlattened: Bool) throws {
    let file = try TemporaryFile()
    let stored = Self.memory.frames.filter { $0.rawValue % 3 != 0 }
    try Self.write(stored, to: file, isFlattened: isFlattened, compression: compression)
    let dump = try DumpFile.open(FilePath(file.path))
    #expect(dump.format == .kdump(version: 6))
    #expect(dump.isFlattened == isFlattened)
    #expect(dump.dumpLevel == [.zeroPages, .freePages])
    #expect(!dump.isIncomplete)
    #expect(dump.notes.map(\.name) == ["CORE", "QEMU", "VMCOREINFO"])
    #expect(Array(dump.notes[..<2]) == Self.notes)
    #expect(dump.vmcoreinfo == Array("NUMBER(phys_base)=-654311424\n".utf8))
    #expect(dump.frameRanges == Self.memory.frameRanges)
    let truth: (PageFrameNumber) -> Expected = { frame in
      guard let page = Self.memory[frame] else { return .absent(.notInDump) }
      return frame.rawValue % 3 == 0 ? .absent(.excluded) : .bytes(page)
    }
    expectReads(dump, in: 0..<300, truth)
    expectReads(dump, in: 599_990..<600_110, truth)
    expectReads(dump, in: 0x00ff_fff0..<0x100_0010, truth)
  }

  // A reader of a flattened file takes where nothing was written for its end.
  @Test func flattenedFileHasAllBytesAndEachOnce() throws {
    let plain = try TemporaryFile()
    let flattened = try TemporaryFile()
    let stored = Self.memory.frames.filter { $0.rawValue % 5 == 0 }
    try Self.write(stored, to: plain)
    try Self.write(stored, to: flattened, isFlattened: true)
    let truth = try plain.bytes
    let bytes = try flattened.bytes
    var content = [UInt8](repeating: 0, count: truth.count)
    var timesWritten = [UInt8](repeating: 0, count: truth.count)
    var position = 4096
    while let offset: UInt64 = bytes.load(at: position),
      let size: UInt64 = bytes.load(at: position + 8), offset != .max
    {
      let start = Int(offset.byteSwapped)
      let count = Int(size.byteSwapped)
      try #require(start + count <= truth.count)
      content.replaceSubrange(start..<start + count, with: bytes[(position + 16)...].prefix(count))
      for index in start..<start + count { timesWritten[index] += 1 }
      position += 16 + count
    }
    #expect(position == bytes.count - 16)
    #expect(content == truth)
    #expect(timesWritten.allSatisfy { $0 == 1 })
  }

  /// What became of the pages is told by notes that are written behind them.
  @Test func notesMayChangeAtTheEndButNotOutgrowTheirRoom() throws {
    let file = try TemporaryFile()
    let path = FilePath(file.path)
    func write(_ last: Note) throws {
      let descriptor = try FileDescriptor.open(path, .readWrite)
      defer { try? descriptor.close() }
      let writer = try KdumpWriter(
        descriptor, path: path, system: SystemName(release: "6.1.0"), vmcoreinfo: nil,
        notes: [Note(name: "A", type: 1, description: [1])], dumpLevel: [],
        ram: [PageFrameNumber(1)..<PageFrameNumber(5)], capacity: 4)
      try writer.finish { _ in [last] }
    }
    let other = Note(name: "A", type: 1, description: [2, 3])
    try write(other)
    #expect(try DumpFile.open(path).notes == [other])
    let large = Note(name: "A", type: 1, description: [UInt8](repeating: 0, count: 8192))
    #expect(throws: KdumpWriterError.notesOutgrew(path)) { try write(large) }
  }

  // crash takes phys_base, and libkdumpfile the machine, from the headers.
  @Test func fillsTheHeadersThatOtherReadersTrust() throws {
    let file = try TemporaryFile()
    try Self.write([], to: file)
    let descriptor = try FileDescriptor.open(FilePath(file.path), .readOnly)
    defer { try? descriptor.close() }
    var header = [UInt8](repeating: 0, count: 8192)
    let count = try unsafe header.withUnsafeMutableBytes { unsafe try descriptor.read(into: $0) }
    #expect(count == 8192)
    #expect(header.load(Int64.self, at: 4096) == -654_311_424)
    #expect(header.load(Int32.self, at: 460) == 1)
    let names = (0..<6).map { header.cString(at: 12 + $0 * 65, limit: 65) }
    #expect(names == ["Linux", "(unknown)", "6.1.0", "(unknown)", "x86_64", "(none)"])
  }

  @Test func keepsAVmcoreinfoNoteThatIsThereAlready() throws {
    let file = try TemporaryFile()
    let note = Note(name: "VMCOREINFO", type: 0, description: Array("A=1\n".utf8))
    try Self.write([], to: file, vmcoreinfo: "A=1\n", notes: [note])
    let dump = try DumpFile.open(FilePath(file.path))
    #expect(dump.notes == [note])
    #expect(dump.vmcoreinfo == note.description)
  }

  @Test func writesWithoutNotes() throws {
    let file = try TemporaryFile()
    try Self.write([], to: file, vmcoreinfo: nil, notes: [])
    let dump = try DumpFile.open(FilePath(file.path))
    #expect(dump.notes == [])
    #expect(dump.vmcoreinfo == nil)
  }

  @Test func storesPagesOfZerosOnce() throws {
    let file = try TemporaryFile()
    let descriptor = try FileDescriptor.open(FilePath(file.path), .readWrite)
    defer { try? descriptor.close() }
    let frames = PageFrameNumber(0)..<PageFrameNumber(20_000)
    var writer = try KdumpWriter(
      descriptor, path: FilePath(file.path), system: SystemName(release: "6.1.0"), vmcoreinfo: nil,
      notes: [], dumpLevel: [.zeroPages], ram: [frames], capacity: .max)
    let zeros = [UInt8](repeating: 0, count: 4096)
    for frame: UInt64 in 0..<20_000 { try writer.append(PageFrameNumber(frame), zeros) }
    try writer.finish()
    let size = try descriptor.seek(offset: 0, from: .end)
    #expect(size < 20_000 * 24 + 10 * 4096)
    let run = try DumpFile.open(FilePath(file.path)).makeReader()
      .read(from: PageFrameNumber(19_000), count: 1000)
    #expect(run == Array(repeating: .bytes(zeros), count: 1000))
  }

  @Test func refusesPagesOutOfOrderAndOutsideOfMemory() throws {
    let file = try TemporaryFile()
    let descriptor = try FileDescriptor.open(FilePath(file.path), .readWrite)
    defer { try? descriptor.close() }
    let page = [UInt8](repeating: 1, count: 4096)
    let path = FilePath(file.path)
    var writer = try KdumpWriter(
      descriptor, path: path, system: SystemName(release: "6.1.0"), vmcoreinfo: nil, notes: [],
      dumpLevel: [], ram: [PageFrameNumber(2)..<PageFrameNumber(9)], capacity: 2)
    try writer.append(PageFrameNumber(5), page)
    func error(_ frame: UInt64, _ page: [UInt8]) -> KdumpWriterError? {
      do throws(KdumpWriterError) {
        try writer.append(PageFrameNumber(frame), page)
        return nil
      } catch {
        return error
      }
    }
    #expect(error(5, page) == .notAscending(path, PageFrameNumber(5)))
    #expect(error(9, page) == .notRAM(path, PageFrameNumber(9)))
    #expect(error(6, [1]) == .notAPage(path, PageFrameNumber(6), byteCount: 1))
    #expect(error(6, page) == nil)
    #expect(error(7, page) == .tooManyPages(path, capacity: 2))
  }

  @Test func refusesRangesThatMakeNoDump() throws {
    let file = try TemporaryFile()
    let descriptor = try FileDescriptor.open(FilePath(file.path), .readWrite)
    defer { try? descriptor.close() }
    let path = FilePath(file.path)
    func error(_ ram: [Range<PageFrameNumber>]) -> KdumpWriterError? {
      do throws(KdumpWriterError) {
        _ = try KdumpWriter(
          descriptor, path: path, system: SystemName(release: "6.1.0"), vmcoreinfo: nil,
          notes: [], dumpLevel: [], ram: ram, capacity: 0)
        return nil
      } catch {
        return error
      }
    }
    let low = PageFrameNumber(1)..<PageFrameNumber(5)
    #expect(error([]) == .badFrameLimit(path, 0))
    #expect(error([low, low]) == .notAscending(path, PageFrameNumber(1)))
    let far = PageFrameNumber(9)..<PageFrameNumber(.max)
    #expect(error([low, far]) == .badFrameLimit(path, .max))
  }

  @Test func saysWhereWritingFailed() throws {
    let file = try TemporaryFile()
    let descriptor = try FileDescriptor.open(FilePath(file.path), .readOnly)
    defer { try? descriptor.close() }
    do throws(KdumpWriterError) {
      _ = try KdumpWriter(
        descriptor, path: FilePath(file.path), system: SystemName(release: "6.1.0"),
        vmcoreinfo: nil, notes: [], dumpLevel: [],
        ram: [PageFrameNumber(1)..<PageFrameNumber(5)], capacity: 0)
      Issue.record("written")
    } catch {
      #expect(error == .writeFailed(FilePath(file.path), offset: 16384, .invalidArgument))
      #expect(error.name == "output.write-failed")
    }
  }
}

extension TemporaryFile {
  /// All that is in it.
  fileprivate var bytes: [UInt8] {
    get throws {
      let descriptor = try FileDescriptor.open(FilePath(path), .readOnly)
      defer { try? descriptor.close() }
      let size = Int(try descriptor.seek(offset: 0, from: .end))
      return try unsafe [UInt8](unsafeUninitializedCapacity: size) { buffer, count in
        count = try unsafe descriptor.read(
          fromAbsoluteOffset: 0, into: UnsafeMutableRawBufferPointer(buffer))
      }
    }
  }
}
