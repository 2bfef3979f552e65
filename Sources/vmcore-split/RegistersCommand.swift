import ArgumentParser
import DumpFiles
import Guest
import Memory
import X86

struct Registers: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Show the registers of the guests' vCPUs, each with its source.")

  @OptionGroup var common: CommonOptions
  @OptionGroup var core: CoreOptions
  @OptionGroup var report: ReportOptions

  func run() throws {
    try DumpFile.open(common, core) { try run(on: SourceAnalysis(of: $0, common, core)) }
  }

  private func run(on source: SourceAnalysis) throws {
    var reports: [GuestReport] = []
    for guest in source.guests {
      let analysis = GuestAnalysis(guest, in: source, threads: common.threadCount)
      if report.json { reports.append(analysis.report) } else { show(analysis.report) }
    }
    if report.json { try printJSON(SourceReport(source, reports)) }
    for failure in source.failures { Console.error(failure) }
    let processors = source.guests.flatMap(\.processors)
    if !source.failures.isEmpty || !processors.allSatisfy(\.registers.isComplete) {
      throw ExitStatus.findings
    }
  }

  private func show(_ guest: GuestReport) {
    for processor in guest.processors {
      print(
        printable(
          "\(guest.name) vCPU \(processor.index): \(processor.state)"
            + (processor.location.map { ", at \($0)" } ?? "")))
      show(processor.registers)
      if let nested = processor.nestedRegisters {
        print(printable("\(guest.name) vCPU \(processor.index), the guest that it was running:"))
        show(nested)
      }
    }
    for finding in guest.findings where finding.name.hasPrefix("vcpu.") {
      print(printable("\(guest.name): \(finding.text)"))
    }
  }

  private func show(_ registers: [String: GuestReport.RegisterReport]) {
    var table = TextTable()
    for name in Self.order {
      guard let register = registers[name] else { continue }
      table.add(["  " + name, register.text, register.origin])
    }
    print(table.text, terminator: "")
  }

  private static let order =
    Register.allCases.map(\.rawValue) + SegmentRegister.allCases.map(\.rawValue)
    + TableRegister.allCases.map(\.rawValue)
}

extension GuestReport.RegisterReport {
  fileprivate var text: String {
    if let value { return value }
    if unknown != nil { return "unknown" }
    return [
      selector, base.map { "base \($0)" }, limit.map { "limit \($0)" },
      attributes.map { "attributes \($0)" },
    ]
    .compactMap { $0 }.joined(separator: " ")
  }

  fileprivate var origin: String {
    if let unknown { return unknown }
    return [source, location].compactMap { $0 }.joined(separator: " ")
  }
}
