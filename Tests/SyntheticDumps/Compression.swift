import CLZO
import CSnappy
import CZlib
import CZstd
import Memory

/// How the pages of a kdump-compressed file are stored.
public enum Compression: Sendable, CaseIterable {
  case none, zlib, lzo, snappy, zstd
  /// Each page in another way than the page before.
  case mixed

  /// DUMP_DH_COMPRESSED_*.
  var flag: UInt32 {
    switch self {
    case .none: 0
    case .zlib, .mixed: 1
    case .lzo: 2
    case .snappy: 4
    case .zstd: 0x20
    }
  }

  /// The stored form of the page that is the `index`th in the file, as makedumpfile makes it: as it
  /// is where it would not shrink.
  func encode(_ page: [UInt8], index: Int) -> (bytes: [UInt8], flag: UInt32) {
    let method = self == .mixed ? [.zlib, .none, .lzo, .snappy, .zstd][index % 5] : self
    guard let stored = method.compressed(page), stored.count < page.count else { return (page, 0) }
    return (stored, method.flag)
  }

  /// The compressed form of some bytes, be it smaller or not.
  public func compressed(_ page: [UInt8]) -> [UInt8]? {
    var output = [UInt8](repeating: 0, count: 2 * page.count)
    let size: Int? = unsafe page.withUnsafeBufferPointer { input in
      unsafe output.withUnsafeMutableBufferPointer { output in
        unsafe encode(input, into: output)
      }
    }
    return size.map { Array(output[..<$0]) }
  }

  private func encode(
    _ input: UnsafeBufferPointer<UInt8>, into output: UnsafeMutableBufferPointer<UInt8>
  ) -> Int? {
    switch self {
    case .none, .mixed: return nil
    case .zlib:
      var size = uLongf(output.count)
      let result = unsafe compress2(
        output.baseAddress, &size, input.baseAddress, uLong(input.count), Z_BEST_SPEED)
      return result == Z_OK ? Int(size) : nil
    case .lzo:
      var size = lzo_uint(output.count)
      // LZO1X_1_MEM_COMPRESS: 16384 entries of a pointer's size.
      let work = UnsafeMutableRawPointer.allocate(byteCount: 16384 * 8, alignment: 16)
      defer { unsafe work.deallocate() }
      let result = unsafe lzo1x_1_compress(
        input.baseAddress, lzo_uint(input.count), output.baseAddress, &size, work)
      return result == LZO_E_OK ? Int(size) : nil
    case .snappy:
      var size = output.count
      let result = unsafe snappy_compress(
        UnsafeRawPointer(input.baseAddress)?.assumingMemoryBound(to: CChar.self), input.count,
        UnsafeMutableRawPointer(output.baseAddress)?.assumingMemoryBound(to: CChar.self), &size)
      return result == SNAPPY_OK ? size : nil
    case .zstd:
      let size = unsafe ZSTD_compress(
        output.baseAddress, output.count, input.baseAddress, input.count, 1)
      return ZSTD_isError(size) == 0 ? size : nil
    }
  }
}
