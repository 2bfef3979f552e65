import ArgumentParser
import GuestVmcore
import Memory
import SystemPackage

struct Check: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Check that a guest's vmcore keeps every rule that its readers need.")

  @Argument(
    help: ArgumentHelp("A guest's vmcore.", valueName: "vmcore"), completion: .file())
  var vmcore: String

  @OptionGroup var report: ReportOptions

  @Flag(
    name: .long,
    help: "Keep rights that are not needed (see SECURITY in vmcore-split(1)).")
  var noSandbox = false

  func run() throws {
    if !noSandbox { Confinement.begin(reading: [FilePath(vmcore)], writing: nil) }
    let result: VmcoreCheck
    do throws(VmcoreCheckError) {
      result = try VmcoreCheck(FilePath(vmcore))
    } catch {
      throw Failure(error)
    }
    if report.json {
      try printJSON(result)
    } else {
      for rule in result.rules {
        print(
          printable(
            "\(rule.isKept ? "ok  " : "FAIL") \(rule.name)"
              + (rule.detail.isEmpty ? "" : ": \(rule.detail)")))
      }
    }
    if !result.isSound { throw ExitStatus.failure }
  }
}
