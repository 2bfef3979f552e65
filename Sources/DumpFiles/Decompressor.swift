import CLZO
import CShim
import CSnappy
import CZlib
import CZstd
import Memory

/// One thread's decompression contexts, made when first needed.
@safe final class Decompressor {
  private var inflater: UnsafeMutablePointer<z_stream>?
  private var zstd: OpaquePointer?

  /// Checks once for the process that liblzo2 fits the headers it was compiled with.
  static let isLZOUsable = shim_lzo_init() == LZO_E_OK

  deinit {
    if let inflater = unsafe inflater {
      unsafe inflateEnd(inflater)
      unsafe inflater.deallocate()
    }
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
    case KdumpLayout.Flags.zlib: return unsafe inflate(stored, into: page)
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

  private func inflate(
    _ stored: UnsafeRawBufferPointer, into page: UnsafeMutableRawBufferPointer
  ) -> Bool {
    guard let stream = unsafe inflateStream() else { return false }
    unsafe stream.pointee.next_in = UnsafeMutablePointer(
      mutating: stored.baseAddress?.assumingMemoryBound(to: UInt8.self))
    unsafe stream.pointee.avail_in = UInt32(stored.count)
    unsafe stream.pointee.next_out = page.baseAddress?.assumingMemoryBound(to: UInt8.self)
    unsafe stream.pointee.avail_out = UInt32(page.count)
    let result = unsafe CZlib.inflate(stream, Z_FINISH)
    return unsafe result == Z_STREAM_END && stream.pointee.avail_out == 0
  }

  private func inflateStream() -> UnsafeMutablePointer<z_stream>? {
    if let inflater = unsafe inflater {
      return unsafe inflateReset(inflater) == Z_OK ? inflater : nil
    }
    let stream = UnsafeMutablePointer<z_stream>.allocate(capacity: 1)
    unsafe stream.initialize(to: z_stream())
    guard unsafe shim_inflateInit(stream) == Z_OK else {
      unsafe stream.deallocate()
      return nil
    }
    unsafe inflater = stream
    return unsafe stream
  }
}
