import CDeflate
import CLZO
import CSnappy
import CZstd
import Compression
import Memory

/// How a kdump-compressed file stores its pages. The levels are those of makedumpfile.
public enum KdumpCompression: String, Hashable, Sendable, CaseIterable {
  /// zlib at its fastest level.
  case zlib
  /// LZO1X-1.
  case lzo
  case snappy
  /// zstd at level 1.
  case zstd

  /// DUMP_DH_COMPRESSED_*.
  var flag: UInt32 {
    switch self {
    case .zlib: KdumpLayout.Flags.zlib
    case .lzo: KdumpLayout.Flags.lzo
    case .snappy: KdumpLayout.Flags.snappy
    case .zstd: KdumpLayout.Flags.zstd
    }
  }
}

/// Compresses pages as they are stored in kdump-compressed files, with one thread's own state.
@safe public final class KdumpPageEncoder {
  private let compression: KdumpCompression
  private var deflater: OpaquePointer?
  private var zstd: OpaquePointer?
  /// LZO's memory of what it has seen, and room for pages that do not shrink, of which LZO and
  /// snappy do not stop.
  private let memory: UnsafeMutableRawBufferPointer
  private let room: UnsafeMutableRawBufferPointer

  /// LZO1X_1_MEM_COMPRESS, 16384 pointers; and more than page + page / 6 + 32 (snappy) and
  /// page + page / 16 + 67 (LZO).
  private static let lzoMemory = 16384 * 8
  private static let roomSize = 2 * KdumpLayout.blockSize

  /// A state that cannot be made leaves pages uncompressed, which every reader takes as well.
  public init(_ compression: KdumpCompression) {
    self.compression = compression
    unsafe memory = .allocate(
      byteCount: compression == .lzo && PageDecompressor.isLZOUsable ? Self.lzoMemory : 0,
      alignment: 16)
    unsafe room = .allocate(byteCount: Self.roomSize, alignment: 16)
    switch compression {
    case .zlib: unsafe deflater = libdeflate_alloc_compressor(1)
    case .zstd: unsafe zstd = ZSTD_createCCtx()
    case .lzo, .snappy: break
    }
  }

  deinit {
    unsafe libdeflate_free_compressor(deflater)
    unsafe ZSTD_freeCCtx(zstd)
    unsafe memory.deallocate()
    unsafe room.deallocate()
  }

  /// Puts the stored form of a page into `stored`, which has room for a page: the page itself if it
  /// does not get smaller. Returns its size, and the flags of its descriptor.
  public func encode(
    _ page: UnsafeRawBufferPointer, into stored: UnsafeMutableRawBufferPointer
  ) -> (size: Int, flags: UInt32) {
    if let size = unsafe compress(page), size < page.count {
      unsafe stored.copyMemory(from: UnsafeRawBufferPointer(rebasing: room[..<size]))
      return (size, compression.flag)
    }
    unsafe stored.copyMemory(from: page)
    return (page.count, 0)
  }

  /// The size of the compressed page in `room`; nil if it is larger than the page, or fails.
  private func compress(_ page: UnsafeRawBufferPointer) -> Int? {
    switch compression {
    case .zlib:
      guard let deflater = unsafe deflater else { return nil }
      // 0 if it has no room, which is that of a page.
      let size = unsafe libdeflate_zlib_compress(
        deflater, page.baseAddress, page.count, room.baseAddress, page.count)
      return size > 0 ? size : nil
    case .lzo:
      guard unsafe memory.count > 0 else { return nil }
      var size = unsafe lzo_uint(room.count)
      let result = unsafe lzo1x_1_compress(
        page.baseAddress?.assumingMemoryBound(to: UInt8.self), lzo_uint(page.count),
        room.baseAddress?.assumingMemoryBound(to: UInt8.self), &size, memory.baseAddress)
      return result == LZO_E_OK ? Int(clamping: size) : nil
    case .snappy:
      var size = unsafe room.count
      let result = unsafe snappy_compress(
        page.baseAddress?.assumingMemoryBound(to: CChar.self), page.count,
        room.baseAddress?.assumingMemoryBound(to: CChar.self), &size)
      return result == SNAPPY_OK ? size : nil
    case .zstd:
      guard let context = unsafe zstd else { return nil }
      let size = unsafe ZSTD_compressCCtx(
        context, room.baseAddress, page.count, page.baseAddress, page.count, 1)
      return ZSTD_isError(size) == 0 ? size : nil
    }
  }
}
