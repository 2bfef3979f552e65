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

  @Flag(
    name: .long,
    help: "Note the checksums of what is written, for 'check' (reads the file once more).")
  var checksums = false

  private var goesToStream: Bool { output == "-" }

  func validate() throws {
    if goesToStream, isatty(STDOUT_FILENO) == 1 {
      throw ValidationError("-o - writes a vmcore to standard output, which is a terminal")
    }
    if goesToStream, checksums {
      throw ValidationError(
        "--checksums needs a file: the notes are in front of what they are the sums of")
    }
  }

  func run() throws {
    let directory = goesToStream ? nil : Confinement.directory(of: FilePath(output ?? "."))
    try DumpFile.open(common, core, writing: directory) {
      try run(on: SourceAnalysis(of: $0, common, core))
    }
  }

  private func run(on source: SourceAnalysis) throws {
    for failure in source.failures { Console.error(failure) }
    if !common.quiet { source.findings.forEach { Console.warning("\($0.text) [\($0.name)]") } }
    let isComplete =
      goesToStream
      ? try stream(onlyGuest(of: source.guests, in: source.dump), from: source)
      : try writeFiles(from: source)
    if !isComplete || !source.failures.isEmpty { throw ExitStatus.findings }
  }

  /// Returns true if everything was there.
  private func stream(_ guest: Guest, from source: SourceAnalysis) throws -> Bool {
    let found = try FoundGuest(
      guest, in: source, hasChecksums: checksums, threads: common.threadCount)
    let summary: Extraction.Summary
    do throws(ExtractionError) {
      summary = try extracting([found], from: source) { extraction throws(ExtractionError) in
        try extraction.write(found.contents, to: OutputStream(), as: format)
      }
    } catch {
      throw Failure(error)
    }
    found.tellFindings(summary, quiet: common.quiet)
    if !common.quiet { Console.warning("\(found.name): \(found.line(summary))") }
    return found.isWhole && summary.lost.isEmpty
  }

  /// Returns true if everything of all guests was there.
  private func writeFiles(from source: SourceAnalysis) throws -> Bool {
    let names = try OutputNames(for: source.guests, output: output)
    var jobs: [(guest: FoundGuest, file: OutputFile)] = []
    var isComplete = true
    for (guest, path) in zip(source.guests, names.paths) {
      do {
        let found = try FoundGuest(
          guest, in: source, hasChecksums: checksums, threads: common.threadCount)
        try names.makeDirectory()
        jobs.append((found, try Self.file(path, force: force)))
      } catch let error as Failure {
        // The other guests are still to be had.
        Console.error(error.diagnosis)
        isComplete = false
      }
    }
    let results = extracting(jobs.map(\.guest), from: source) { extraction in
      extraction.write(jobs.map { ($0.guest.contents, $0.file) }, as: format)
    }
    var written = 0
    for ((guest, file), result) in zip(jobs, results) {
      switch result {
      case .success(let summary):
        guest.tellFindings(summary, quiet: common.quiet)
        if !common.quiet { print(printable("\(file.path): \(guest.line(summary))")) }
        isComplete = isComplete && guest.isWhole && summary.lost.isEmpty
        written += 1
      case .failure(let error):
        Console.error(error)
        isComplete = false
      }
    }
    if written == 0 { throw ExitStatus.failure }
    return isComplete
  }

  /// Shows how far it is while `body` extracts guests.
  private func extracting<Result, Failure: Error>(
    _ guests: [FoundGuest], from source: SourceAnalysis,
    _ body: (Extraction) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    let progress = MoveProgress()
    let display = ProgressDisplay(
      title: guests.count == 1 ? guests[0].name : "\(guests.count) guests",
      pages: guests.reduce(0) { $0 + $1.contents.pages }, progress: progress,
      isShown: !common.quiet && !common.noProgress)
    defer { display.end() }
    return try body(
      Extraction(
        source: source.memory, hasChecksums: checksums, threads: common.threadCount,
        progress: progress))
  }

  private static func file(_ path: FilePath, force: Bool) throws -> OutputFile {
    do throws(OutputError) {
      return try OutputFile(path, force: force)
    } catch {
      throw Failure(error)
    }
  }
}

/// What is to be written and told of a guest: all that is kept of it while pages are moved.
private struct FoundGuest {
  let name: String
  private let start: String
  private let missingPages: UInt64
  let findings: [Finding]
  let contents: VmcoreContents
  /// Nothing is missing or doubtful.
  let isWhole: Bool

  init(
    _ guest: Guest, in source: SourceAnalysis, hasChecksums: Bool, threads: Int
  ) throws {
    let dump = source.dump
    let analysis = GuestAnalysis(guest, in: source, threads: threads)
    guard analysis.survey.present > 0 else { throw Failure(analysis.nothingToExtract) }
    name = printable(guest.identity.displayName)
    let kernel = analysis.kernels.kernels.first.map { ", Linux \($0.vmcoreinfo.release)" } ?? ""
    start =
      "\(Self.count(guest.processors.count, "vCPU")), \(size(guest.memory.size))\(kernel)"
    missingPages = analysis.survey.missingPages
    findings = analysis.guest.findings
    isWhole = !analysis.hasWarnings
    contents = VmcoreContents(
      analysis.guest, kernels: analysis.kernels, survey: analysis.survey, in: source.memory,
      provenance: Provenance(
        tool: "vmcore-split", version: toolVersion,
        source: .init(path: dump.path.string, format: dump.formatDescription),
        guest: analysis.report), hasChecksums: hasChecksums)
  }

  /// What there is of it, in a line.
  func line(_ summary: Extraction.Summary) -> String {
    "\(start), \(missingPages + summary.lostPages) pages missing"
  }

  func tellFindings(_ summary: Extraction.Summary, quiet: Bool) {
    for finding in findings where finding.severity == .warning || !(quiet || finding.isRoutine) {
      Console.warning("\(name): \(finding.text) [\(finding.name)]")
    }
    if let first = summary.lost.first {
      Console.warning(
        "\(name): \(summary.lostPages) pages could not be read from the dump, the first at"
          + " guest-physical \(first.start) [memory.damaged]")
    }
  }

  private static func count(_ number: Int, _ thing: String) -> String {
    number == 1 ? "1 \(thing)" : "\(number) \(thing)s"
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
    var taken: Set<String> = []
    for (guest, name) in zip(guests, names) {
      let isUnique = names.filter { $0 == name }.count == 1
      var file = isUnique ? name : "\(name)-\(guest.identity.pid)"
      // Another guest may be called as if it had been told apart from a third.
      while !taken.insert(file).inserted { file += "-\(guest.identity.number)" }
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
