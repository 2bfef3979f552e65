import DumpFiles
import Memory
import SyntheticDumps
import Testing

@Suite struct KdumpTests {
  static let text = "OSRELEASE=6.1.0\nNUMBER(phys_base)=-654311424\n"
  static let excluded = Set((70..<90 as Range<UInt64>).map(PageFrameNumber.init))

  /// Runs that start and end within and at the bounds of 64 frames, and of a rank group.
  static let memory: SyntheticMemory = {
    var generator = SeededGenerator(seed: 2)
    return SyntheticMemory(
      randomIn: [3..<64, 65..<200, 4090..<4100, 8190..<8200], using: &generator)
  }()

  static func options(
    _ compression: Compression = .zlib, version: Int32 = 6, level: Int32 = 0
  ) -> SyntheticKdump {
    var options = SyntheticKdump()
    options.compression = compression
    options.version = version
    options.level = level
    options.excluded = excluded
    options.vmcoreinfo = text
    options.notes = [.processStatus(cpu: 0), .processStatus(cpu: 1)]
    return options
  }

  @Sendable static func truth(_ frame: PageFrameNumber) -> Expected {
    guard let page = memory[frame] else { return .absent(.notInDump) }
    return excluded.contains(frame) ? .absent(.excluded) : .bytes(page)
  }

  @Test(arguments: Compression.allCases, [0, 1, 31] as [Int32])
  func readsEveryPage(compression: Compression, level: Int32) throws {
    let dump = try openDump(Self.memory.kdump(Self.options(compression, level: level)))
    #expect(dump.dumpLevel == DumpLevel(rawValue: level))
    #expect(!dump.isIncomplete)
    #expect(!dump.hasErasures)
    #expect(dump.frameRanges == Self.memory.frameRanges)
    expectReads(dump, in: 0..<270, Self.truth)
    expectReads(dump, in: 4080..<4120, Self.truth)
    expectReads(dump, in: 8150..<8250, Self.truth)
  }

