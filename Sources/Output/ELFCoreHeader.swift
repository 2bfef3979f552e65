import Memory

/// The headers of a 64-bit x86 ELF core file (System V ABI, "Object Files"; elf.h).
public struct ELFCoreHeader: Sendable {
  public static let size: UInt64 = 64
  public static let programHeaderSize: UInt64 = 56
  public static let sectionHeaderSize: UInt64 = 64

  /// PN_XNUM: the count of program headers does not fit, and is told by the first section header.
  private static let extendedCount = 0xffff

  /// Whether so many program headers are told of by a section header.
  public static func needsSectionHeader(programHeaders: Int) -> Bool {
    programHeaders >= extendedCount
  }

  /// The ELF header: program headers follow it at once.
  ///
  /// - Parameter sectionHeaderOffset: where the section header is, if it is needed.
  public static func encoded(programHeaders: Int, sectionHeaderOffset: UInt64 = 0) -> [UInt8] {
    let needsSection = needsSectionHeader(programHeaders: programHeaders)
    var bytes: [UInt8] = [0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0]
    bytes += [UInt8](repeating: 0, count: 8)
    bytes.append(littleEndian: UInt16(4))  // ET_CORE
    bytes.append(littleEndian: UInt16(62))  // EM_X86_64
    bytes.append(littleEndian: UInt32(1))
    bytes.append(littleEndian: UInt64(0))
    bytes.append(littleEndian: size)
    bytes.append(littleEndian: needsSection ? sectionHeaderOffset : 0)
    bytes.append(littleEndian: UInt32(0))
    bytes.append(littleEndian: UInt16(size))
    bytes.append(littleEndian: UInt16(programHeaderSize))
    bytes.append(littleEndian: UInt16(clamping: min(programHeaders, extendedCount)))
    bytes.append(littleEndian: UInt16(needsSection ? sectionHeaderSize : 0))
    bytes.append(littleEndian: UInt16(needsSection ? 1 : 0))
    bytes.append(littleEndian: UInt16(0))
    return bytes
  }

  /// The section header that tells the count of program headers (sh_info), of type SHT_NULL; sh_size
  /// is the count of section headers.
  public static func sectionHeader(programHeaders: Int) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: 32)
    bytes.append(littleEndian: UInt64(1))
    bytes.append(littleEndian: UInt32(0))
    bytes.append(littleEndian: UInt32(clamping: programHeaders))
    return bytes + [UInt8](repeating: 0, count: Int(sectionHeaderSize) - bytes.count)
  }
}

/// `Elf64_Phdr`.
public struct ProgramHeader: Hashable, Sendable {
  public enum Kind: UInt32, Sendable {
    case load = 1
    case note = 4
  }

  /// Bits of p_flags.
  public static let executable: UInt32 = 1
  public static let writable: UInt32 = 2
  public static let readable: UInt32 = 4

  public var kind: Kind
  public var flags: UInt32
  public var offset: UInt64
  public var virtualAddress: UInt64 = 0
  public var physicalAddress: UInt64 = 0
  public var fileSize: UInt64
  public var memorySize: UInt64
  public var alignment: UInt64 = 0

  public init(
    _ kind: Kind, flags: UInt32 = 0, offset: UInt64, fileSize: UInt64, memorySize: UInt64 = 0
  ) {
    self.kind = kind
    self.flags = flags
    self.offset = offset
    self.fileSize = fileSize
    self.memorySize = memorySize
  }

  public func append(to bytes: inout [UInt8]) {
    bytes.append(littleEndian: kind.rawValue)
    bytes.append(littleEndian: flags)
    for value in [offset, virtualAddress, physicalAddress, fileSize, memorySize, alignment] {
      bytes.append(littleEndian: value)
    }
  }
}
