import ArgumentParser
import DumpFiles
import FoundationEssentials
import Guest
import KVMHost
import LinuxKernel
import Memory
import SystemPackage

struct List: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Show the guests in a dump, and what can be recovered of them.")

  @OptionGroup var common: CommonOptions
  @OptionGroup var report: ReportOptions

  func run() throws {
    let host = try HostAnalysis(common)
    // A guest's symbols take megabytes: of each guest, only what is shown is kept.
    var table = TextTable(
      ["GUEST", "PID", "VCPUS", "RAM", "RECOVERABLE", "BACKEND", "GUEST KERNEL"])
    var reports: [GuestReport] = []
    for guest in host.guests {
      let analysis = GuestAnalysis(guest, in: host.dump, threads: common.threadCount)
      table.add(Self.row(analysis))
      reports.append(analysis.report)
    }
    if report.json {
      try printJSON(HostReport(host, reports))
    } else {
      print("\(host.dump.path): \(host.dump.format), host Linux \(host.kernel.vmcoreinfo.release)")
      print(table.text, terminator: "")
      for guest in reports {
        for finding in guest.findings where !isRoutine(finding.name) {
          print(printable("\(guest.name): \(finding.text)"))
        }
      }
    }
    for failure in host.failures { Console.error(failure) }
    if !host.failures.isEmpty || reports.contains(where: \.hasWarnings) {
      throw ExitStatus.findings
    }
  }

  private static func row(_ analysis: GuestAnalysis) -> [String] {
    let guest = analysis.guest
    let kernel = analysis.kernels.kernels.first
    return [
      printable(guest.identity.displayName), String(guest.identity.pid),
      String(guest.processors.count), size(guest.memory.size), analysis.survey.recoverable,
      guest.identity.backend,
      printable(kernel?.vmcoreinfo.release ?? "unknown")
        + (kernel?.hasCrashed == true ? " (crashed)" : ""),
    ]
  }
}

extension MemorySurvey {
  /// The share of the pages that the guest had which is at hand. Pages known to be zero are not
  /// counted: they need no dump.
  fileprivate var recoverable: String {
    guard pages > 0 else { return "no memory" }
    if missingPages == 0 { return "all" }
    guard present > 0 else { return "registers only" }
    // A page short of everything is not everything.
    let tenths = present * 1000 / (present + missingPages)
    return "\(tenths / 10).\(tenths % 10) %"
  }
}

/// What `--json` prints: the host, and its guests.
struct HostReport: Codable {
  struct Host: Codable {
    var path: String
    var format: String
    var release: String
    var dumpLevel: Int32?
    var isIncomplete: Bool
  }

  struct Failure: Codable {
    var name: String
    var problem: String
  }

  var schema = 1
  var host: Host
  var guests: [GuestReport]
  /// Guests that could not be read.
  var failures: [Failure]

  init(_ analysis: HostAnalysis, _ guests: [GuestReport]) {
    host = Host(
      path: analysis.dump.path.string, format: "\(analysis.dump.format)",
      release: analysis.kernel.vmcoreinfo.release,
      dumpLevel: analysis.dump.dumpLevel?.rawValue, isIncomplete: analysis.dump.isIncomplete)
    self.guests = guests
    failures = analysis.failures.map { Failure(name: $0.name, problem: $0.problem) }
  }
}

func printJSON(_ value: some Encodable) throws {
  let encoder = JSONEncoder()
  encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
  print(String(decoding: try encoder.encode(value), as: UTF8.self))
}

/// Columns of text, as wide as their widest cell.
struct TextTable {
  private var rows: [[String]] = []

  init() {}
  init(_ header: [String]) { rows = [header] }

  mutating func add(_ row: [String]) { rows.append(row) }

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
