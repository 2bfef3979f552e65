import ArgumentParser
import DumpFiles
import Glibc
import Guest
import GuestVmcore
import KVMHost
import LinuxKernel
import Memory
import Output
import SystemPackage

struct Extract: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Write one vmcore per guest (the default command).")

  @OptionGroup var common: CommonOptions
  @OptionGroup var core: CoreOptions

  @Option(
    name: .shortAndLong,
    help: ArgumentHelp(
      "File for one guest, or directory (default: here, as <guest>.vmcore), or - for a pipe.",
      valueName: "path"),
    completion: .file())
  var output: String?

  @Option(
    name: .long,
    help: ArgumentHelp(
      "What to write: elf, or makedumpfile's compressed format as kdump-zlib, kdump-lzo, "
        + "kdump-snappy, kdump-zstd.",
      valueName: "format"))
  var format = VmcoreForm.elf

  @Flag(name: .long, help: "Replace files that exist.")
  var force = false

  private var goesToStream: Bool { output == "-" }

  func validate() throws {
    if goesToStream, isatty(STDOUT_FILENO) == 1 {
      throw ValidationError("-o - writes a vmcore to standard output, which is a terminal")
    }
  }

  func run() throws {
    try DumpFile.open(common) { try run(on: SourceAnalysis(of: $0, common, core)) }
  }

  private func run(on source: SourceAnalysis) throws {
    for failure in source.failures { Console.error(failure) }
    if goesToStream {
      let isWhole = try extract(
        onlyGuest(of: source.guests, in: source.dump), to: .stream, from: source)
      if !isWhole || !source.failures.isEmpty { throw ExitStatus.findings }
      return
    }
    let targets = try OutputNames(for: source.guests, output: output)
    var isComplete = source.failures.isEmpty
    var written = 0
    for (guest, target) in zip(source.guests, targets.paths) {
      do {
        let isWhole = try extract(guest, to: .file(target, in: targets), from: source)
        isComplete = isComplete && isWhole
        written += 1
      } catch let error as Failure {
        // The other guests are still to be had.
        Console.error(error.diagnosis)
        isComplete = false
      }
    }
    if written == 0 { throw ExitStatus.failure }
    if !isComplete { throw ExitStatus.findings }
  }

  /// Where a vmcore goes.
  private enum Target {
    case file(FilePath, in: OutputNames)
    case stream
  }

  /// Returns true if everything was there.
  private func extract(
    _ found: Guest, to target: Target, from source: SourceAnalysis
  ) throws -> Bool {
    let guest = GuestAnalysis(found, in: source.dump, threads: common.threadCount)
    guard guest.survey.present > 0 else { throw Failure(guest.nothingToExtract) }
    if case .file(_, let targets) = target { try targets.makeDirectory() }
    let progress = MoveProgress()
    let display = ProgressDisplay(
      title: printable(guest.guest.identity.displayName), pages: guest.survey.pages,
      progress: progress, isShown: !common.quiet && !common.noProgress)
    defer { display.end() }
    let summary: Extraction.Summary
    do throws(ExtractionError) {
      summary = try write(
        Extraction(
          guest.guest, kernels: guest.kernels, survey: guest.survey, source: source.dump,
          provenance: Provenance(
            tool: "vmcore-split", version: toolVersion,
            source: .init(
              path: source.dump.path.string, format: source.dump.formatDescription),
            guest: guest.report),
          threads: common.threadCount, progress: progress),
        to: target)
    } catch {
      throw Failure(error)
    }
    display.end()
    tell(guest, summary, target)
    return !guest.hasWarnings && summary.lost.isEmpty
  }

  private func write(
    _ extraction: Extraction, to target: Target
  ) throws(ExtractionError) -> Extraction.Summary {
    switch target {
    case .stream: return try extraction.write(to: OutputStream(), as: format)
    case .file(let path, _):
      let file: OutputFile
      do throws(OutputError) {
        file = try OutputFile(path, force: force)
      } catch {
        throw .output(error)
      }
      return try extraction.write(to: file, as: format)
    }
  }

  private func tell(_ guest: GuestAnalysis, _ summary: Extraction.Summary, _ target: Target) {
    let name = guest.guest.identity.displayName
    for finding in guest.guest.findings
    where finding.severity == .warning || !(common.quiet || finding.isRoutine) {
      Console.warning("\(name): \(finding.text) [\(finding.name)]")
    }
    if !summary.lost.isEmpty {
      let first = summary.lost[0]
      Console.warning(
        "\(name): \(summary.lost.count) pages could not be read from the dump, the first at"
          + " guest-physical \(first.start) [memory.damaged]")
    }
    guard !common.quiet else { return }
    let kernel = guest.kernels.kernels.first.map { ", Linux \($0.vmcoreinfo.release)" } ?? ""
    let line =
      "\(Self.count(guest.guest.processors.count, "vCPU")), \(size(guest.guest.memory.size))"
      + "\(kernel), \(guest.survey.missingPages) pages missing"
    switch target {
    case .file(let path, _): print(printable("\(path): \(line)"))
    case .stream: Console.warning("\(name): \(line)")
    }
  }
}

