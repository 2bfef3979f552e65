import ArgumentParser
import Glibc
import Guest
import LinuxKernel
import Memory
import SystemPackage

/// What all commands that read a dump take.
struct CommonOptions: ParsableArguments {
  @Argument(
    help: ArgumentHelp(
      "The dump of the host: ELF or kdump-compressed; of a split one, all its files.",
      valueName: "dump"),
    completion: .file())
  var dumps: [String]

  @Option(
    name: .long,
    help: ArgumentHelp(
      "Only this guest: its name, UUID, or the VMM's pid. May be given several times.",
      valueName: "name"))
  var guest: [String] = []

  @Option(
    name: .long,
    help: ArgumentHelp("Threads to work with (default: one per processor).", valueName: "n"))
  var threads: Int?

  @Option(
    name: .long,
    help: ArgumentHelp(
      "Layout of the VMCS of the host's processor (Intel), where the dump does not tell it.",
      valueName: "file"),
    completion: .file())
  var vmcsinfo: String?

  @Flag(
    name: .long,
    help: "Infer the layout of the VMCS (Intel) from the dump, even if one is known.")
  var solve = false

  @Option(
    name: .long,
    help: ArgumentHelp(
      "The host kernel's vmlinux with debug information, for a kernel without BTF.",
      valueName: "file"),
    completion: .file())
  var vmlinux: String?

  @Option(
    name: .long,
    help: ArgumentHelp(
      "Folder with debug packages, installed or unpacked (default: /usr/lib/debug).",
      valueName: "dir"),
    completion: .directory)
  var debugDir: [String] = []

  @Option(
    name: .customLong("swap"),
    help: ArgumentHelp(
      "Copy of a partition or file that the host swapped to; before it, if need be, which: "
        + "/dev/sda2=copy. May be given several times.",
      valueName: "file"),
    completion: .file())
  var swapImages: [String] = []

  @Option(
    name: .long,
    help: ArgumentHelp(
      "Take types from the dump alone (btf), or from debug information alone (dwarf).",
      valueName: "source"))
  var types: TypeSource?

  @Flag(name: .shortAndLong, help: "Say only what went wrong.")
  var quiet = false

  @Flag(name: .long, help: "Show no progress.")
  var noProgress = false

  @Flag(
    name: .long,
    help: "Keep rights that are not needed (see SECURITY in vmcore-split(1)).")
  var noSandbox = false

  var threadCount: Int { threads ?? min(availableProcessors, 1024) }

  /// The images of swap devices, each with the device that it is said to be of.
  var namedSwapImages: [(path: FilePath, device: String?)] {
    swapImages.map { text in
      guard let separator = text.firstIndex(of: "="), unsafe access(text, F_OK) != 0 else {
        return (FilePath(text), nil)
      }
      return (FilePath(String(text[text.index(after: separator)...])), String(text[..<separator]))
    }
  }

  /// Where the host kernel's types come from besides the dump.
  var debugInformation: DebugInformation {
    DebugInformation(
      only: types, vmlinux: vmlinux,
      folders: debugDir.isEmpty ? DebugInformation.usualFolders : debugDir)
  }

  func validate() throws {
    guard (1...1024).contains(threadCount) else {
      throw ValidationError("--threads takes a number from 1 to 1024")
    }
  }
}

extension TypeSource: ExpressibleByArgument {}

/// What the commands take that read the core of a QEMU as well as a dump.
struct CoreOptions: ParsableArguments {
  @Option(
    name: .long,
    help: ArgumentHelp(
      "If the dump is the core of a QEMU: its program, where it is not at its place.",
      valueName: "file"),
    completion: .file())
  var qemuBinary: String?
}

/// `--json`, for the commands that report.
struct ReportOptions: ParsableArguments {
  @Flag(name: .long, help: "Report in JSON (schema: vmcore-split(1)).")
  var json = false
}
