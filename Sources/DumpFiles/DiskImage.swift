import Memory
import SystemPackage

/// A copy of a disk, partition or swap file, or the block device itself.
public final class DiskImage: SwapImage, Sendable {
  private let file: InputFile

  public init(_ path: FilePath) throws(DumpFileError) {
    file = try InputFile(path)
  }

  public var name: String { file.path.string }
  public var size: UInt64 { file.size }

  public func page(at offset: UInt64) -> [UInt8]? {
    guard let bytes = try? file.bytes(at: offset, count: Int(pageSize)),
      bytes.count == Int(pageSize)
    else { return nil }
    return bytes
  }
}
