import Compression
import Memory

/// One thread's way to decode the pages of a kdump-compressed file.
final class Decompressor {
  private let decompressor = PageDecompressor()

  /// Turns the stored form of a page into its 4096 bytes; false if it is not the form that `flags`
  /// says, or not of exactly one page.
  func decode(
    _ stored: UnsafeRawBufferPointer, flags: UInt32, into page: UnsafeMutableRawBufferPointer
  ) -> Bool {
    let form: PageCompression
    switch flags & KdumpLayout.Flags.compression {
    case 0:
      guard stored.count == page.count else { return false }
      unsafe page.copyMemory(from: stored)
      return true
    case KdumpLayout.Flags.zlib: form = .zlib
    case KdumpLayout.Flags.lzo: form = .lzo
    case KdumpLayout.Flags.snappy: form = .snappy
    case KdumpLayout.Flags.zstd: form = .zstd
    default: return false
    }
    return unsafe decompressor.decompress(stored, form, into: page)
  }
}
