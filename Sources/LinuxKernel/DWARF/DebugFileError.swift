import Memory

/// A file with debug information could not be used.
public enum DebugFileError: Error, Hashable, Sendable {
  /// The file cannot be opened, or is no ELF file.
  case unreadable(path: String, reason: String)
  /// The file has no DWARF.
  case noDWARF(path: String)
  /// The file belongs to another build. `owner` is what it should belong to.
  case mismatch(path: String, owner: String, found: String?, wanted: String)
  /// DWARF that does not hold together.
  case malformed(path: String, what: String)
  /// No file of this build is in the folders.
  case notFound(owner: String, buildID: String, folders: [String], package: String)
  /// The dump does not tell which build it is.
  case unknownBuild(owner: String)
}

extension DebugFileError: Diagnosis {
  public var name: String {
    switch self {
    case .unreadable: "debuginfo.unreadable"
    case .noDWARF: "debuginfo.no-dwarf"
    case .mismatch: "debuginfo.mismatch"
    case .malformed: "debuginfo.malformed"
    case .notFound: "debuginfo.not-found"
    case .unknownBuild: "debuginfo.unknown-build"
    }
  }

  public var problem: String {
    switch self {
    case .unreadable(let path, let reason):
      "\(path): cannot be read as a file with debug information: \(reason)"
    case .noDWARF(let path):
      "\(path): has no debug information (DWARF)"
    case .mismatch(let path, let owner, let found, let wanted):
      "\(path): is of another build: \(owner) of the dump has build-id \(wanted), the file "
        + (found ?? "none")
    case .malformed(let path, let what):
      "\(path): its debug information cannot be used: \(what)"
    case .notFound(let owner, let buildID, let folders, _):
      "no debug information of \(owner), build-id \(buildID), in \(folders.joined(separator: ", "))"
    case .unknownBuild(let owner):
      "the dump does not tell the build-id of \(owner), so that no debug information can be trusted"
    }
  }

  public var advice: String? {
    switch self {
    case .unreadable: nil
    case .noDWARF: "give the file of the kernel's debug package, not that of the kernel itself"
    case .mismatch: "give the file of the very same build of the kernel"
    case .malformed:
      "the file may be damaged, or be written by a compiler that is new to this program"
    case .notFound(_, _, _, let package):
      "install \(package), or unpack it somewhere and name the folder with --debug-dir"
    case .unknownBuild: nil
    }
  }
}
