import Foundation

/// The program under test, as a user runs it.
enum Program {
  /// What a run of the program left.
  struct Result {
    let status: Int32
    let output: String
    let errors: String
  }

  /// The build puts the program beside the tests.
  static let path =
    Bundle.main.executableURL?.deletingLastPathComponent()
    .appending(component: "vmcore-split").path(percentEncoded: false) ?? "vmcore-split"

  /// Runs the program to its end.
  ///
  /// - Parameter directory: its working directory.
  static func run(_ arguments: [String], in directory: borrowing Folder) throws -> Result {
    try start(arguments, in: directory).result()
  }

  /// Where it is measured which lines run: confined, the program could not write that down.
  static func measurable(_ arguments: [String]) -> [String] {
    let isMeasured = ProcessInfo.processInfo.environment["LLVM_PROFILE_FILE"] != nil
    return isMeasured && !arguments.contains("--help") ? arguments + ["--no-sandbox"] : arguments
  }

  static func start(_ arguments: [String], in directory: borrowing Folder) throws -> Running {
    try Running(path, measurable(arguments), in: directory.path)
  }

  /// Runs another program, found through PATH.
  static func run(
    _ tool: String, _ arguments: [String], in directory: borrowing Folder
  ) throws -> Result {
    try Running("/usr/bin/env", [tool] + arguments, in: directory.path).result()
  }

  /// A run of the program that may not have ended yet.
  final class Running {
    private let process = Process()
    /// What it writes goes to files: a pipe that nobody reads would stop it.
    private let streams = Folder()
    private let output: FileHandle
    private let errors: FileHandle

    fileprivate init(_ path: String, _ arguments: [String], in directory: String) throws {
      output = try streams.create("output")
      errors = try streams.create("errors")
      process.executableURL = URL(filePath: path)
      process.arguments = arguments
      process.currentDirectoryURL = URL(filePath: directory)
      // Help is wrapped to the terminal's width.
      process.environment = ProcessInfo.processInfo.environment.filter { $0.key != "COLUMNS" }
      process.standardInput = FileHandle.nullDevice
      process.standardOutput = output
      process.standardError = errors
      try process.run()
    }

    var isRunning: Bool { process.isRunning }

    /// Whether it has a file of a folder open, be it one without a name.
    func hasOpenFile(below folder: String) -> Bool {
      let files = "/proc/\(process.processIdentifier)/fd"
      let numbers = (try? FileManager.default.contentsOfDirectory(atPath: files)) ?? []
      return numbers.contains { number in
        let path = try? FileManager.default.destinationOfSymbolicLink(atPath: "\(files)/\(number)")
        return path?.hasPrefix(folder + "/") ?? false
      }
    }

    func send(_ signal: Int32) { kill(process.processIdentifier, signal) }

    /// Waits for the end.
    func result() throws -> Result {
      process.waitUntilExit()
      return Result(
        status: process.terminationStatus, output: try streams.text("output"),
        errors: try streams.text("errors"))
    }
  }
}

/// A folder of a test, removed with everything in it when the test lets go of it.
struct Folder: ~Copyable {
  let path: String

  init() {
    path = FileManager.default.temporaryDirectory
      .appending(component: "vmcore-split-test-\(UUID().uuidString)").path(percentEncoded: false)
    try? FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
  }

  deinit { try? FileManager.default.removeItem(atPath: path) }

  func file(_ name: String) -> String { "\(path)/\(name)" }

  /// Creates a file, and opens it for writing.
  func create(_ name: String, _ content: [UInt8] = []) throws -> FileHandle {
    try Data(content).write(to: URL(filePath: file(name)))
    return try FileHandle(forWritingTo: URL(filePath: file(name)))
  }

  func text(_ name: String) throws -> String {
    String(decoding: try Data(contentsOf: URL(filePath: file(name))), as: UTF8.self)
  }

  /// The names of all files, hidden ones too.
  var names: [String] {
    get throws { try FileManager.default.contentsOfDirectory(atPath: path).sorted() }
  }
}

/// The package's folder.
let packageRoot = URL(filePath: #filePath)
  .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
