import Memory
import SystemPackage

/// A program or library as a file, read by offset: what a core leaves out of its mappings.
public final class ProgramFile: Sendable {
  public let path: FilePath
  private let file: InputFile

  public init(_ path: FilePath) throws(DumpFileError) {
    file = try InputFile(path)
    self.path = path
  }

  /// Up to `count` bytes from `offset` on, fewer at the file's end or where reading fails.
  ///
  /// `count` must be bounded by the caller: it is allocated.
  public func bytes(at offset: UInt64, count: Int) -> [UInt8] {
    (try? file.bytes(at: offset, count: count)) ?? []
  }
}
