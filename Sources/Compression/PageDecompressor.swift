import CDeflate
import CLZ4
import CLZO
import CShim
import CSnappy
import CZstd

/// A form in which a page of memory is stored.
public enum PageCompression: Hashable, Sendable {
  /// A raw deflate stream (RFC 1951).
  case deflate
  /// A block of LZ4, without a frame; the same for lz4hc.
  case lz4
  /// LZO1X.
  case lzo
  /// LZO1X with Linux's runs of zeros (``LZORLE``).
  case lzoRLE
  case snappy
  /// A deflate stream in zlib's wrapping (RFC 1950).
  case zlib
  case zstd

  /// As the kernel's crypto API and zram call it (`crypto_alg.cra_name`, `zcomp_ops.name`); nil for
  /// what is not read here, such as 842.
  public init?(kernelName: String) {
    switch kernelName {
    case "deflate": self = .deflate
    case "lz4", "lz4hc": self = .lz4
    case "lzo": self = .lzo
    case "lzo-rle": self = .lzoRLE
    case "zstd": self = .zstd
    default: return nil
    }
  }
}

/// One thread's decompression contexts, made when first needed.
@safe public final class PageDecompressor {
  private var inflater: OpaquePointer?
  private var zstd: OpaquePointer?

  /// Checks once for the process that liblzo2 fits the headers it was compiled with.
  public static let isLZOUsable = shim_lzo_init() == LZO_E_OK

  public init() {}

  deinit {
    unsafe libdeflate_free_decompressor(inflater)
    unsafe ZSTD_freeDCtx(zstd)
  }

  /// Turns the stored form of a page into its bytes; false if it is not of that form, or not of as
  /// many bytes as `page` has.
  public func decompress(
    _ stored: UnsafeRawBufferPointer, _ form: PageCompression,
    into page: UnsafeMutableRawBufferPointer
  ) -> Bool {
    switch form {
    case .deflate, .zlib:
      if unsafe inflater == nil { unsafe inflater = libdeflate_alloc_decompressor() }
      guard let inflater = unsafe inflater else { return false }
      var count = 0
      let inflate =
        form == .zlib ? unsafe libdeflate_zlib_decompress : unsafe libdeflate_deflate_decompress
      let result = unsafe inflate(
        inflater, stored.baseAddress, stored.count, page.baseAddress, page.count, &count)
      return result == LIBDEFLATE_SUCCESS && count == page.count
    case .lz4:
      guard let size = CInt(exactly: stored.count), let room = CInt(exactly: page.count) else {
        return false
      }
      return unsafe LZ4_decompress_safe(
        stored.baseAddress?.assumingMemoryBound(to: CChar.self),
        page.baseAddress?.assumingMemoryBound(to: CChar.self), size, room) == room
    case .lzo:
      guard Self.isLZOUsable else { return false }
      var count = lzo_uint(page.count)
      let result = unsafe lzo1x_decompress_safe(
        stored.baseAddress?.assumingMemoryBound(to: UInt8.self), lzo_uint(stored.count),
        page.baseAddress?.assumingMemoryBound(to: UInt8.self), &count, nil)
      return result == LZO_E_OK && count == lzo_uint(page.count)
    case .lzoRLE:
      return unsafe LZORLE.decompress(stored, into: page)
    case .snappy:
      var count = page.count
      let result = unsafe snappy_uncompress(
        stored.baseAddress?.assumingMemoryBound(to: CChar.self), stored.count,
        page.baseAddress?.assumingMemoryBound(to: CChar.self), &count)
      return result == SNAPPY_OK && count == page.count
    case .zstd:
      if unsafe zstd == nil { unsafe zstd = ZSTD_createDCtx() }
      guard let context = unsafe zstd else { return false }
      let count = unsafe ZSTD_decompressDCtx(
        context, page.baseAddress, page.count, stored.baseAddress, stored.count)
      // An error is a huge count.
      return count == page.count
    }
  }
}
