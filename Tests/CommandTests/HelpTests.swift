import Foundation
import Testing

/// The commands, as `--help` lists them.
let commands = ["extract", "list", "registers", "vmcs", "check", "excerpt", "qemu-core"]

/// Help texts and what holds for all commands.
struct HelpTests {
  /// What users read changes only on purpose. `RENEW_SNAPSHOTS=1 swift test --filter HelpTests`
  /// writes the texts anew into Tests/CommandTests/Snapshots; the difference is then for review.
  @Test(arguments: [""] + commands)
  func helpIsAsRecorded(_ command: String) throws {
    let result = try Program.run([command, "--help"].filter { !$0.isEmpty }, in: Folder())
    #expect(result.status == 0)
    #expect(result.errors.isEmpty)
    let snapshot = packageRoot.appending(
      path: "Tests/CommandTests/Snapshots/\(command.isEmpty ? "help" : "help-\(command)").txt")
    if ProcessInfo.processInfo.environment["RENEW_SNAPSHOTS"] != nil {
      try Data(result.output.utf8).write(to: snapshot)
    }
    #expect(result.output == String(decoding: try Data(contentsOf: snapshot), as: UTF8.self))
  }

  @Test func helpListsTheCommandsTested() throws {
    #expect(try Help(of: nil).commands == commands)
  }

  @Test func versionGoesToStandardOutput() throws {
    let result = try Program.run(["--version"], in: Folder())
    #expect(result.status == 0)
    #expect(result.output.wholeMatch(of: /\d+\.\d+\.\d+\n/) != nil)
    #expect(result.errors.isEmpty)
  }

  @Test(arguments: [
    [],
    ["--no-such-option", "dump"],
    ["list"],
    ["list", "dump", "--threads", "0"],
    ["list", "dump", "--threads", "1025"],
    ["list", "dump", "--threads", "many"],
    ["list", "dump", "--force"],
    ["registers", "dump", "--guest"],
    ["extract", "dump", "--json"],
    ["check"],
    ["excerpt", "dump"],
  ])
  func wrongUsageEndsWithStatus2(_ arguments: [String]) throws {
    let folder = Folder()
    let result = try Program.run(arguments, in: folder)
    #expect(result.status == 2)
    #expect(result.output.isEmpty)
    #expect(result.errors.hasPrefix("Error: "))
    #expect(result.errors.uppercased().contains("USAGE: VMCORE-SPLIT"))
    #expect(try folder.names.isEmpty)
  }

  @Test(arguments: ["bash", "zsh", "fish"])
  func shellsGetCompletionsOfEveryCommand(_ shell: String) throws {
    let result = try Program.run(["--generate-completion-script", shell], in: Folder())
    #expect(result.status == 0)
    for command in commands { #expect(result.output.contains(command)) }
  }
}
