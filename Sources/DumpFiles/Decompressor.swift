import CDeflate
import CLZO
import CShim
import CSnappy
import CZstd
import Memory

/// One thread's decompression contexts, made when first needed.
@safe final class Decompressor {
  private var inflater: OpaquePointer?
  private var zstd: OpaquePointer?

  /// Checks once for the process that liblzo2 fits the headers it was compiled with.
  static let isLZOUsable = shim_lzo_init() == LZO_E_OK

  deinit {
    unsafe libdeflate_free_decompressor(inflater)
    unsafe ZSTD_freeDCtx(zstd)
  }

  /// Turns the stored form of a page into its 4096 bytes; false if it is not the form that `flags`
  /// says, or not of exactly one page.
  func decode(
    _ stored: UnsafeRawBufferPointer, flags: UInt32, into page: UnsafeMutableRawBufferPointer
  ) -> Bool {
    switch flags & KdumpLayout.Flags.compression {
    case 0:
      guard stored.count == page.count else { return false }
      unsafe page.copyMemory(from: stored)
      return true
    case KdumpLayout.Flags.zlib:
      if unsafe inflater == nil { unsafe inflater = libdeflate_alloc_decompressor() }
      guard let inflater = unsafe inflater else { return false }
      var count = 0
      let result = unsafe libdeflate_zlib_decompress(
        inflater, stored.baseAddress, stored.count, page.baseAddress, page.count, &count)
      return result == LIBDEFLATE_SUCCESS && count == page.count
    case KdumpLayout.Flags.lzo:
      guard Self.isLZOUsable else { return false }
      var count = lzo_uint(page.count)
      let result = unsafe lzo1x_decompress_safe(
        stored.baseAddress?.assumingMemoryBound(to: UInt8.self), lzo_uint(stored.count),
        page.baseAddress?.assumingMemoryBound(to: UInt8.self), &count, nil)
      return result == LZO_E_OK && count == lzo_uint(page.count)
    case KdumpLayout.Flags.snappy:
      var count = page.count
      let result = unsafe snappy_uncompress(
        stored.baseAddress?.assumingMemoryBound(to: CChar.self), stored.count,
        page.baseAddress?.assumingMemoryBound(to: CChar.self), &count)
      return result == SNAPPY_OK && count == page.count
    case KdumpLayout.Flags.zstd:
      if unsafe zstd == nil { unsafe zstd = ZSTD_createDCtx() }
      guard let context = unsafe zstd else { return false }
      let count = unsafe ZSTD_decompressDCtx(
        context, page.baseAddress, page.count, stored.baseAddress, stored.count)
      // An error is a huge count.
      return count == page.count
    default: return false
    }
  }
}
