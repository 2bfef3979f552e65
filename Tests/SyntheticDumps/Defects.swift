import Memory

/// What can be wrong with an ELF dump so that it cannot be opened.
public enum ELFDefect: String, CaseIterable, Sendable {
  case headerCut
  case class32
  case bigEndian
  case machineIsArm64
  case isExecutable
  case isRelocatable
  case noProgramHeaders
  case noLoads
  case programHeadersOfOtherSize
  case programHeadersBeyondEnd
  case programHeaderOffsetWraps
  case sectionHeaderBeyondEnd
  case extendedCountBeyondEnd
  case tooManyProgramHeaders

  /// A dump with this defect and no other.
  public var file: SyntheticFile {
    var memory = SyntheticMemory()
    memory[PageFrameNumber(1)] = [UInt8](repeating: 0x11, count: Int(pageSize))
    var file = memory.elf(SyntheticELF(notes: [.vmcoreinfo("OSRELEASE=6.1.0\n")]))
    switch self {
    case .headerCut: file.resize(to: 63)
    case .class32: file.store(UInt8(1), at: 4)
    case .bigEndian: file.store(UInt8(2), at: 5)
    case .machineIsArm64: file.store(UInt16(183), at: 18)
    case .isExecutable: file.store(UInt16(2), at: 16)
    case .isRelocatable: file.store(UInt16(1), at: 16)
    case .noProgramHeaders: file.store(UInt16(0), at: 56)
    case .noLoads: file.store(UInt16(1), at: 56)
    case .programHeadersOfOtherSize: file.store(UInt16(32), at: 54)
    case .programHeadersBeyondEnd: file.store(file.size - 8, at: 32)
    case .programHeaderOffsetWraps: file.store(UInt64.max - 55, at: 32)
    case .sectionHeaderBeyondEnd:
      file.store(UInt16.max, at: 56)
      file.store(file.size - 32, at: 40)
    case .extendedCountBeyondEnd:
      file = memory.elf(SyntheticELF(hasExtendedCount: true))
      file.store(UInt32.max, at: 64 + 44)
    case .tooManyProgramHeaders:
      file = memory.elf(SyntheticELF(hasExtendedCount: true))
      file.store(UInt32(1 << 20) + 1, at: 64 + 44)
      file.resize(to: 64 << 20)
    }
    return file
  }
}

/// What can be wrong with a kdump-compressed file so that it cannot be opened.
public enum KdumpDefect: String, CaseIterable, Sendable {
  case headerCut
  case subHeaderCut
  case bitmapsCut
  case machineIsArm64
  case machineIsI686
  case versionNegative
  case versionTooNew
  case blockSizeOfOtherMachine
  case blockSizeZero
  case subHeaderSizeZero
  case subHeaderSizeNegative
  case subHeaderSizeHuge
  case bitmapBlocksZero
  case bitmapBlocksTooFew
  case bitmapBlocksHuge
  case frameLimitZero
  case frameLimitHuge
  case unknownStatusFlag

