import DumpFiles
import Foundation
import Memory
import SystemPackage
import Testing

/// What `extract` writes besides ELF files: pipes, and makedumpfile's format.
struct FormTests {
  private static let kdumpFormats = ["kdump-zlib", "kdump-lzo", "kdump-snappy", "kdump-zstd"]
  /// A host dump of level 31, with four guests that are mostly missing.
  private static let filtered = packageRoot.appending(path: "Samples/intel-host.kdump")
    .path(percentEncoded: false)

  // MARK: Pipes

  @Test(arguments: [1, 2, 8])
  func pipeHasTheBytesOfTheFile(_ threads: Int) throws {
    let folder = Folder()
    #expect(try Program.run([Sample.dump, "-o", "sample.vmcore"], in: folder).status == 0)
    let result = try Program.pipe(
      [Sample.dump, "-o", "-", "--threads", "\(threads)"], into: "cat > piped", in: folder)
    #expect(result.status == 0)
    #expect(result.errors == "vmcore-split: sample: 2 vCPUs, 64.2 MiB, \(Self.kernel)\n")
    #expect(try folder.bytes("piped") == folder.bytes("sample.vmcore"))
  }

  private static let kernel = "Linux 6.1.192-small, 0 pages missing"

  /// Missing ranges have no place in the file, and so none in the pipe.
  @Test func pipeHasTheBytesOfTheFileWhereMemoryIsMissing() throws {
    let folder = Folder()
    let guest = [Self.filtered, "--guest", "vmm-117", "-q"]
    #expect(try Program.run(guest + ["-o", "117.vmcore"], in: folder).status == 3)
    #expect(
      try Program.pipe(guest + ["-o", "-"], into: "cat > piped", in: folder).status == 3)
    let piped = try folder.bytes("piped")
    #expect(piped == (try folder.bytes("117.vmcore")))
    #expect(piped.count > 100 * 4096)
  }

  /// makedumpfile -R makes the file of a flattened one.
  @Test(arguments: kdumpFormats)
  func pipedKdumpIsFlattenedAndHasThePagesOfTheFile(_ format: String) throws {
    let folder = Folder()
    #expect(
      try Program.run([Sample.dump, "--format", format], in: folder).status == 0)
    #expect(
      try Program.pipe(
        [Sample.dump, "--format", format, "-o", "-", "-q"], into: "cat > piped", in: folder
      ).status == 0)
    let piped = try DumpFile.open(FilePath(folder.file("piped")))
    let file = try DumpFile.open(FilePath(folder.file("sample.vmcore")))
    #expect(piped.isFlattened)
    #expect(piped.notes == file.notes)
    #expect(piped.frameRanges == file.frameRanges)
    #expect(Pages(piped) == Pages(file))
  }

  @Test(arguments: ["elf", "kdump-lzo"])
  func readerThatEndsIsAnError(_ format: String) throws {
    let result = try Program.pipe(
      [Sample.dump, "-o", "-", "--format", format], into: "head -c 5000 > /dev/null", in: Folder())
    #expect(result.status == 1)
    #expect(result.errors.contains("Broken pipe"))
    #expect(result.errors.contains("[output.cannot-stream]\n"))
  }

  /// Another program that has the pipe may make it non-blocking: it is waited for all the same.
  @Test func pipeThatDoesNotBlockIsWaitedFor() throws {
    let folder = Folder()
    let program = Program.path
    let script = """
      import os, subprocess, sys
      reader, writer = os.pipe()
      os.set_blocking(writer, False)
      program = subprocess.Popen(sys.argv[1:], stdout=writer)
      os.close(writer)
      with open(reader, "rb") as pipe, open("piped", "wb") as copy:
          while piece := pipe.read(1 << 20):
              copy.write(piece)
      sys.exit(program.wait())
      """
    let result = try Program.run(
      "python3", ["-c", script, program, Sample.dump, "-o", "-", "-q"], in: folder)
    #expect(result.status == 0, "\(result.errors)")
    #expect(try Program.run(["check", "piped"], in: folder).status == 0)
  }

  @Test func severalGuestsInAPipeAreAnErrorThatNamesThem() throws {
    let folder = Folder()
    try expectError("guest.several", [Self.filtered, "-o", "-"], in: folder)
    let result = try Program.run([Self.filtered, "-o", "-"], in: folder)
    #expect(result.errors.contains("choose one with --guest: vmm-514, vmm-508, vmm-504, vmm-117"))
  }

  @Test func terminalIsRefused() throws {
    let result = try Program.run(
      "script", ["-qec", "\(Program.path) \(Sample.dump) -o -", "/dev/null"], in: Folder())
    #expect(result.status == 2)
    #expect(result.output.contains("which is a terminal"))
  }

  // MARK: makedumpfile's format

  @Test(arguments: kdumpFormats)
  func kdumpHasThePagesAndNotesOfELF(_ format: String) throws {
    let folder = Folder()
    #expect(try Program.run([Sample.dump, "-o", "elf"], in: folder).status == 0)
    let result = try Program.run(
      [Sample.dump, "-o", "kdump", "--format", format, "--threads", "3"], in: folder)
    #expect(result.status == 0)
    #expect(result.errors.isEmpty)
    #expect(result.output.hasPrefix("kdump: 2 vCPUs"))
    let elf = try DumpFile.open(FilePath(folder.file("elf")))
    let kdump = try DumpFile.open(FilePath(folder.file("kdump")))
    #expect(kdump.format == .kdump(version: 6))
    #expect(kdump.dumpLevel == [])
    #expect(kdump.notes.count == 6)
    #expect(
      kdump.notes.filter { $0.name != "VMCORESPLIT" }
        == elf.notes.filter { $0.name != "VMCORESPLIT" })
    #expect(kdump.vmcoreinfo == elf.vmcoreinfo)
    let pages = Pages(kdump)
    #expect(pages == Pages(elf))
    #expect(pages.bytes.count == 16448)
    #expect(pages.absences.isEmpty)
    #expect(try Program.run(["check", "kdump"], in: folder).status == 0)
    // Zeros are stored once: the guest's 64 MiB are mostly those.
    #expect(try folder.bytes("kdump").count < 8 << 20)
  }

  @Test func kdumpDoesNotDependOnTheNumberOfThreads() throws {
    let folder = Folder()
    for threads in [1, 2, 8] {
      let result = try Program.run(
        [
          Sample.dump, "--format", "kdump-zstd", "-o", "\(threads)", "--threads", "\(threads)",
        ], in: folder)
      #expect(result.status == 0)
    }
    let first = try folder.bytes("1")
    #expect(try folder.bytes("2") == first)
    #expect(try folder.bytes("8") == first)
  }

  @Test func missingPagesAreNotInTheKdump() throws {
    let folder = Folder()
    let guest = [Self.filtered, "--guest", "vmm-117", "-q"]
    #expect(try Program.run(guest + ["-o", "elf"], in: folder).status == 3)
    #expect(
      try Program.run(guest + ["-o", "kdump", "--format", "kdump-zlib"], in: folder).status == 3)
    let elf = Pages(try DumpFile.open(FilePath(folder.file("elf"))))
    let kdump = Pages(try DumpFile.open(FilePath(folder.file("kdump"))))
    // In ELF they have no place at all.
    #expect(kdump.bytes == elf.bytes)
    #expect(kdump.absences.count == 21522)
    #expect(Set(kdump.absences.values) == [.excluded])
  }

  // MARK: Damage

  /// Three pages of the guest that cannot be decompressed.
  private static func damagedDump(in folder: borrowing Folder) throws -> String {
    var bytes = try folder.bytes(Sample.dump)
    let start = bytes.count * 62 / 100
    bytes.replaceSubrange(start..<start + 4096, with: [UInt8](repeating: 0xff, count: 4096))
    try Data(bytes).write(to: URL(filePath: folder.file("damaged")))
    return "damaged"
  }

  @Test func damagedPagesAreNotInTheKdumpAndNamedByItsNote() throws {
    let folder = Folder()
    let dump = try Self.damagedDump(in: folder)
    let result = try Program.run(
      [dump, "-q", "-o", "kdump", "--format", "kdump-snappy"], in: folder)
    #expect(result.status == 3)
    #expect(result.errors.contains("sample: 3 pages could not be read"))
    let kdump = try DumpFile.open(FilePath(folder.file("kdump")))
    #expect(!kdump.isIncomplete)
    let absences = Pages(kdump).absences
    #expect(absences == [0x27c4: .excluded, 0x27c5: .excluded, 0x27c6: .excluded])
    let note = try #require(kdump.notes.first { $0.name == "VMCORESPLIT" })
    #expect(String(decoding: note.description, as: UTF8.self).contains(#""missing":{"corrupt":3}"#))
    #expect(try Program.run(["check", "kdump"], in: folder).status == 0)
  }

  /// The notes went out before the pages were read.
  @Test func damagedPagesAreZerosInAPipeAndTold() throws {
    let folder = Folder()
    let dump = try Self.damagedDump(in: folder)
    let result = try Program.pipe([dump, "-q", "-o", "-"], into: "cat > piped", in: folder)
    #expect(result.status == 3)
    #expect(result.errors.contains("sample: 3 pages could not be read"))
    #expect(try Program.run([dump, "-q", "-o", "file"], in: folder).status == 3)
    let piped = try DumpFile.open(FilePath(folder.file("piped")))
    #expect(Pages(piped) == Pages(try DumpFile.open(FilePath(folder.file("file")))))
    for frame: UInt64 in 0x27c4...0x27c6 {
      #expect(try piped.page(PageFrameNumber(frame)).isZero)
    }
    let note = try #require(piped.notes.first { $0.name == "VMCORESPLIT" })
    #expect(String(decoding: note.description, as: UTF8.self).contains(#""missing":{}"#))
  }

  // MARK: Usage

  @Test(arguments: ["kdump", "zlib", "ELF", ""])
  func unknownFormatIsAUsageError(_ format: String) throws {
    let folder = Folder()
    let result = try Program.run([Sample.dump, "--format", format], in: folder)
    #expect(result.status == 2)
    #expect(result.errors.contains("kdump-zstd"))
    #expect(try folder.names.isEmpty)
  }

  @Test(.enabled(if: FullDisk.canBeMade))
  func fullDiskIsAnErrorAndLeavesNoKdump() throws {
    let result = try FullDisk.run([Sample.dump, "--no-progress", "--format", "kdump-lzo"])
    #expect(result.status == 1)
    #expect(result.errors.contains("[output.cannot-write]\n"))
    #expect(result.output.isEmpty)
  }

  @Test func existingFileStaysWhateverTheFormat() throws {
    let folder = Folder()
    _ = try folder.create("sample.vmcore", Array("mine".utf8))
    try expectError("output.exists", [Sample.dump, "--format", "kdump-zlib"], in: folder)
    #expect(try folder.text("sample.vmcore") == "mine")
  }
}

/// Every page of a dump, by frame.
private struct Pages: Equatable {
  var bytes: [UInt64: [UInt8]] = [:]
  var absences: [UInt64: Absence] = [:]

  init(_ dump: DumpFile) {
    for range in dump.frameRanges {
      for frame in range.lowerBound.rawValue..<range.upperBound.rawValue {
        do throws(MemoryError) {
          bytes[frame] = try dump.page(PageFrameNumber(frame))
        } catch {
          if case .absent(_, let absence) = error { absences[frame] = absence }
        }
      }
    }
  }
}

extension Program {
  /// Runs the program with its output into a shell's command; the status is the program's.
  static func pipe(
    _ arguments: [String], into command: String, in directory: borrowing Folder
  ) throws -> Result {
    let script = #""$@" | { \#(command); }; exit "${PIPESTATUS[0]}""#
    return try run("bash", ["-c", script, "bash", path] + measurable(arguments), in: directory)
  }
}

extension Folder {
  /// A file of the folder, or any other by its whole path.
  fileprivate func bytes(_ name: String) throws -> [UInt8] {
    let path = name.hasPrefix("/") ? name : file(name)
    return Array(try Data(contentsOf: URL(filePath: path)))
  }
}
