import ControlBlocks
import DumpFiles
import Guest
import Memory
import SystemPackage

/// A QEMU that emulates or virtualises an x86-64 machine, in the core of its process.
public struct QEMUProcess: Sendable {
  public let image: ProcessImage
  public let executable: Executable?
  public let symbols: ExportedSymbols?
  let commandLine: CommandLine
  let blocks: RAMBlockList
  let layout: GuestLayout
  let notes: ControlBlockNotes

  /// - Parameters:
  ///   - core: what the core tells of the process.
  ///   - source: its memory.
  ///   - program: the file of the program that the process ran; without it, the file at the path that
  ///     the core names is used if it has the same build ID.
  ///   - notes: control blocks of the vCPUs that the core carries.
  ///   - isTruncated: the core ends before all that its headers name.
  package init(
    _ core: ProcessCore, in source: any FrameSource, program: ProgramFile? = nil,
    notes: ControlBlockNotes = ControlBlockNotes([]), isTruncated: Bool = false
  ) throws(QEMUError) {
    self.notes = notes
    var image = ProcessImage(core, in: source)
    let started = Executable(startedIn: image)
    let name = started?.name ?? core.command
    if let name, Self.isOfOtherTarget(name) { throw .otherTarget(program: name) }
    guard let found = RAMBlockList(in: image, dataOf: started) else {
      throw Self.isNameOfQEMU(name)
        ? .noRAMBlocks(program: name, isTruncated: isTruncated) : .notQEMU(program: name)
    }
    // A program can be started by the loader's name; what holds QEMU's data is QEMU.
    let executable = Executable(holding: found.head, in: image) ?? started
    if let executable {
      if Self.isOfOtherTarget(executable.name) { throw .otherTarget(program: executable.name) }
      image.program = try Self.program(of: executable, given: program).map {
        ($0, executable.path)
      }
    }
    self.image = image
    self.executable = executable
    let symbols = executable.flatMap { [image] in ExportedSymbols(of: $0, in: image) }
    self.symbols = symbols
    commandLine = CommandLine(of: image)
    let blocks = symbols.flatMap { [image] in RAMBlockList(in: image, $0) } ?? found
    self.blocks = blocks
    layout = try GuestLayout(
      of: blocks.blocks, in: image, executable, symbols, arguments: commandLine.arguments)
  }

  /// The file given, which must be the program's, else the one at its path, if it is.
  private static func program(
    of executable: Executable, given: ProgramFile?
  ) throws(QEMUError) -> ProgramFile? {
    if let given {
      let id = given.buildID
      if let wanted = executable.buildID, id != wanted {
        throw .otherProgram(
          path: given.path.string, buildID: id?.digits, wanted: wanted.digits)
      }
      return given
    }
    guard let wanted = executable.buildID,
      let file = try? ProgramFile(FilePath(executable.filePath)), file.buildID == wanted
    else { return nil }
    return file
  }

  // MARK: Which QEMU

  private static let prefix = "qemu-system-"

  private static func isOfOtherTarget(_ name: String) -> Bool {
    name.hasPrefix(prefix) && !name.hasPrefix(prefix + "x86_64")
  }

  private static func isNameOfQEMU(_ name: String?) -> Bool {
    name.map { $0.hasPrefix("qemu") } ?? false
  }

  // MARK: The guest

  var usesKVM: Bool { image.core.hasKVM }

  public func guest() -> Guest {
    let encryption = MemoryEncryption(arguments: commandLine.arguments)
    let (processors, processorFindings) = processors()
    return Guest(
      identity: commandLine.identity(
        of: image.core, backend: usesKVM ? "QEMU (KVM)" : "QEMU (TCG)"),
      memory: MemoryMap(
        layout.ranges.map(\.mapping), of: image.core, in: image.source,
        isEncrypted: encryption != nil),
      processors: processors,
      findings: blockFindings + layout.findings + (encryption.map { [$0.finding] } ?? [])
        + commandLine.findings + processorFindings)
  }

  private var blockFindings: [Finding] {
    var findings: [Finding] = []
    if blocks.isCutOff {
      findings.append(
        Finding(
          .warning, "qemu.ram-list-cut",
          "the list of RAM blocks goes on in memory that is not in the core: blocks may be missing"
        ))
    }
    let mapped = Set(layout.ranges.map(\.block))
    for block in blocks.blocks where mapped.contains(block) {
      if let why = whyNotDumped(block) {
        findings.append(Finding(.warning, "memory.block-not-dumped", why))
      }
    }
    return findings
  }
}

extension ProcessCore {
  /// KVM gives each vCPU a file, of which QEMU maps `struct kvm_run`.
  var hasKVM: Bool { files.contains { $0.path.hasPrefix("anon_inode:kvm-vcpu") } }
}

/// What encrypts a guest's memory, as the command line says.
private enum MemoryEncryption {
  case sev
  case tdx

  /// `-object sev-guest,…`, or the same as JSON.
  init?(arguments: [String]) {
    let objects = zip(arguments, arguments.dropFirst())
      .filter { $0.0 == "-object" || $0.0 == "--object" }.map(\.1)
    func has(_ type: String) -> Bool {
      objects.contains { $0.hasPrefix(type) || $0.contains("\"\(type)\"") }
    }
    if has("sev-guest") || has("sev-snp-guest") {
      self = .sev
    } else if has("tdx-guest") {
      self = .tdx
    } else {
      return nil
    }
  }

  var finding: Finding {
    let what =
      switch self {
      case .sev: "AMD SEV"
      case .tdx: "Intel TDX"
      }
    return Finding(
      .warning, "guest.encrypted",
      "the guest's memory is encrypted (\(what)): the core has no readable copy of it")
  }
}

extension [UInt8] {
  /// Two hexadecimal digits for each byte.
  fileprivate var digits: String {
    map { hexadecimal(UInt64($0), digits: 2).dropFirst(2) }.joined()
  }
}
