/// A copy of a swap file, or of the disk or partition that is swapped to or that swap files lie on.
public protocol SwapImage: Sendable {
  /// The file, for messages.
  var name: String { get }
  /// In bytes.
  var size: UInt64 { get }
  /// 4096 bytes at an offset in bytes; nil if they cannot be read.
  func page(at offset: UInt64) -> [UInt8]?
}
