import Foundation
import Memory
import SyntheticDumps
import Testing

/// A file that is no dump of a KVM host, and how the program calls it.
struct UnusableFile: CustomTestStringConvertible, Sendable {
  let error: String
  let file: SyntheticFile
  var testDescription: String { error }

  init(_ error: String, _ file: SyntheticFile) {
    self.error = error
    self.file = file
  }

  init(_ error: String, startsWith text: String) {
    self.init(error, SyntheticFile(Array(text.utf8) + [UInt8](repeating: 0xff, count: 4096)))
  }

  /// One for each error that a file's content can lead to.
  static let all =
    [
      UnusableFile("dump.not-a-dump.empty", SyntheticFile()),
      UnusableFile("dump.not-a-dump.zeros", SyntheticFile([UInt8](repeating: 0, count: 8192))),
      UnusableFile("dump.not-a-dump.text", SyntheticFile(Array("Dear kdump,\n".utf8))),
      UnusableFile("dump.not-a-dump.compressed", SyntheticFile([0x1f, 0x8b, 8, 0])),
      UnusableFile(
        "dump.too-scattered",
        SyntheticFile(
          flattened: (0..<40_000).map { .init(offset: 2 * $0, bytes: [0x7f]) })),
      UnusableFile("dump.not-a-dump.migration-stream", startsWith: "QEVM"),
      UnusableFile("dump.not-a-dump.migration-stream", startsWith: "LibvirtQemudSave"),
      UnusableFile("dump.not-a-dump.disk-image", startsWith: "KDMV"),
      UnusableFile("dump.not-a-dump.encrypted", startsWith: "Salted__"),
      UnusableFile("dump.not-a-dump.foreign", startsWith: "PAGEDU64"),
      UnusableFile("dump.not-a-dump.unknown", startsWith: "?"),
      UnusableFile("dump.truncated-header", ELFDefect.headerCut.file),
      UnusableFile("dump.truncated-header", KdumpDefect.bitmapsCut.file),
      UnusableFile("dump.bad-header", KdumpDefect.blockSizeZero.file),
      UnusableFile("dump.not-64-bit", ELFDefect.class32.file),
      UnusableFile("dump.not-little-endian", ELFDefect.bigEndian.file),
      UnusableFile("dump.other-machine", ELFDefect.machineIsArm64.file),
      UnusableFile("dump.not-a-core", ELFDefect.isExecutable.file),
      UnusableFile("dump.no-memory", ELFDefect.noLoads.file),
      UnusableFile("dump.unknown-version", KdumpDefect.versionTooNew.file),
      UnusableFile("dump.unknown-compression", KdumpDefect.unknownStatusFlag.file),
    ] + kernels + cores

  /// Cores of processes that are of no use.
  private static let cores: [UnusableFile] = {
    var other = SyntheticCore()
    other.command = "sleep"
    other.mappings = [SyntheticCore.Mapping(0x5555_0000_0000, size: 0x1000)]
    var arm = SyntheticQEMU.pc
    arm.program = "/usr/bin/qemu-system-aarch64"
    var withoutHeap = SyntheticQEMU.pc.core
    withoutHeap.mappings.removeAll { $0.start == SyntheticQEMU.heap }
    var unknownMachine = SyntheticQEMU.pc
    unknownMachine.arguments += ["-M", "isapc"]
    unknownMachine.ranges = []
    return [
      UnusableFile("qemu.not-qemu", other.file),
      UnusableFile("qemu.other-target", arm.core.file),
      UnusableFile("qemu.no-ram", withoutHeap.file),
      UnusableFile("qemu.no-layout", unknownMachine.core.file),
    ]
  }()

  /// Dumps of a machine in whose memory no kernel can be read.
  private static let kernels: [UnusableFile] = {
    var memory = SyntheticMemory()
    memory[PageFrameNumber(1)] = [UInt8](repeating: 0x11, count: Int(pageSize))
    func elf(_ vmcoreinfo: String) -> SyntheticFile {
      memory.elf(SyntheticELF(notes: [.vmcoreinfo(vmcoreinfo)]))
    }
    return [
      UnusableFile("kernel.no-vmcoreinfo", memory.elf()),
      UnusableFile("kernel.no-vmcoreinfo", memory.kdump()),
      UnusableFile("kernel.vmcoreinfo-incomplete", elf("OSRELEASE=5.10.0\n")),
      UnusableFile(
        "kernel.page-tables-unverified",
        elf(
          """
          OSRELEASE=6.1.0
          NUMBER(phys_base)=0
          SYMBOL(_stext)=ffffffff81000000
          SYMBOL(swapper_pg_dir)=ffffffff81001000
          SYMBOL(init_top_pgt)=ffffffff81001000
          SYMBOL(init_uts_ns)=ffffffff81002000
          NUMBER(pgtable_l5_enabled)=0
          KERNELOFFSET=0

          """)),
    ]
  }()
}

/// What cannot be read as a host's dump ends with status 1, an error by its name, and no file.
struct DumpErrorTests {
  @Test(arguments: UnusableFile.all)
  func unusableFileIsCalledByItsName(_ unusable: UnusableFile) throws {
    let dump = try unusable.file.save()
    let folder = Folder()
    try expectError(unusable.error, [dump.path], in: folder)
    #expect(try folder.names.isEmpty)
  }