  @Test(arguments: 0...6 as ClosedRange<Int32>)
  func readsTheFieldsThatEachHeaderVersionHas(version: Int32) throws {
    let dump = try openDump(Self.memory.kdump(Self.options(version: version, level: 17)))
    #expect(dump.format == .kdump(version: Int(version)))
    #expect(dump.format.description == "kdump-compressed, header version \(version)")
    #expect(dump.dumpLevel == (version >= 1 ? [.zeroPages, .freePages] : nil))
    #expect(dump.vmcoreinfo == (version >= 3 ? Array(Self.text.utf8) : nil))
    #expect(
      dump.notes.map(\.name) == (version >= 4 ? ["CORE", "CORE", "VMCOREINFO"] : []))
    #expect(!dump.hasErasures)
    expectReads(dump, in: 0..<300, Self.truth)
  }

  @Test func readsDiskdump() throws {
    var options = Self.options(version: 1)
    options.isDiskdump = true
    options.vmcoreinfo = nil
    options.notes = []
    let dump = try openDump(Self.memory.kdump(options))
    #expect(dump.format == .diskdump(version: 1))
    #expect(dump.dumpLevel == nil)
    #expect(!dump.isIncomplete)
    expectReads(dump, in: 0..<300, Self.truth)
    options.isIncomplete = true
    #expect(try openDump(Self.memory.kdump(options)).isIncomplete)
  }

  @Test func takesASingleBitmapForBoth() throws {
    var options = Self.options()
    options.hasOneBitmap = true
    let dump = try openDump(Self.memory.kdump(options))
    expectReads(dump, in: 0..<300) { frame in
      let expected = Self.truth(frame)
      return expected == .absent(.excluded) ? .absent(.notInDump) : expected
    }
  }

  @Test func readsADumpWithoutAnyPage() throws {
    var options = SyntheticKdump()
    options.ram = [PageFrameNumber(10)..<PageFrameNumber(20)]
    let dump = try openDump(SyntheticMemory().kdump(options))
    #expect(!dump.isIncomplete)
    expectReads(dump, in: 0..<30) { frame in
      (10..<20).contains(frame.rawValue) ? .absent(.excluded) : .absent(.notInDump)
    }
  }

  @Test func acceptsAnEmptySystemName() throws {
    var options = Self.options()
    options.machine = ""
    #expect(try openDump(Self.memory.kdump(options)).frameRanges == Self.memory.frameRanges)
  }

  @Test func saysNotInDumpUpToTheLastFrameNumber() throws {
    let dump = try openDump(Self.memory.kdump())
    for frame: UInt64 in [8200, 32768, 1 << 40, 1 << 52, UInt64.max - 3, UInt64.max] {
      let number = PageFrameNumber(frame)
      #expect(dump.read(number) == .absent(.notInDump))
      #expect(dump.presence(from: number, limit: 7) == (.notInDump, 7))
      #expect(
        dump.makeReader().read(from: number, count: 3)
          == Array(repeating: .absent(.notInDump), count: 3))
    }
  }

  @Test func saysIncompleteWhereMakedumpfileMarkedIt() throws {
    var options = Self.options()
    options.isIncomplete = true
    #expect(try openDump(Self.memory.kdump(options)).isIncomplete)
  }

  @Test func saysErasedWhereTheSubHeaderSaysSo() throws {
    var file = Self.memory.kdump(Self.options())
    file.store(100 as UInt64, at: 4096 + 72)
    #expect(try openDump(file).hasErasures)
  }

  @Test func saysTruncatedWhereDataIsCutOff() throws {
    var file = Self.memory.kdump(Self.options(.none))
    file.resize(to: file.size - 3 * 4096 - 1)
    let dump = try openDump(file)
    #expect(dump.isIncomplete)
    #expect(dump.lostPages == 4)
    expectReads(dump, in: 8000..<8300) { frame in
      (8196..<8200).contains(frame.rawValue) ? .absent(.truncated) : Self.truth(frame)
    }
  }

  @Test func saysTruncatedWhereDescriptorsAreCutOff() throws {
    var file = Self.memory.kdump(Self.options())
    // Header, sub-header, two bitmaps; then the first 60 descriptors and a half.
    file.resize(to: 4 * 4096 + 60 * 24 + 12)
    let dump = try openDump(file)
    #expect(dump.isIncomplete)
    expectReads(dump, in: 0..<300) { frame in
      Self.truth(frame).absence == nil ? .absent(.truncated) : Self.truth(frame)
    }
  }

  @Test func countsFramesWithoutAReadableDescriptorAsTruncated() throws {
    let file = Self.memory.kdump(Self.options())
    var cut = file
    cut.resize(to: 4 * 4096 + 60 * 24)
    let dump = try openDump(cut)
    // No page's data is in the file.
    #expect(dump.presence(from: PageFrameNumber(3), limit: 1000) == (.truncated, 61))
    #expect(dump.presence(from: PageFrameNumber(65), limit: 1000) == (.truncated, 5))
    #expect(dump.presence(from: PageFrameNumber(70), limit: 1000) == (.excluded, 20))
  }

  @Test(arguments: KdumpPageDefect.allCases)
  func losesOnlyThePageThatIsDamaged(defect: KdumpPageDefect) throws {
    let (memory, file) = defect.memoryAndFile
    let dump = try openDump(file)
    let reason: Absence =
      switch defect {
      case .descriptorNeverWritten, .dataBeyondEnd, .dataOffsetWraps: .truncated
      default: .corrupt
      }
    expectReads(dump, in: 0..<12, presenceIsExact: false) { frame in
      frame == KdumpPageDefect.frame
        ? .absent(reason) : memory[frame].map { .bytes($0) } ?? .absent(.notInDump)
    }
  }

  @Test(
    arguments: [(0, 100), (UInt64.max, 100), (1 << 40, 100), (4096, UInt64.max)]
      as [(UInt64, UInt64)])
  func findsVmcoreinfoInTheNotesWhereTheSubHeaderIsWrong(offset: UInt64, size: UInt64) throws {
    var file = Self.memory.kdump(Self.options())
    file.store(offset, at: 4096 + 32)
    file.store(size, at: 4096 + 40)
    #expect(try openDump(file).vmcoreinfo == Array(Self.text.utf8))
  }

  @Test(
    arguments: [(0, UInt64.max), (1 << 40, 100), (UInt64.max, 100), (4200, UInt64.max)]
      as [(UInt64, UInt64)])
  func opensWithoutNotesWhereTheSubHeaderIsWrong(offset: UInt64, size: UInt64) throws {
    var file = Self.memory.kdump(Self.options())
    file.store(offset, at: 4096 + 48)
    file.store(size, at: 4096 + 56)
    #expect(try openDump(file).vmcoreinfo == Array(Self.text.utf8))
  }

  /// Random frames of RAM, some left out, against the memory itself.
  @Test(arguments: 0..<8 as Range<UInt64>)
  func agreesWithTheMemoryWhateverIsLeftOut(seed: UInt64) throws {
    var generator = SeededGenerator(seed: seed)
    var ranges: [Range<UInt64>] = []
    var start: UInt64 = 0
    for _ in 0..<12 {
      start += UInt64.random(in: 1...100, using: &generator)
      let end = start + UInt64.random(in: 1...60, using: &generator)
      ranges.append(start..<end)
      start = end
    }
    let memory = SyntheticMemory(randomIn: ranges, using: &generator)
    var options = SyntheticKdump()
    options.compression = .mixed
    options.level = Int32.random(in: 0...1, using: &generator)
    options.excluded = Set(
      memory.frames.filter { _ in Int.random(in: 0..<3, using: &generator) == 0 })
    let dump = try openDump(memory.kdump(options))
    expectReads(dump, in: 0..<start + 10) { frame in
      guard let page = memory[frame] else { return .absent(.notInDump) }
      return options.excluded.contains(frame) ? .absent(.excluded) : .bytes(page)
    }
  }

  // Where the memory of a machine lies far apart, whole pieces of the bitmaps are zero.
  @Test func opensADumpWithMemoryAtTheTopOfTheAddressSpace() throws {
    let top: UInt64 = 1 << 27
    var file = SyntheticMemory().kdump(
      {
        var options = SyntheticKdump()
        options.ram = [PageFrameNumber(1)..<PageFrameNumber(2)]
        return options
      }())
    let bitmapBlocks = top / (4096 * 8) * 2
    file.store(UInt32(bitmapBlocks), at: 436)
    file.store(top, at: 4096 + 96)
    file.store(UInt8(0x80), at: 2 * 4096 + top / 8 - 1)
    file.resize(to: (2 + bitmapBlocks) * 4096)
    let dump = try openDump(file)
    #expect(
      dump.frameRanges == [
        PageFrameNumber(1)..<PageFrameNumber(2), PageFrameNumber(top - 1)..<PageFrameNumber(top),
      ])
    #expect(dump.presence(from: PageFrameNumber(2), limit: .max) == (.notInDump, top - 3))
  }

  static let errors: [KdumpDefect: String] = [
    .headerCut: "dump.truncated-header",
    .subHeaderCut: "dump.truncated-header",
    .bitmapsCut: "dump.truncated-header",
    .machineIsArm64: "dump.other-machine",
    .machineIsI686: "dump.other-machine",
    .versionNegative: "dump.unknown-version",
    .versionTooNew: "dump.unknown-version",
    .blockSizeOfOtherMachine: "dump.bad-header",
    .blockSizeZero: "dump.bad-header",
    .subHeaderSizeZero: "dump.bad-header",
    .subHeaderSizeNegative: "dump.bad-header",
    .subHeaderSizeHuge: "dump.truncated-header",
    .bitmapBlocksZero: "dump.bad-header",
    .bitmapBlocksTooFew: "dump.bad-header",
    .bitmapBlocksHuge: "dump.truncated-header",
    .frameLimitZero: "dump.bad-header",
    .frameLimitHuge: "dump.bad-header",
    .unknownStatusFlag: "dump.unknown-compression",
  ]

  @Test(arguments: KdumpDefect.allCases)
  func namesTheDefect(_ defect: KdumpDefect) {
    #expect(openingError(defect.file)?.name == Self.errors[defect])
  }

  // 16 TiB of addresses: more frames than 32 bits count, bitmaps of 1 GiB.
  @Test func readsFramesBeyond32Bits() throws {
    var generator = SeededGenerator(seed: 31)
    let top: UInt64 = (1 << 32) + (1 << 16)
    let memory = SyntheticMemory(
      randomIn: [1..<20, (1 << 32) - 5..<(1 << 32) + 5, top - 10..<top], using: &generator)
    let dump = try openDump(memory.kdump())
    #expect(dump.frameRanges == memory.frameRanges)
    for range in [0..<30, (1 << 32) - 20..<(1 << 32) + 20, top - 20..<top + 10]
      as [Range<UInt64>]
    {
      expectReads(dump, in: range) { frame in
        memory[frame].map { .bytes($0) } ?? .absent(.notInDump)
      }
    }
  }

  // Before version 6, max_mapnr has 32 bits.
  @Test func takesTheShortFrameLimitWhereThereIsNoOther() throws {
    for version in [5, 6] as [Int32] {
      var file = Self.memory.kdump(Self.options(version: version))
      if version == 6 { file.store(0 as UInt64, at: 4096 + 96) }
      expectReads(try openDump(file), in: 8150..<8250, Self.truth)
    }
  }

  @Test(arguments: KdumpPageDefect.allCases)
  func tellsWhichPageIsDamaged(defect: KdumpPageDefect) throws {
    let dump = try openDump(defect.memoryAndFile.file)
    #expect(dump.damage.count == 0)
    for _ in 0..<2 {
      _ = dump.makeReader().read(from: PageFrameNumber(0), count: 10)
      _ = dump.read(KdumpPageDefect.frame)
    }
    let damage = dump.damage.first.first?.damage
    switch defect {
    case .descriptorNeverWritten, .dataBeyondEnd, .dataOffsetWraps:
      #expect(dump.damage.count == 0)
      return
    case .sizeZero: #expect(damage == .badSize(0))
    case .sizeAbovePage: #expect(damage == .badSize(4097))
    case .plainPageTooShort: #expect(damage == .badSize(4095))
    case .unknownFlag: #expect(damage == .unknownCompression(flags: 0x40))
    case .twoFlags: #expect(damage == .unknownCompression(flags: 3))
    case .zlibDataDamaged, .zlibDataOfHalfAPage: #expect(damage == .undecodable(codec: "zlib"))
    case .lzoDataDamaged: #expect(damage == .undecodable(codec: "LZO"))
    case .snappyDataDamaged: #expect(damage == .undecodable(codec: "snappy"))
    case .zstdDataDamaged: #expect(damage == .undecodable(codec: "zstd"))
    }
    // Met four times, counted once.
    #expect(dump.damage.count == 1)
    #expect(dump.damage.first.map(\.frame) == [KdumpPageDefect.frame])
  }

  @Test func tellsTheLowestDamagedPagesFirst() throws {
    var file = Self.memory.kdump(Self.options())
    let frames: [UInt64] = [199, 7, 150, 66, 3, 64 + 5, 120]
    for frame in frames {
      // 60 pages below frame 63, 2 below frame 65 are no RAM; 70 to 89 are left out.
      let rank = Self.memory.frames.count { $0.rawValue < frame && !Self.excluded.contains($0) }
      file.store(UInt32(5000), at: 4 * 4096 + 24 * UInt64(rank) + 8)
    }
    let dump = try openDump(file)
    for frame in frames { _ = dump.read(PageFrameNumber(frame)) }
    #expect(dump.damage.count == frames.count)
    #expect(dump.damage.first.map(\.frame.rawValue) == Array(frames.sorted().prefix(5)))
    #expect(
      dump.damage.first.first?.description.contains(
        "page frame 0x3 at offset 0x4000 of") == true)
  }
}
