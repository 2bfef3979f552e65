import Foundation
import Testing

/// The host dump that is shipped, with one guest: Samples/README.md.
enum Sample {
  static let dump = packageRoot.appending(path: "Samples/amd-host.kdump")
    .path(percentEncoded: false)
  static let guest = "sample"
}

/// What is written, where, and what stays when writing fails.
struct OutputTests {
  @Test func guestIsWrittenUnderItsNameForItsOwnerAlone() throws {
    let folder = Folder()
    let result = try Program.run([Sample.dump], in: folder)
    #expect(result.status == 0)
    #expect(result.errors.isEmpty)
    #expect(result.output.contains("sample.vmcore"))
    #expect(try folder.names == ["sample.vmcore"])
    #expect(try folder.permissions("sample.vmcore") == 0o600)
  }

  @Test func oneGuestGoesToTheFileNamed() throws {
    let folder = Folder()
    let result = try Program.run([Sample.dump, "-o", "web1.core", "--quiet"], in: folder)
    #expect(result.status == 0)
    #expect(result.output.isEmpty)
    #expect(try folder.names == ["web1.core"])
  }

  @Test func directoryIsMadeWhenThePathEndsWithASlash() throws {
    let folder = Folder()
    #expect(try Program.run([Sample.dump, "-o", "guests/"], in: folder).status == 0)
    #expect(try folder.names == ["guests"])
    #expect(FileManager.default.fileExists(atPath: folder.file("guests/sample.vmcore")))
  }

  @Test func existingFileStaysAsItIs() throws {
    let folder = Folder()
    _ = try folder.create("sample.vmcore", Array("mine".utf8))
    try expectError("output.exists", [Sample.dump], in: folder)
    #expect(try folder.names == ["sample.vmcore"])
    #expect(try folder.text("sample.vmcore") == "mine")
  }

  @Test func existingFileIsReplacedByForce() throws {
    let folder = Folder()
    _ = try folder.create("sample.vmcore", Array("old".utf8))
    #expect(try Program.run([Sample.dump, "--force"], in: folder).status == 0)
    #expect(try folder.names == ["sample.vmcore"])
    #expect(try Program.run(["check", "sample.vmcore"], in: folder).status == 0)
  }

  /// As root, replacing a device or a link would do harm that nobody meant.
  @Test(arguments: ["ln -s elsewhere", "mkfifo", "mkdir"])
  func onlyRegularFilesAreReplacedByForce(_ command: String) throws {
    let folder = Folder()
    _ = try Program.run("sh", ["-c", "\(command) target"], in: folder)
    try expectError(
      "output.not-replaceable", ["excerpt", Sample.dump, "-o", "target", "--force"], in: folder)
    #expect(try folder.names == ["target"])
    #expect(try folder.type("target") != .typeRegular)
  }

  @Test func linkToNowhereCountsAsFile() throws {
    let folder = Folder()
    _ = try Program.run("ln", ["-s", "elsewhere", "sample.vmcore"], in: folder)
    try expectError("output.exists", [Sample.dump], in: folder)
    #expect(try folder.names == ["sample.vmcore"])
  }

  /// Files that are opened get the lowest numbers: the vmcore's must not be standard output's.
  @Test func closedStandardStreamsSpoilNoFile() throws {
    let folder = Folder()
    let result = try Program.run(
      "sh", ["-c", "exec \"$@\" <&- >&- 2>&-", "sh", Program.path, Sample.dump], in: folder)
    #expect(result.status == 0)
    #expect(try Program.run(["check", "sample.vmcore"], in: folder).status == 0)
  }

  @Test func reportToAFullDiskIsAnError() throws {
    let result = try Program.run(
      "sh", ["-c", "exec \"$@\" >/dev/full", "sh", Program.path, "list", Sample.dump],
      in: Folder())
    #expect(result.status == 1)
    #expect(result.errors.contains("[output.cannot-stream]\n"))
  }

  @Test func existingExcerptStaysAsItIs() throws {
    let folder = Folder()
    _ = try folder.create("excerpt", Array("mine".utf8))
    try expectError("output.exists", ["excerpt", Sample.dump, "-o", "excerpt"], in: folder)
    #expect(try folder.names == ["excerpt"])
    #expect(try folder.text("excerpt") == "mine")
  }

