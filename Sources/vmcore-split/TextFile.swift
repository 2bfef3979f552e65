import SystemPackage

/// Small files read whole.
enum TextFile {
  /// At most `limit` bytes of a file.
  static func contents(of path: FilePath, limit: Int) throws -> String {
    let file = try FileDescriptor.open(path, .readOnly)
    defer { try? file.close() }
    var text: [UInt8] = []
    var piece = [UInt8](repeating: 0, count: 1 << 16)
    while text.count < limit {
      let count = try unsafe piece.withUnsafeMutableBytes { try unsafe file.read(into: $0) }
      if count == 0 { break }
      text += piece[..<count]
    }
    return String(decoding: text, as: UTF8.self)
  }
}