  /// A dump with this defect and no other.
  public var file: SyntheticFile {
    var memory = SyntheticMemory()
    memory[PageFrameNumber(1)] = [UInt8](repeating: 0x11, count: Int(pageSize))
    memory[PageFrameNumber(40000)] = [UInt8](repeating: 0x12, count: Int(pageSize))
    var options = SyntheticKdump()
    switch self {
    case .machineIsArm64: options.machine = "aarch64"
    case .machineIsI686: options.machine = "i686"
    default: break
    }
    var file = memory.kdump(options)
    switch self {
    case .machineIsArm64, .machineIsI686: break
    case .headerCut: file.resize(to: 463)
    case .subHeaderCut: file.resize(to: 4096 + 103)
    case .bitmapsCut: file.resize(to: 3 * 4096)
    case .versionNegative: file.store(Int32(-1), at: 8)
    case .versionTooNew: file.store(Int32(7), at: 8)
    case .blockSizeOfOtherMachine: file.store(UInt32(65536), at: 428)
    case .blockSizeZero: file.store(UInt32(0), at: 428)
    case .subHeaderSizeZero: file.store(UInt32(0), at: 432)
    case .subHeaderSizeNegative: file.store(Int32(-1), at: 432)
    case .subHeaderSizeHuge: file.store(Int32.max, at: 432)
    case .bitmapBlocksZero: file.store(UInt32(0), at: 436)
    case .bitmapBlocksTooFew: file.store(UInt32(1), at: 436)
    case .bitmapBlocksHuge: file.store(UInt32.max, at: 436)
    case .frameLimitZero:
      file.store(UInt32(0), at: 440)
      file.store(UInt64(0), at: 4096 + 96)
    case .frameLimitHuge: file.store(UInt64.max, at: 4096 + 96)
    case .unknownStatusFlag: file.store(UInt32(0x41), at: 424)
    }
    return file
  }
}

/// What can be wrong with the stored form of one page of a kdump-compressed file.
public enum KdumpPageDefect: String, CaseIterable, Sendable {
  case descriptorNeverWritten
  case dataBeyondEnd
  case dataOffsetWraps
  case sizeZero
  case sizeAbovePage
  case unknownFlag
  case twoFlags
  case plainPageTooShort
  case zlibDataDamaged
  case lzoDataDamaged
  case snappyDataDamaged
  case zstdDataDamaged
  case zlibDataOfHalfAPage

  /// The frame whose page has the defect; all other pages are well.
  public static let frame = PageFrameNumber(5)

  /// Memory of ten pages, and a dump of it with this defect in one page.
  public var memoryAndFile: (memory: SyntheticMemory, file: SyntheticFile) {
    var generator = SeededGenerator(seed: 5)
    var memory = SyntheticMemory()
    for frame in 0..<10 {
      // Half of each page random: compressible, with data that damage does harm.
      var page: [UInt8] = []
      while page.count < 2048 { page.append(littleEndian: generator.next()) }
      memory[PageFrameNumber(UInt64(frame))] = page + [UInt8](repeating: 7, count: 2048)
    }
    var options = SyntheticKdump()
    options.compression =
      switch self {
      case .lzoDataDamaged: .lzo
      case .snappyDataDamaged: .snappy
      case .zstdDataDamaged: .zstd
      case .plainPageTooShort: .none
      default: .zlib
      }
    var file = memory.kdump(options)
    // Header, sub-header, two bitmaps of a block.
    let descriptor = 4 * 4096 + 24 * Self.frame.rawValue
    let data: UInt64 = file.load(at: descriptor)
    let size: UInt32 = file.load(at: descriptor + 8)
    switch self {
    case .descriptorNeverWritten:
      file.write([UInt8](repeating: 0, count: 24), at: descriptor)
    case .dataBeyondEnd: file.store(file.size - 1, at: descriptor)
    case .dataOffsetWraps: file.store(UInt64.max, at: descriptor)
    case .sizeZero: file.store(UInt32(0), at: descriptor + 8)
    case .sizeAbovePage: file.store(UInt32(4097), at: descriptor + 8)
    case .unknownFlag: file.store(UInt32(0x40), at: descriptor + 12)
    case .twoFlags: file.store(UInt32(3), at: descriptor + 12)
    case .plainPageTooShort: file.store(UInt32(4095), at: descriptor + 8)
    case .zlibDataDamaged, .lzoDataDamaged, .snappyDataDamaged, .zstdDataDamaged:
      file.write([UInt8](repeating: 0xff, count: 64), at: data)
    case .zlibDataOfHalfAPage:
      let half = Compression.zlib.encode([UInt8](repeating: 1, count: 2048), index: 0).bytes
      precondition(half.count <= size)
      file.write(half, at: data)
      file.store(UInt32(half.count), at: descriptor + 8)
    }
    return (memory, file)
  }
}
