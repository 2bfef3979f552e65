/// Offsets and values of kdump-compressed files of 64-bit machines.
///
/// A file is: header (one block), sub-header (sub_hdr_size blocks, with the notes behind it),
/// bitmap of RAM, bitmap of the pages stored (bitmap_blocks for both), a descriptor for each page
/// stored in ascending order, and the pages' data.
///
/// Source: makedumpfile, diskdump_mod.h; crash, diskdump.h.
enum KdumpLayout {
  static let signature: [UInt8] = Array("KDUMP   ".utf8)
  static let newestVersion: Int32 = 6
  static let blockSize = 4096

  /// struct disk_dump_header.
  enum Header {
    static let size = 464
    static let version = 8
    /// struct new_utsname: six strings of `nameSize` bytes.
    static let systemName = 12
    static let nameSize = 65
    static let machine = systemName + 4 * nameSize
    static let status = 424
    static let blockSize = 428
    static let subHeaderSize = 432
    static let bitmapBlocks = 436
    static let frameLimit = 440
    static let cpuCount = 460
  }

  /// struct kdump_sub_header, with the header version that brought each member.
  enum SubHeader {
    static let size = 104
    static let physicalBase = 0
    static let dumpLevel = 8  // 1
    static let split = 12  // 2
    static let splitStart = 16  // 2
    static let splitEnd = 24  // 2
    static let vmcoreinfoOffset = 32  // 3
    static let vmcoreinfoSize = 40  // 3
    static let noteOffset = 48  // 4
    static let noteSize = 56  // 4
    static let eraseInfoOffset = 64  // 5
    static let eraseInfoSize = 72  // 5
    static let splitStart64 = 80  // 6
    static let splitEnd64 = 88  // 6
    static let frameLimit64 = 96  // 6
  }

  /// struct page_desc.
  enum Descriptor {
    static let size = 24
    static let dataOffset = 0
    static let dataSize = 8
    static let flags = 12
  }

  /// DUMP_DH_COMPRESSED_*: flags of a page, and of the header's status.
  enum Flags {
    static let zlib: UInt32 = 0x1
    static let lzo: UInt32 = 0x2
    static let snappy: UInt32 = 0x4
    static let incomplete: UInt32 = 0x8
    static let excludedVmemmap: UInt32 = 0x10
    static let zstd: UInt32 = 0x20

    static let compression = zlib | lzo | snappy | zstd
    static let known = compression | incomplete | excludedVmemmap

    /// What a page's flags say of its compression, if they name one.
    static func codec(_ flags: UInt32) -> String? {
      switch flags & compression {
      case zlib: "zlib"
      case lzo: "LZO"
      case snappy: "snappy"
      case zstd: "zstd"
      default: nil
      }
    }
  }

  /// DUMP_HEADER_INCOMPLETED: flag of the status in a diskdump header.
  static let diskdumpIncomplete: UInt32 = 1
}