extension VmcoreForm: ExpressibleByArgument {
  public init?(argument: String) {
    guard let form = Self.allCases.first(where: { $0.defaultValueDescription == argument }) else {
      return nil
    }
    self = form
  }

  public static var allCases: [VmcoreForm] { [.elf] + KdumpCompression.allCases.map(Self.kdump) }

  public static var allValueStrings: [String] { allCases.map(\.defaultValueDescription) }

  public var defaultValueDescription: String {
    switch self {
    case .elf: "elf"
    case .kdump(let compression): "kdump-\(compression.rawValue)"
    }
  }
}

extension Extract {
  private static func count(_ number: Int, _ thing: String) -> String {
    number == 1 ? "1 \(thing)" : "\(number) \(thing)s"
  }
}

extension GuestAnalysis {
  /// The reason why a guest has no memory in the dump, and what would have kept it.
  fileprivate var nothingToExtract: OutputError {
    let findings = guest.findings.filter {
      $0.name.hasPrefix("memory.") || $0.name == "guest.encrypted"
    }
    return .nothingToExtract(
      guest: guest.identity.displayName,
      why: findings.map(\.text).joined(separator: "; "),
      advice: "its registers are there: vmcore-split registers")
  }
}

/// The files that guests go to: never two guests one name, and no name leads out of the directory.
struct OutputNames {
  let paths: [FilePath]
  /// The directory to make for them, if it does not exist.
  private var newDirectory: FilePath?

  init(for guests: [Guest], output: String?) throws {
    let base = FilePath(output ?? ".")
    var status = stat()
    let exists = unsafe stat(base.string, &status) == 0
    let isDirectory = exists && status.st_mode & S_IFMT == S_IFDIR
    if let output, !isDirectory, !output.hasSuffix("/"), guests.count == 1 {
      paths = [FilePath(output)]
      return
    }
    if !isDirectory {
      guard !exists else { throw Failure(DirectoryError(path: base, errno: ENOTDIR)) }
      newDirectory = base
    }
    let names = guests.map { Self.safe($0.identity.displayName) }
    var paths: [FilePath] = []
    for (index, name) in names.enumerated() {
      let isUnique = names.filter { $0 == name }.count == 1
      let file = isUnique ? name : "\(name)-\(guests[index].identity.pid)"
      paths.append(base.appending("\(file).vmcore"))
    }
    self.paths = paths
  }

  /// Makes the directory, if it is not there yet.
  func makeDirectory() throws {
    guard let newDirectory, unsafe mkdir(newDirectory.string, 0o700) != 0, errno != EEXIST else {
      return
    }
    throw Failure(DirectoryError(path: newDirectory, errno: errno))
  }

  /// A guest chooses its name: what could lead elsewhere or hide the file is replaced.
  private static func safe(_ name: String) -> String {
    let scalars = name.unicodeScalars.prefix(200).map { scalar -> Character in
      let isPlain =
        scalar.isASCII && (scalar.properties.isAlphabetic || scalar.properties.numericType != nil)
      return isPlain || "._-+@:".unicodeScalars.contains(scalar) ? Character(scalar) : "_"
    }
    let text = String(scalars)
    return text.isEmpty || text.hasPrefix(".") || text.hasPrefix("-") ? "_" + text : text
  }
}

/// The directory for the results cannot be used.
struct DirectoryError: Diagnosis {
  let path: FilePath
  let errno: Int32

  var name: String { "output.directory" }
  var problem: String {
    "\(path) cannot be used as directory for the guests: \(Errno(rawValue: errno))"
  }
  var advice: String? { "name a directory with -o" }
}
