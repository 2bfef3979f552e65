import CShim
import DumpFiles
import Glibc
import Memory
import SystemPackage

/// Gives up what the program does not need once its inputs are open: what a damaged or malicious
/// dump might make it do goes no further than the output's directory.
///
/// By Landlock, where the kernel has it (since 5.13); elsewhere nothing changes. Files that are open
/// stay open.
enum Confinement {
  /// Rights over files that a version of Landlock came to know, by their bits
  /// (LANDLOCK_ACCESS_FS_*).
  private enum Right {
    static let writeFile: UInt64 = 1 << 1
    static let readFile: UInt64 = 1 << 2
    static let readDirectory: UInt64 = 1 << 3
    static let removeFile: UInt64 = 1 << 5
    static let makeDirectory: UInt64 = 1 << 7
    static let makeFile: UInt64 = 1 << 8
    static let truncate: UInt64 = 1 << 14

    /// All that a version knows. Moving between directories (the second's) is always forbidden where
    /// it is not allowed.
    static func all(version: Int32) -> UInt64 {
      let count =
        switch version {
        case 1: 13
        case 2: 14
        case 3, 4: 15
        default: 16
        }
      return (1 << count) - 1
    }
  }

  /// - Parameters:
  ///   - files: what may still be opened for reading, and folders of such.
  ///   - directory: where files may be made; nil if nothing is written.
  static func begin(reading files: [FilePath], writing directory: FilePath?) {
    let version = shim_landlockVersion()
    guard version >= 1 else { return }
    let all = Right.all(version: version)
    // TCP; signals to others and abstract sockets.
    let rules = shim_landlockCreate(all, version >= 4 ? 3 : 0, version >= 6 ? 3 : 0)
    guard rules >= 0 else { return }
    defer { close(rules) }
    for file in files {
      let rights = isDirectory(file) ? Right.readFile | Right.readDirectory : Right.readFile
      allow(rights, beneath: file, rules)
    }
    if let directory {
      let rights =
        Right.writeFile | Right.readFile | Right.readDirectory | Right.removeFile
        | Right.makeDirectory | Right.makeFile | Right.truncate
      allow(rights & all, beneath: directory, rules)
    }
    _ = shim_landlockRestrict(rules)
  }

  private static func allow(_ rights: UInt64, beneath path: FilePath, _ rules: Int32) {
    let file = unsafe open(path.string, O_PATH | O_CLOEXEC)
    guard file >= 0 else { return }
    _ = shim_landlockAllow(rules, file, rights)
    close(file)
  }

  /// Where the files go that are named by what may be a directory or a file to be.
  static func directory(of output: FilePath) -> FilePath {
    isDirectory(output) ? output : output.directory
  }

  private static func isDirectory(_ path: FilePath) -> Bool {
    var status = stat()
    return unsafe stat(path.string, &status) == 0 && status.st_mode & S_IFMT == S_IFDIR
  }
}

extension FilePath {
  /// The directory that a file of this path is in.
  var directory: FilePath {
    let directory = removingLastComponent()
    return directory.isEmpty ? "." : directory
  }
}

extension DumpFile {
  /// The file of the program whose core this is, as the core names it.
  var programPath: FilePath? {
    guard let process, let entry = process.auxiliary(ProcessCore.Auxiliary.entry) else {
      return nil
    }
    return process.files.first { $0.contains(VirtualAddress(entry)) }.map { FilePath($0.path) }
  }
}
