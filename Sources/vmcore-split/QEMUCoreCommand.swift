import ArgumentParser
import DumpFiles
import Guest
import KVMHost
import LinuxKernel
import Memory
import Output
import SystemPackage
import VMMCore

struct QEMUCore: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "qemu-core",
    abstract: "Write the core of the VMM that runs a guest.",
    discussion: """
      The core is an ELF file like those that Linux writes of a process that crashed: gdb opens it, \
      and vmcore-split takes the guest out of it. It has all of the process's memory that the dump \
      has, the guest's too, and says of the rest why it is missing.
      """)

  @OptionGroup var common: CommonOptions

  @Option(
    name: .shortAndLong, help: ArgumentHelp("The file to write.", valueName: "file"),
    completion: .file())
  var output: String

  @Flag(name: .long, help: "Replace the file if it exists.")
  var force = false

  func run() throws {
    try DumpFile.open(common, writing: FilePath(output).directory) { try run(on: $0) }
  }

  private func run(on dump: DumpFile) throws {
    let host = try HostAnalysis(of: dump, common)
    for failure in host.failures { Console.error(failure) }
    let guest = try onlyGuest(of: host.guests, in: host.dump)
    let process = try process(of: guest, on: host)
    let writer = ProcessCoreWriter(
      process.process, memory: process.memory, in: host.host.memory,
      adding: try notes(of: guest, host))
    let survey = writer.survey
    let summary = try write(writer, title: guest.identity.displayName)
    let findings =
      host.findings + process.findings
      + Finding.swapped(survey)
      + Finding.missing(
        survey, in: host.dump, host.host.swap, expected: Self.dispensable(for: guest))
      + Self.findings(summary)
    for finding in findings where finding.severity == .warning || !common.quiet {
      Console.warning("\(guest.identity.displayName): \(finding.text) [\(finding.name)]")
    }
    if !common.quiet { tell(process.process, survey, summary) }
    if findings.contains(where: { $0.severity == .warning }) { throw ExitStatus.findings }
  }

  private func process(of guest: Guest, on host: HostAnalysis) throws -> VMMProcess {
    do throws(KVMError) {
      if let process = try host.host.process(of: guest.identity) { return process }
    } catch {
      throw Failure(error)
    }
    throw Failure(
      SelectionError(
        wanted: guest.identity.displayName, known: host.guests.map(\.identity.displayName)))
  }

  /// What KVM knew of the guest, for those who take it out of the core.
  private func notes(of guest: Guest, _ host: HostAnalysis) throws -> [Note] {
    do throws(KVMError) {
      return try host.host.notes(of: guest, host.controlStructures).map {
        Note(name: $0.name, type: $0.type, description: $0.description)
      }
    } catch {
      throw Failure(error)
    }
  }

  private func write(
    _ writer: consuming ProcessCoreWriter, title: String
  ) throws -> ProcessCoreWriter.Summary {
    let progress = MoveProgress()
    let display = ProgressDisplay(
      title: printable(title), pages: writer.survey.pages, progress: progress,
      isShown: !common.quiet && !common.noProgress)
    defer { display.end() }
    do throws(OutputError) {
      let file = try OutputFile(FilePath(output), force: force)
      return try writer.write(to: file, threads: common.threadCount, progress: progress)
    } catch {
      throw Failure(error)
    }
  }

  /// Code that is still in its file, and what KVM shows of itself to the process, are no loss; pages
  /// of the guest are.
  private static func dispensable(for guest: Guest) -> Set<MissingReason> {
    Set([.inFile, .specialEntry]).subtracting(MemorySurvey(of: guest.memory).missing.keys)
  }

  private static func findings(_ summary: ProcessCoreWriter.Summary) -> [Finding] {
    var findings: [Finding] = []
    let lost = summary.lost.values.reduce(0, +)
    if lost > 0 {
      findings.append(
        Finding(
          .warning, "memory.damaged", "\(lost) pages could not be read from the dump"))
    }
    if summary.unmarkedPages > 0 {
      findings.append(
        Finding(
          .warning, "process.unmarked-pages",
          "\(summary.unmarkedPages) missing pages read as zero from the core: they lie in too many"
            + " places to be marked"))
    }
    return findings
  }

  private func tell(
    _ process: UserProcess, _ survey: PageSurvey<VirtualAddress>,
    _ summary: ProcessCoreWriter.Summary
  ) {
    let name = process.identity.command ?? "process"
    print(
      printable(
        "\(output): \(name) (pid \(process.id)), \(process.threads.count) threads,"
          + " \(process.mappings.count) mappings, \(size(survey.present << pageShift)) of memory"
          + " (\(size(summary.written)) not zero), \(survey.missingPages) pages missing"))
  }
}
