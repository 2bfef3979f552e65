import ControlBlocks
import DumpFiles
import KVMHost
import Memory
import SystemPackage

/// Where layouts of Intel's VMCS come from, besides those known.
enum VMCSLayouts {
  /// The dump's notes, and a file, if one is given; as a last resort all of the host's memory is
  /// searched.
  static func sources(
    _ options: CommonOptions, _ dump: DumpFile, _ source: any FrameSource
  ) throws -> VMCSLayoutSources {
    let threads = options.threadCount
    return VMCSLayoutSources(
      inDump: dump.notes.filter { $0.name == VMCSLayout.noteName }.compactMap {
        VMCSLayout(contents: $0.description, origin: "the dump's VMCSINFO note")
      },
      ofUser: try ofUser(options),
      infersAlways: options.solve, threads: threads
    ) {
      VMCSINFOSearch(source, threads: threads).layouts()
    }
  }

  /// The one of the file that was given, if any.
  static func ofUser(_ options: CommonOptions) throws -> [VMCSLayout] {
    try options.vmcsinfo.map { [try layout(in: FilePath($0))] } ?? []
  }

  private static func layout(in path: FilePath) throws -> VMCSLayout {
    let text: [UInt8]
    do {
      text = try contents(of: path, limit: 1 << 20)
    } catch let error as Errno {
      throw Failure(VMCSLayoutFileError(path: path, what: error.description))
    }
    guard let layout = VMCSLayout(contents: text, origin: "the file \(path)") else {
      throw Failure(
        VMCSLayoutFileError(path: path, what: "there is no layout of a VMCS in it"))
    }
    return layout
  }

  /// At most `limit` bytes of a file.
  private static func contents(of path: FilePath, limit: Int) throws -> [UInt8] {
    let file = try FileDescriptor.open(path, .readOnly)
    defer { try? file.close() }
    var text: [UInt8] = []
    var piece = [UInt8](repeating: 0, count: 1 << 16)
    while text.count < limit {
      let count = try unsafe piece.withUnsafeMutableBytes { try unsafe file.read(into: $0) }
      if count == 0 { break }
      text += piece[..<count]
    }
    return text
  }
}

/// The file given as layout of the VMCS is none.
struct VMCSLayoutFileError: Diagnosis {
  let path: FilePath
  let what: String

  var name: String { "vmcs.layout-file" }
  var problem: String { "\(path): \(what)" }
  var advice: String? {
    "give the text of a VMCSINFO note, or what the vmcsinfo module tells of the same processor"
  }
}