  @Test func existingCoreStaysAsItIs() throws {
    let folder = Folder()
    _ = try folder.create("core", Array("mine".utf8))
    try expectError("output.exists", ["qemu-core", Sample.dump, "-o", "core"], in: folder)
    #expect(try folder.text("core") == "mine")
  }

  /// Nobody, root included, makes files in /proc.
  @Test(arguments: [("/proc", "output.cannot-create"), ("/proc/guests/", "output.directory")])
  func unwritableDirectoryIsAnError(_ path: String, _ error: String) throws {
    try expectError(error, [Sample.dump, "-o", path], in: Folder())
  }

  @Test(arguments: [("file/", "output.directory"), ("file/below", "output.cannot-create")])
  func fileWhereADirectoryIsNeededIsAnError(_ path: String, _ error: String) throws {
    let folder = Folder()
    _ = try folder.create("file", Array("mine".utf8))
    try expectError(error, [Sample.dump, "-o", path], in: folder)
    #expect(try folder.names == ["file"])
    #expect(try folder.text("file") == "mine")
  }

  @Test func unknownGuestIsAnErrorThatNamesTheKnown() throws {
    let folder = Folder()
    let result = try Program.run([Sample.dump, "--guest", "nobody"], in: folder)
    #expect(result.status == 1)
    #expect(result.output.isEmpty)
    #expect(
      result.errors == """
        vmcore-split: error: no guest is called nobody [guest.unknown]
          guests in this dump: sample

        """)
    #expect(try folder.names.isEmpty)
  }

  @Test(arguments: ["no-such-file", "empty"])
  func fileWithoutLayoutOfTheVMCSIsAnError(_ path: String) throws {
    let folder = Folder()
    _ = try folder.create("empty")
    try expectError("vmcs.layout-file", ["list", Sample.dump, "--vmcsinfo", path], in: folder)
  }

  @Test(arguments: [SIGINT, SIGTERM])
  func stoppedExtractionLeavesNoFile(_ signal: Int32) throws {
    let folder = Folder()
    let program = try Program.start([Sample.dump, "--threads", "1"], in: folder)
    while program.isRunning, !program.hasOpenFile(below: folder.path) {}
    #expect(!(try folder.names.contains("sample.vmcore")))
    program.send(signal)
    let result = try program.result()
    #expect(result.status == 128 + signal)
    #expect(result.output.isEmpty)
    #expect(result.errors.contains("unfinished files were removed"))
    #expect(try folder.names.isEmpty)
  }

  @Test func fileSizeLimitIsAnErrorAndLeavesNoFile() throws {
    let folder = Folder()
    let result = try Program.run(
      "sh", ["-c", "ulimit -f 100; exec \"$@\"", "sh", Program.path, Sample.dump], in: folder)
    #expect(result.status == 1)
    #expect(result.errors.contains("[output.cannot-write]\n"))
    #expect(try folder.names.isEmpty)
  }

  /// In a mount namespace of its own anybody may mount a small file system.
  @Test(.enabled(if: FullDisk.canBeMade))
  func fullDiskIsAnErrorAndLeavesNoFile() throws {
    let result = try FullDisk.run([Sample.dump, "--no-progress"])
    #expect(result.status == 1)
    #expect(result.errors.contains("[output.cannot-write]\n"))
    #expect(result.errors.contains("No space left on device"))
    // What the shell lists after the program has ended.
    #expect(result.output.isEmpty)
  }
}

/// A file system that is smaller than the sample's guest.
enum FullDisk {
  static let canBeMade = (try? run(["--version"]).status) == 0

  /// Runs the program there, and lists the files that stay.
  static func run(_ arguments: [String]) throws -> Program.Result {
    let script = """
      mount -t tmpfs -o size=1m none . && cd "$PWD" || exit 99
      "$@"
      status=$?
      ls -A
      exit $status
      """
    return try Program.run(
      "unshare",
      ["--map-root-user", "--mount", "sh", "-c", script, "sh", Program.path] + arguments,
      in: Folder())
  }
}

extension Folder {
  fileprivate func type(_ name: String) throws -> FileAttributeType? {
    try FileManager.default.attributesOfItem(atPath: file(name))[.type] as? FileAttributeType
  }

  fileprivate func permissions(_ name: String) throws -> Int {
    let attributes = try FileManager.default.attributesOfItem(atPath: file(name))
    return (attributes[.posixPermissions] as? NSNumber)?.intValue ?? 0
  }
}
