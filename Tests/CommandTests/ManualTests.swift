import Foundation
import Guest
import Memory
import Testing
import X86

/// The manual is written by hand. It must be true to the program.
struct ManualTests {
  /// What every command takes; the manual does not repeat it in each synopsis.
  private static let universal: Set<String> = ["-h", "--help", "--version"]

  @Test func synopsisHasTheCommandsOfHelp() throws {
    #expect(try Manual().synopsis.map(\.command) == commands + ["help"])
  }

  @Test(arguments: commands)
  func synopsisHasTheOptionsOfHelp(_ command: String) throws {
    let options = try Help(of: command).options.filter { $0.names.isDisjoint(with: Self.universal) }
    let synopsis = try #require(try Manual().synopsis.first { $0.command == command })
    #expect(synopsis.options.count == options.count)
    for option in options {
      #expect(
        option.names.contains(where: synopsis.options.contains),
        "\(option.names.sorted()) is not in the synopsis of \(command)")
    }
  }

  @Test func everyOptionIsExplainedByAllItsNames() throws {
    let known = Set(try ([nil] + commands).flatMap { try Help(of: $0).options })
    let explained = Set(try Manual().options)
    #expect(known.subtracting(explained).isEmpty)
    #expect(explained.subtracting(known).isEmpty)
  }

  /// Errors and findings carry stable names, which users search for.
  @Test func everyStableNameIsExplained() throws {
    let named = try StableNames.inSources()
    let explained = Set(try Manual().diagnostics)
    #expect(named.subtracting(explained).sorted() == [])
    #expect(explained.subtracting(named).sorted() == [])
  }

  @Test func sourcesOfRegistersAndReasonsForGapsAreExplained() throws {
    let words = try Manual().keywords
    for kind in RegisterSource.Kind.allCases { #expect(words.contains(kind.rawValue)) }
    for reason in MissingReason.allCases { #expect(words.contains(reason.rawValue)) }
    for reason in ZeroReason.allCases { #expect(words.contains(reason.rawValue)) }
  }

  @Test func markupIsClean() throws {
    let result = try Program.run("mandoc", ["-Tlint", "-Wwarning", Manual.path], in: Folder())
    #expect(result.status == 0)
    #expect(result.output.isEmpty)
  }
}

/// The names of errors and findings, as the sources have them.
enum StableNames {
  static func inSources() throws -> Set<String> {
    let sources = packageRoot.appending(path: "Sources").path(percentEncoded: false)
    let files = try FileManager.default.subpathsOfDirectory(atPath: sources)
      .filter { $0.hasSuffix(".swift") }
    var names: Set<String> = []
    for file in files {
      let text = String(
        decoding: try Data(contentsOf: URL(filePath: "\(sources)/\(file)")), as: UTF8.self)
      for match in text.matches(of: literal) { names.insert(String(match.1)) }
    }
    names.formUnion(MissingReason.allCases.map { "memory.\($0.rawValue)" })
    names.formUnion(notADump.map { "dump.not-a-dump.\($0)" })
    return names
  }

  /// What looks like a name, as a whole literal or in brackets. What kallsyms and BTF call their
  /// errors is not shown: users see kernel.symbols and kernel.types.
  private static var literal: Regex<(Substring, Substring)> {
    /["\[]((?:check|dump|guest|kernel|kvm|memory|output|process|qemu|registers|swap|vcpu|vmcs)\.[a-z0-9-]+)["\]]/
  }

  /// Kinds of files that are no dumps.
  private static let notADump = [
    "compressed", "disk-image", "empty", "encrypted", "foreign", "migration-stream",
    "text", "unknown", "zeros",
  ]
}
