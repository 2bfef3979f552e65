import DumpFiles
import Memory
import SyntheticDumps
import Testing

typealias Load = SyntheticELF.Load

@Suite struct ELFTests {
  static let text = "OSRELEASE=6.1.0\nPAGESIZE=4096\n"

  /// RAM with holes: below 640 KiB, from 1 MiB on, and above 4 GiB.
  static let memory: SyntheticMemory = {
    var generator = SeededGenerator(seed: 1)
    return SyntheticMemory(
      randomIn: [1..<30, 0x40..<0x60, 0x10_0000..<0x10_0010], using: &generator)
  }()

  static func truth(_ memory: SyntheticMemory) -> (PageFrameNumber) -> Expected {
    { frame in memory[frame].map { .bytes($0) } ?? .absent(.notInDump) }
  }

  @Test(arguments: SyntheticELF.Style.allCases, [false, true])
  func readsEveryPage(style: SyntheticELF.Style, hasExtendedCount: Bool) throws {
    let notes: [SyntheticNote] = [
      .processStatus(cpu: 0), .processStatus(cpu: 1),
      SyntheticNote(name: "QEMU", type: 0, description: [1, 2, 3]), .vmcoreinfo(Self.text),
    ]
    let dump = try openDump(
      Self.memory.elf(
        SyntheticELF(style: style, notes: notes, hasExtendedCount: hasExtendedCount)))
    #expect(dump.format == .elf)
    #expect(dump.format.description == "ELF vmcore")
    #expect(dump.dumpLevel == nil)
    #expect(!dump.isIncomplete)
    #expect(!dump.hasErasures)
    #expect(dump.frameRanges == Self.memory.frameRanges)
    #expect(dump.vmcoreinfo == Array(Self.text.utf8))
    #expect(dump.notes.map(\.name) == notes.map(\.name))
    #expect(dump.notes.map(\.type) == notes.map(\.type))
    #expect(dump.notes.map(\.description) == notes.map(\.description))
    expectReads(dump, in: 0..<0x80, Self.truth(Self.memory))
    expectReads(dump, in: 0xf_fff0..<0x10_0020, Self.truth(Self.memory))
  }

