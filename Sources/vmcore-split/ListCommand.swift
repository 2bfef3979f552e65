import ArgumentParser
import DumpFiles
import FoundationEssentials
import Guest
import KVMHost
import LinuxKernel
import Memory
import SystemPackage
import X86

struct List: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Show the guests in a dump, and what can be recovered of them.")

  @OptionGroup var common: CommonOptions
  @OptionGroup var core: CoreOptions
  @OptionGroup var report: ReportOptions

  func run() throws {
    try DumpFile.open(common, core) { try run(on: SourceAnalysis(of: $0, common, core)) }
  }

  private func run(on source: SourceAnalysis) throws {
    // A guest's symbols take megabytes: of each guest, only what is shown is kept.
    var table = TextTable(
      ["GUEST", "PID", "VCPUS", "RAM", "RECOVERABLE", "BACKEND", "GUEST KERNEL"])
    var reports: [GuestReport] = []
    for guest in source.guests {
      let analysis = GuestAnalysis(guest, in: source, threads: common.threadCount)
      table.add(Self.row(analysis))
      reports.append(analysis.report)
    }
    if report.json {
      try printJSON(SourceReport(source, reports))
    } else {
      print(printable(source.summary))
      for finding in source.findings { print(printable(finding.text)) }
      print(table.text, terminator: "")
      for (text, guests) in Self.findings(of: reports) {
        let names = guests.count == reports.count && guests.count > 2 ? ["all guests"] : guests
        print(printable("\(names.joined(separator: ", ")): \(text)"))
      }
    }
    for failure in source.failures { Console.error(failure) }
    if !source.failures.isEmpty || reports.contains(where: \.hasWarnings) {
      throw ExitStatus.findings
    }
  }

  /// Each finding once, with the names of the guests that it is of: on a host with many, most are of
  /// all.
  private static func findings(
    of reports: [GuestReport]
  ) -> [(text: String, guests: [String])] {
    var texts: [String] = []
    var guests: [String: [String]] = [:]
    for report in reports {
      for finding in report.findings where !finding.isRoutine {
        if guests[finding.text] == nil { texts.append(finding.text) }
        guests[finding.text, default: []].append(report.name)
      }
    }
    return texts.map { ($0, guests[$0] ?? []) }
  }

  private static func row(_ analysis: GuestAnalysis) -> [String] {
    let guest = analysis.guest
    let kernel = analysis.kernels.kernels.first
    return [
      printable(guest.identity.displayName), String(guest.identity.pid),
      String(guest.processors.count), size(guest.memory.size), analysis.recoverable,
      guest.identity.backend,
      printable(kernel?.vmcoreinfo.release ?? "unknown")
        + (kernel?.hasCrashed == true ? " (crashed)" : ""),
    ]
  }
}

extension GuestAnalysis {
  /// The share of the pages that the guest had which is at hand. Pages known to be zero are not
  /// counted: they need no dump.
  fileprivate var recoverable: String {
    guard survey.pages > 0 else { return "no memory" }
    if survey.missingPages == 0 { return "all" }
    guard survey.present > 0 else {
      let hasRegisters = guest.processors.contains { $0.registers[.rip].value != nil }
      return hasRegisters ? "registers only" : "nothing"
    }
    // A page short of everything is not everything.
    let tenths = survey.present * 1000 / (survey.present + survey.missingPages)
    return "\(tenths / 10).\(tenths % 10) %"
  }
}

/// What `--json` prints: the host or the process, and its guests.
struct SourceReport: Encodable {
  struct Host: Encodable {
    var path: String
    var format: String
    var release: String
    var dumpLevel: Int32?
    var isIncomplete: Bool
  }

  /// A QEMU's core.
  struct Process: Encodable {
    var path: String
    var format: String
    var program: String?
    var isIncomplete: Bool
  }

  struct Failure: Encodable {
    var name: String
    var problem: String
  }

  var schema = 1
  /// Of a host's dump.
  var host: Host?
  /// Of a core.
  var process: Process?
  var guests: [GuestReport]
  /// Guests that could not be read.
  var failures: [Failure]
  /// On the dump as a whole.
  var findings: [Finding]

  init(_ source: SourceAnalysis, _ guests: [GuestReport]) {
    let dump = source.dump
    switch source.origin {
    case .host(let kernel):
      host = Host(
        path: dump.path.string, format: dump.formatDescription, release: kernel.vmcoreinfo.release,
        dumpLevel: dump.dumpLevel?.rawValue, isIncomplete: dump.isIncomplete)
    case .process(let program):
      process = Process(
        path: dump.path.string, format: dump.formatDescription, program: program,
        isIncomplete: dump.isIncomplete)
    }
    self.guests = guests
    failures = source.failures.map { Failure(name: $0.name, problem: $0.problem) }
    findings = dump.findings + source.findings
  }
}

func printJSON(_ value: some Encodable) throws {
  let encoder = JSONEncoder()
  encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
  print(escapingInvisible(String(decoding: try encoder.encode(value), as: UTF8.self)))
}

/// JSON need not escape all that commands a terminal.
private func escapingInvisible(_ json: String) -> String {
  var text = ""
  for scalar in json.unicodeScalars {
    if scalar == "\n" || !scalar.isInvisible {
      text.unicodeScalars.append(scalar)
    } else {
      for unit in UTF16.encode(scalar).map({ Array($0) }) ?? [] {
        text += "\\u" + hexadecimal(UInt64(unit), digits: 4).dropFirst(2)
      }
    }
  }
  return text
}

/// Columns of text, as wide as their widest cell.
struct TextTable {
  private var rows: [[String]] = []

  init() {}
  init(_ header: [String]) { rows = [header] }

  mutating func add(_ row: [String]) { rows.append(row.map(printable)) }

  var text: String {
    let widths = rows.reduce(into: [Int]()) { widths, row in
      for (column, cell) in row.enumerated() {
        if column == widths.count { widths.append(0) }
        widths[column] = max(widths[column], cell.count)
      }
    }
    return rows.map { row in
      let line = zip(row, widths).map { cell, width in
        cell + String(repeating: " ", count: width - cell.count)
      }.joined(separator: "  ")
      return String(line.reversed().drop { $0 == " " }.reversed()) + "\n"
    }.joined()
  }
}