  @Test(arguments: [["extract"], ["list"], ["list", "--json"], ["registers"]])
  func everyCommandReportsTheSameError(_ command: [String]) throws {
    let dump = try ELFDefect.headerCut.file.save()
    try expectError("dump.truncated-header", command + [dump.path], in: Folder())
  }

  /// What concerns hosts alone is not asked of a process.
  @Test(arguments: [
    ["vmcs", "--scan"], ["excerpt", "-o", "excerpt"], ["qemu-core", "-o", "core"],
  ])
  func coreOfAProcessIsNoHost(_ command: [String]) throws {
    let core = try SyntheticQEMU.pc.core.file.save()
    let folder = Folder()
    try expectError("dump.process-core", command + [core.path], in: folder)
    #expect(try folder.names.isEmpty)
  }

  @Test func excerptOfAnUnusableFileIsNotWritten() throws {
    let dump = try ELFDefect.headerCut.file.save()
    let folder = Folder()
    try expectError(
      "dump.truncated-header", ["excerpt", dump.path, "-o", "excerpt"], in: folder)
    #expect(try folder.names.isEmpty)
  }

  @Test func directoryForGuestsIsNotMadeForAnUnusableFile() throws {
    let dump = try ELFDefect.headerCut.file.save()
    let folder = Folder()
    try expectError("dump.truncated-header", [dump.path, "-o", "guests/"], in: folder)
    #expect(try folder.names.isEmpty)
  }

  @Test func filesOfSeveralDumpsAreRefused() throws {
    var memory = SyntheticMemory()
    memory[PageFrameNumber(1)] = [UInt8](repeating: 1, count: Int(pageSize))
    memory[PageFrameNumber(9)] = [UInt8](repeating: 2, count: Int(pageSize))
    func part(_ frames: Range<UInt64>, release: String) throws -> TemporaryFile {
      var options = SyntheticKdump()
      options.split = PageFrameNumber(frames.lowerBound)..<PageFrameNumber(frames.upperBound)
      options.vmcoreinfo = "OSRELEASE=\(release)\n"
      return try memory.kdump(options).save()
    }
    let first = try part(0..<5, release: "6.1.0")
    let other = try part(5..<10, release: "6.1.1")
    let elf = try memory.elf().save()
    try expectError("dump.parts-differ", ["list", other.path, first.path], in: Folder())
    try expectError("dump.not-a-part", ["list", first.path, elf.path], in: Folder())
  }

  @Test func missingPartIsNamed() throws {
    var memory = SyntheticMemory()
    for frame in 0..<20 as Range<UInt64> {
      memory[PageFrameNumber(frame)] = [UInt8](repeating: 1, count: Int(pageSize))
    }
    var options = SyntheticKdump()
    options.split = PageFrameNumber(0)..<PageFrameNumber(5)
    let part = try memory.kdump(options).save()
    let result = try Program.run(["list", part.path], in: Folder())
    #expect(
      result.errors.contains(
        "the one with page frames 0x5 to 0x13, 15 pages (60 KiB) [dump.part-missing]"))
  }

  @Test func missingFileIsNotFound() throws {
    try expectError("dump.not-found", ["no-such-vmcore"], in: Folder())
  }

  @Test(arguments: [".", "/dev/null"])
  func whatIsNoFileIsNotRead(_ path: String) throws {
    try expectError("dump.not-a-file", [path], in: Folder())
  }

  @Test(.disabled(if: geteuid() == 0, "root may read everything"))
  func unreadableFileIsRefused() throws {
    let folder = Folder()
    _ = try folder.create("vmcore")
    try FileManager.default.setAttributes(
      [.posixPermissions: 0], ofItemAtPath: folder.file("vmcore"))
    try expectError("dump.permission-denied", ["vmcore"], in: folder)
  }

  /// An error names the file that the user named, and says what to do.
  @Test func errorTellsFileNameAndAdvice() throws {
    let folder = Folder()
    _ = try folder.create("vmcore")
    let result = try Program.run(["list", "vmcore"], in: folder)
    #expect(
      result.errors == """
        vmcore-split: error: vmcore: not a dump: the file is empty [dump.not-a-dump.empty]
          the dump was not written: look for a full disk, or for vmcore-incomplete

        """)
  }

  /// A path may have any character; a terminal must not obey them.
  @Test func controlCharactersOfAPathAreNotPrinted() throws {
    let result = try Program.run(["list", "\u{1b}[2Jvmcore"], in: Folder())
    #expect(result.errors.contains("[dump.not-found]"))
    #expect(!result.errors.contains("\u{1b}"))
  }
}

/// Runs the program, which must end with status 1, the error, and nothing on standard output.
func expectError(
  _ name: String, _ arguments: [String], in folder: borrowing Folder,
  sourceLocation: SourceLocation = #_sourceLocation
) throws {
  let result = try Program.run(arguments, in: folder)
  #expect(result.status == 1, sourceLocation: sourceLocation)
  #expect(result.output.isEmpty, sourceLocation: sourceLocation)
  #expect(
    result.errors.hasPrefix("vmcore-split: error: ") && result.errors.contains("[\(name)]\n"),
    "\(result.errors)", sourceLocation: sourceLocation)
}