  @Test func saysNotInDumpUpToTheLastFrameNumber() throws {
    let dump = try openDump(Self.memory.elf())
    for frame: UInt64 in [1 << 40, 1 << 52, UInt64.max >> 12, UInt64.max - 3, UInt64.max] {
      let number = PageFrameNumber(frame)
      #expect(dump.read(number) == .absent(.notInDump))
      #expect(
        dump.makeReader().read(from: number, count: 5)
          == Array(repeating: .absent(.notInDump), count: 5))
      #expect(dump.presence(from: number, limit: 7).absence == .notInDump)
      #expect(dump.presence(from: number, limit: .max).count > 0)
    }
  }

  @Test func leavesTheRestOfAnUnevenBufferAlone() throws {
    let reader = try openDump(Self.memory.elf()).makeReader()
    var buffer = [UInt8](repeating: 0xa5, count: 4096 + 100)
    let results = unsafe buffer.withUnsafeMutableBytes {
      unsafe reader.read(from: PageFrameNumber(1), into: $0)
    }
    #expect(results == [nil])
    #expect(Array(buffer[..<4096]) == Self.memory[PageFrameNumber(1)])
    #expect(buffer[4096...].allSatisfy { $0 == 0xa5 })
  }

  @Test func readsARunOfMoreFramesThanOnePiece() throws {
    var memory = SyntheticMemory()
    for frame: UInt64 in 0..<2500 where frame != 2049 {
      memory[PageFrameNumber(frame)] = [UInt8](repeating: UInt8(frame % 251), count: 4096)
    }
    for file in [memory.elf(), memory.kdump()] {
      let run = try openDump(file).makeReader().read(from: PageFrameNumber(0), count: 2500)
      #expect(run == (0..<2500).map { Self.truth(memory)(PageFrameNumber($0)) })
    }
  }

  // The kernel-text load of /proc/vmcore lies over one of RAM.
  @Test func takesOverlappedBytesFromTheFirstLoadThatHasThem() throws {
    let first = [UInt8](repeating: 1, count: 3 * 4096)
    let second = [UInt8](repeating: 2, count: 6 * 4096)
    let file = SyntheticMemory().elf(
      SyntheticELF(loads: [
        // Frame 9 is excluded here, and there in the next.
        Load(physical: 0x9000, fileSize: 0, memorySize: 0x1000),
        Load(physical: 0x4000, fileSize: 3 * 4096, content: first),
        Load(physical: 0x2000, fileSize: 6 * 4096, memorySize: 0x7000, content: second),
        Load(physical: 0x9000, fileSize: 4096, content: [UInt8](repeating: 3, count: 4096)),
      ]))
    let dump = try openDump(file)
    let range = PageFrameNumber(2)..<PageFrameNumber(10)
    #expect(dump.frameRanges == [range])
    expectReads(dump, in: 0..<12) { frame in
      switch frame.rawValue {
      case 4...6: .bytes(Array(repeating: 1, count: 4096))
      case 2...7: .bytes(Array(repeating: 2, count: 4096))
      case 8: .absent(.excluded)
      case 9: .bytes(Array(repeating: 3, count: 4096))
      default: .absent(.notInDump)
      }
    }
  }

  @Test func saysExcludedWhereALoadHasMemoryButNoBytes() throws {
    let file = Self.memory.elf(
      SyntheticELF(loads: [
        Load(physical: 0x1000, fileSize: 0x2000, memorySize: 0x5000),
        Load(physical: 0x6000, fileSize: 0x1000),
      ]))
    let dump = try openDump(file)
    #expect(!dump.isIncomplete)
    #expect(dump.frameRanges == [PageFrameNumber(1)..<PageFrameNumber(7)])
    expectReads(dump, in: 0..<10) { frame in
      switch frame.rawValue {
      case 1, 2, 6: Self.truth(Self.memory)(frame)
      case 3...5: .absent(.excluded)
      default: .absent(.notInDump)
      }
    }
  }

  @Test func joinsAFrameFromPartsOfLoads() throws {
    let file = Self.memory.elf(
      SyntheticELF(loads: [
        // Frame 1 in two loads; frame 2 whole; frame 3 with a hole in its middle; frame 5 up to
        // where RAM ends within it; frame 7 with a tail that ELF defines as zero.
        Load(physical: 0x1800, fileSize: 0x1900),
        Load(physical: 0x1000, fileSize: 0x800),
        Load(physical: 0x3e00, fileSize: 0x200),
        Load(physical: 0x5000, fileSize: 0xc00),
        Load(physical: 0x7000, fileSize: 0x10, memorySize: 0x1000),
      ]))
    func part(_ frame: UInt64, _ pieces: Range<Int>...) -> Expected {
      let whole = Self.memory[PageFrameNumber(frame)] ?? []
      var page = [UInt8](repeating: 0, count: 4096)
      for piece in pieces { page.replaceSubrange(piece, with: whole[piece]) }
      return .bytes(page)
    }
    expectReads(try openDump(file), in: 0..<10) { frame in
      switch frame.rawValue {
      case 1, 2: Self.truth(Self.memory)(frame)
      case 3: part(3, 0..<0x100, 0xe00..<0x1000)
      case 5: part(5, 0..<0xc00)
      case 7: part(7, 0..<0x10)
      default: .absent(.notInDump)
      }
    }
  }

  @Test func saysTruncatedBeyondTheEndOfTheFile() throws {
    var file = Self.memory.elf()
    file.resize(to: file.size - 16 * 4096 - 3 * 4096 - 1)
    let dump = try openDump(file)
    #expect(dump.isIncomplete)
    #expect(dump.frameRanges == Self.memory.frameRanges)
    let truth: (PageFrameNumber) -> Expected = { frame in
      let expected = Self.truth(Self.memory)(frame)
      return frame.rawValue >= 0x5c && expected.absence == nil ? .absent(.truncated) : expected
    }
    expectReads(dump, in: 0..<0x80, truth)
    expectReads(dump, in: 0xf_fff0..<0x10_0020, truth)
  }

  @Test func prefersBytesToTruncationAndTruncationToExclusion() throws {
    var file = Self.memory.elf(
      SyntheticELF(loads: [
        Load(physical: 0x1000, fileSize: 0x3000),
        Load(physical: 0x3000, fileSize: 0, memorySize: 0x2000),
        Load(physical: 0x4000, fileSize: 0x1000),
      ]))
    // Loads 1 to 3 have their headers at 120, 176 and 232; p_offset at +8.
    file.store(file.size - 0x1000, at: 232 + 8)
    file.store(UInt64.max - 0x800, at: 120 + 8)
    let dump = try openDump(file)
    #expect(dump.isIncomplete)
    expectReads(dump, in: 0..<6) { frame in
      switch frame.rawValue {
      case 1...3: .absent(.truncated)
      case 4: Self.truth(Self.memory)(frame)
      default: .absent(.notInDump)
      }
    }
  }

  @Test func readsHolesOfASparseFileAsZeros() throws {
    let size: UInt64 = 1 << 40
    var file = Self.memory.elf(SyntheticELF(loads: [Load(physical: 0, fileSize: 0)]))
    file.store(size, at: 120 + 32)
    file.store(size, at: 120 + 40)
    file.resize(to: size + 0x10_0000)
    let dump = try openDump(file)
    #expect(!dump.isIncomplete)
    #expect(dump.frameRanges == [PageFrameNumber(0)..<PageFrameNumber(size >> 12)])
    let last = size >> 12
    expectReads(dump, in: last - 20..<last + 3) { frame in
      frame.rawValue < last ? .bytes(Array(repeating: 0, count: 4096)) : .absent(.notInDump)
    }
  }

  @Test func saysIncompleteWhereMakedumpfileMarkedIt() throws {
    var file = Self.memory.elf()
    file.store(UInt32(1), at: 48)
    #expect(try openDump(file).isIncomplete)
  }

  // /proc/kcore gives p_paddr so where a range has no physical address.
  @Test func ignoresLoadsBeyondPhysicalAddresses() throws {
    let file = Self.memory.elf(
      SyntheticELF(loads: [
        Load(physical: .max, fileSize: 0x2000),
        Load(physical: 0x1000, fileSize: 0x1000),
        Load(physical: (1 << 52) - 0x1000, fileSize: 0x1000, memorySize: .max),
      ]))
    let dump = try openDump(file)
    let limit: UInt64 = 1 << 40
    #expect(
      dump.frameRanges == [
        PageFrameNumber(1)..<PageFrameNumber(2),
        PageFrameNumber(limit - 1)..<PageFrameNumber(limit),
      ])
    expectReads(dump, in: 0..<4) { frame in
      frame.rawValue == 1 ? Self.truth(Self.memory)(frame) : .absent(.notInDump)
    }
    expectReads(dump, in: limit - 2..<limit + 2) { frame in
      frame.rawValue == limit - 1
        ? .bytes(Array(repeating: 0, count: 4096)) : .absent(.notInDump)
    }
  }

  @Test func findsFramesAmongAHundredThousandLoads() throws {
    let count: UInt64 = 100_000
    // Every other frame: excluded, but for a few in between that have bytes.
    let loads = (0..<count).map { index in
      index % 1000 == 7
        ? Load(
          physical: index * 0x2000, fileSize: 0x1000, content: Array(repeating: 9, count: 4096))
        : Load(physical: index * 0x2000, fileSize: 0, memorySize: 0x1000)
    }
    let dump = try openDump(SyntheticMemory().elf(SyntheticELF(loads: loads)))
    #expect(dump.frameRanges.count == Int(count))
    for start in [0, 2000, 199_000] as [UInt64] {
      expectReads(dump, in: start..<start + 1100) { frame in
        let index = frame.rawValue / 2
        return frame.rawValue % 2 == 1 || index >= count
          ? .absent(.notInDump)
          : index % 1000 == 7
            ? .bytes(Array(repeating: 9, count: 4096)) : .absent(.excluded)
      }
    }
  }

  /// Random loads, unaligned and overlapping, against a model that looks at every byte by itself.
  @Test(arguments: 0..<40 as Range<UInt64>)
  func agreesWithAByteByByteModel(seed: UInt64) throws {
    var generator = SeededGenerator(seed: seed)
    let frames: UInt64 = 8
    var loads: [Load] = []
    for index in 0..<Int.random(in: 1...8, using: &generator) {
      let unit: UInt64 = Bool.random(using: &generator) ? 0x1000 : 0x234
      let start = UInt64.random(in: 0..<frames << 12, using: &generator) / unit * unit
      let fileSize = UInt64.random(in: 0...0x5000, using: &generator) / unit * unit
      let more = UInt64.random(in: 0...0x3000, using: &generator) / unit * unit
      loads.append(
        Load(
          physical: start, fileSize: fileSize, memorySize: fileSize + more,
          content: Array(repeating: UInt8(index + 1), count: Int(fileSize))))
    }
    var file = SyntheticMemory().elf(SyntheticELF(loads: loads))
    let whole = file.size
    if Bool.random(using: &generator) {
      file.resize(to: whole - min(whole - 600, UInt64.random(in: 0...0x4000, using: &generator)))
    }

    // For each byte: what the loads have of it, the best first; 3 is nothing.
    let pages = frames + 10
    var model = [(supply: Int, value: UInt8)](repeating: (3, 0), count: Int(pages << 12))
    for (index, load) in loads.enumerated() {
      let offset: UInt64 = file.load(at: 64 + 56 * UInt64(index + 1) + 8)
      for byte in 0..<max(load.fileSize, load.memorySize) {
        let supply = byte >= load.fileSize ? 2 : offset + byte < file.size ? 0 : 1
        let address = Int(load.physical + byte)
        if supply < model[address].supply {
          model[address] = (supply, supply == 0 ? UInt8(index + 1) : 0)
        }
      }
    }
    expectReads(try openDump(file), in: 0..<pages) { frame in
      let bytes = model[Int(frame.rawValue) << 12..<Int(frame.rawValue + 1) << 12]
      if bytes.contains(where: { $0.supply == 1 }) { return .absent(.truncated) }
      if bytes.contains(where: { $0.supply == 0 }) { return .bytes(bytes.map(\.value)) }
      return .absent(bytes.contains { $0.supply == 2 } ? .excluded : .notInDump)
    }
  }

  static let errors: [ELFDefect: String] = [
    .headerCut: "dump.truncated-header",
    .class32: "dump.not-64-bit",
    .bigEndian: "dump.not-little-endian",
    .machineIsArm64: "dump.other-machine",
    .isExecutable: "dump.not-a-core",
    .isRelocatable: "dump.not-a-core",
    .noProgramHeaders: "dump.no-memory",
    .noLoads: "dump.no-memory",
    .programHeadersOfOtherSize: "dump.bad-header",
    .programHeadersBeyondEnd: "dump.truncated-header",
    .programHeaderOffsetWraps: "dump.truncated-header",
    .sectionHeaderBeyondEnd: "dump.truncated-header",
    .extendedCountBeyondEnd: "dump.truncated-header",
    .tooManyProgramHeaders: "dump.bad-header",
  ]

  @Test(arguments: ELFDefect.allCases)
  func namesTheDefect(_ defect: ELFDefect) {
    #expect(openingError(defect.file)?.name == Self.errors[defect])
  }

  // QEMU's own loads have p_vaddr 0, and p_paddr 0 where RAM starts.
  @Test func takesALoadAtAddressZeroForMemoryOfAMachine() throws {
    let dump = try openDump(
      Self.memory.elf(
        SyntheticELF(
          notes: [.processStatus(cpu: 0)],
          loads: [Load(physical: 0, virtual: 0, fileSize: 0x2000)])))
    #expect(dump.frameRanges == [PageFrameNumber(0)..<PageFrameNumber(2)])
  }

  // As many as an ELF header cannot count, so that a section header does (PN_XNUM).
  @Test func readsMoreLoadsThanTheHeaderCounts() throws {
    let count: UInt64 = 70_000
    func page(_ index: UInt64) -> [UInt8] {
      [UInt8](repeating: UInt8(index / 1000 + 1), count: 4096)
    }
    var loads: [Load] = []
    for index in 0..<count {
      // Every other frame; of each thousandth the bytes are there.
      let size: UInt64 = index % 1000 == 0 ? 4096 : 0
      loads.append(
        Load(physical: index << 13, fileSize: size, memorySize: 4096, content: page(index)))
    }
    let dump = try openDump(SyntheticMemory().elf(SyntheticELF(loads: loads)))
    #expect(dump.frameRanges.count == Int(count))
    for frame in [0..<50, 59_990..<60_010, 139_980..<140_010] as [Range<UInt64>] {
      expectReads(dump, in: frame) { frame in
        let index = frame.rawValue / 2
        if frame.rawValue % 2 != 0 || index >= count { return .absent(.notInDump) }
        return index % 1000 == 0
          ? .bytes(page(index)) : .absent(.excluded)
      }
    }
  }

  @Test func countsThePagesThatAreCutOff() throws {
    var file = Self.memory.elf()
    file.resize(to: file.size - 5 * 4096 - 1)
    let dump = try openDump(file)
    #expect(dump.isIncomplete)
    #expect(dump.lostPages == 6)
  }

  @Test func readsProcKcore() throws {
    let dump = try openDump(
      Self.memory.kcore(
        vmcoreinfo: Self.text, text: PageFrameNumber(0x42)..<PageFrameNumber(0x50)))
    #expect(dump.format == .kcore)
    #expect(dump.process == nil)
    #expect(!dump.isIncomplete)
    #expect(dump.vmcoreinfo == Array(Self.text.utf8))
    // Registers of zero would be taken for those of a processor.
    #expect(dump.notes.map(\.name) == ["VMCOREINFO"])
    #expect(dump.frameRanges == Self.memory.frameRanges)
    expectReads(dump, in: 0..<0x80, Self.truth(Self.memory))
    expectReads(dump, in: 0xf_fff0..<0x10_0020, Self.truth(Self.memory))
  }
}
