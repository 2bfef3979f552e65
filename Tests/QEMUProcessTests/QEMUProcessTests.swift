import DumpFiles
import Guest
import Memory
import SyntheticDumps
import SystemPackage
import Testing

@testable import QEMUProcess

/// Opens a core and finds the QEMU in it, as the program does.
func openQEMU(_ file: SyntheticFile) throws -> (dump: DumpFile, qemu: QEMUProcess) {
  let saved = try file.save()
  let dump = try DumpFile.open(FilePath(saved.path))
  let process = try #require(dump.process)
  return (dump, try QEMUProcess(process, in: dump, isTruncated: dump.isIncomplete))
}

func error(_ file: SyntheticFile) throws -> QEMUError? {
  do {
    _ = try openQEMU(file)
    return nil
  } catch let error as QEMUError {
    return error
  }
}

/// What the guest of a ``SyntheticQEMU`` sees: pages of its RAM and ROM by guest-physical address.
func truth(_ qemu: SyntheticQEMU, _ core: SyntheticCore) -> [UInt64: [UInt8]] {
  var pages: [UInt64: [UInt8]] = [:]
  for range in qemu.ranges {
    guard let index = range.block, qemu.blocks[index].isRAM,
      !qemu.blocks[index].isDevice
    else { continue }
    for offset in stride(from: 0, to: range.size, by: Int(pageSize)) {
      pages[range.start + offset] = core.memory.bytes(
        at: PhysicalAddress(qemu.host(index) + range.offset + offset), count: Int(pageSize))
    }
  }
  return pages
}

/// Every page of the guest is the true one, and no page is too many.
func expectTruth(_ qemu: SyntheticQEMU, _ core: SyntheticCore) throws {
  let (dump, found) = try openQEMU(core.file)
  let guest = found.guest()
  let truth = truth(qemu, core)
  #expect(guest.memory.size == UInt64(truth.count) * pageSize)
  let memory = GuestMemory(guest.memory, in: dump)
  for (address, page) in truth {
    #expect(try memory.page(PageFrameNumber(address >> pageShift)) == page)
  }
  #expect(MemorySurvey(of: guest.memory).missingPages == 0)
}

struct QEMUProcessTests {
  @Test(arguments: [false, true])
  func everyPageIsTheGuests(isMoved: Bool) throws {
    var qemu = SyntheticQEMU.pc
    if isMoved { qemu.regionLayout = .moved }
    try expectTruth(qemu, qemu.core)
  }

  @Test func programStartedByTheLoaderIsQEMU() throws {
    var qemu = SyntheticQEMU.pc
    qemu.isStartedByLoader = true
    let core = qemu.core
    try expectTruth(qemu, core)
    #expect(try openQEMU(core.file).qemu.executable?.path == qemu.program)
  }

  @Test func moreSegmentsThanElfCounts() throws {
    let qemu = SyntheticQEMU.pc
    var core = qemu.core
    for index in 0..<UInt64(66_000) {
      core.mappings.append(
        SyntheticCore.Mapping(0x7000_0000_0000 + index * 0x2000, size: 0x1000, isDumped: false))
    }
    try expectTruth(qemu, core)
  }

  @Test func readOnlyMemoryIsMarked() throws {
    let regions = try openQEMU(SyntheticQEMU.pc.core.file).qemu.guest().memory.regions
    #expect(regions.filter(\.isReadOnly).map(\.start.rawValue) == [0xfffc_0000])
  }

  /// A device of 32 blocks, of which some are plugged in.
  private static func virtioMemory(_ plugged: Set<Int>) -> SyntheticQEMU {
    var qemu = SyntheticQEMU.pc
    qemu.blocks[5] = SyntheticQEMU.Block("v0", size: 32 * pageSize)
    qemu.blocks[5].plugged = (0..<32).map(plugged.contains)
    qemu.ranges[qemu.ranges.count - 1].size = 32 * pageSize
    return qemu
  }

  @Test(arguments: [[], [0], [31], [3, 4, 5, 17], Array(0..<32)])
  func unpluggedMemoryIsNotTheGuests(_ plugged: [Int]) throws {
    let qemu = Self.virtioMemory(Set(plugged))
    let map = try openQEMU(qemu.core.file).qemu.guest().memory
    for block in 0..<32 {
      let address = GuestPhysicalAddress(0x1_8000_0000 + UInt64(block) * pageSize)
      #expect((map.region(holding: address) != nil) == plugged.contains(block))
    }
    #expect(
      map.size == 0x10_0000 - 0x20000 + 0x4000 + UInt64(plugged.count) * pageSize)
  }

  /// A bitmap that does not agree with the device's size is none: no memory is lost by it.
  @Test func deviceThatDisagreesWithItselfIsNotBelieved() throws {
    var qemu = Self.virtioMemory([1, 2])
    qemu.blocks[5].pluggedSize = 3 * pageSize
    let map = try openQEMU(qemu.core.file).qemu.guest().memory
    #expect(map.size == 0x10_0000 - 0x20000 + 0x4000 + 32 * pageSize)
  }

  // MARK: Identity

  @Test func guestIsCalledWhatTheCommandLineSays() throws {
    let identity = try openQEMU(SyntheticQEMU.pc.core.file).qemu.guest().identity
    #expect(identity.name == "web1")
    #expect(identity.uuid == "u-1")
    #expect(identity.pid == 4711)
    #expect(identity.command == "qemu-system-x86")
    #expect(identity.backend == "QEMU (TCG)")
  }

  @Test func noteHasTheNameWhereTheStackIsMissing() throws {
    var qemu = SyntheticQEMU.pc
    qemu.hasStack = false
    #expect(try openQEMU(qemu.core.file).qemu.guest().identity.name == "web1")
  }

  @Test func nameThatTheNoteCutsOffIsNotUsed() throws {
    var qemu = SyntheticQEMU.pc
    qemu.hasStack = false
    qemu.arguments = [
      "qemu-system-x86_64", "-name", "guest=" + String(repeating: "x", count: 100),
    ]
    #expect(try openQEMU(qemu.core.file).qemu.guest().identity.name == nil)
  }

  @Test func mappedVCPUsTellKVM() throws {
    var qemu = SyntheticQEMU.pc
    qemu.slots = []
    #expect(try openQEMU(qemu.core.file).qemu.guest().identity.backend == "QEMU (KVM)")
  }

  // MARK: Missing memory

  @Test func blockThatWasNotDumpedIsMissingAndNamed() throws {
    var qemu = SyntheticQEMU.pc
    qemu.blocks[0].isDumped = false
    qemu.blocks[0].file = "/dev/hugepages/web1"
    let guest = try openQEMU(qemu.core.file).qemu.guest()
    let survey = MemorySurvey(of: guest.memory)
    #expect(survey.missing == [.notDumped: (0xa0000 + 0x20000 + 0x20000) >> pageShift])
    #expect(survey.present == 5)
    let finding = try #require(guest.findings.first { $0.name == "memory.block-not-dumped" })
    #expect(finding.text.contains("pc.ram"))
    #expect(finding.text.contains("/dev/hugepages/web1"))
  }

  /// Cores made of a host's dump say themselves why they lack pages (PF_MASKOS of p_flags).
  @Test func reasonsThatTheCoreTellsAreTaken() throws {
    let qemu = SyntheticQEMU.pc
    var core = qemu.core
    let ram = try #require(core.mappings.firstIndex { $0.start == qemu.host(0) })
    let whole = core.mappings[ram]
    core.mappings.remove(at: ram)
    // Two pages with bytes, three of zeros, one that was swapped out, one of which nothing is told.
    let parts: [(pages: UInt64, isDumped: Bool, code: UInt32)] = [
      (2, true, 0), (3, false, 1), (1, false, 2), (1, false, 0), (0, true, 0),
    ]
    var start = whole.start
    for part in parts {
      let size =
        part.pages == 0 ? whole.start + whole.size - start : part.pages << pageShift
      core.mappings.append(
        SyntheticCore.Mapping(
          start, size: size, isDumped: part.isDumped, flags: 7 | part.code << 20))
      start += size
    }
    let (dump, found) = try openQEMU(core.file)
    let guest = found.guest()
    let survey = MemorySurvey(of: guest.memory)
    #expect(survey.missing == [.swappedOut: 1, .notDumped: 1])
    #expect(survey.zero == [.neverTouched: 3])
    let runs = guest.memory.runs(from: GuestPhysicalAddress(0), pages: 8)
    #expect(runs.map(\.pages) == [2, 3, 1, 1, 1])
    #expect(runs[2].content == .missing(.swappedOut))
    let memory = GuestMemory(guest.memory, in: dump)
    #expect(try memory.page(PageFrameNumber(2)).isZero)
    #expect(throws: MemoryError.self) { try memory.page(PageFrameNumber(5)) }
    #expect(
      try memory.page(PageFrameNumber(1))
        == core.memory.bytes(at: PhysicalAddress(qemu.host(0) + pageSize), count: 4096))
    #expect(!guest.findings.contains { $0.name == "memory.block-not-dumped" })
  }

  @Test func truncatedCoreGivesWhatItHas() throws {
    let qemu = SyntheticQEMU.pc
    var file = qemu.core.file
    // The stack is at the end, before it the blocks: the last but one and half of the first go.
    file.resize(to: file.size - 0x4000 - 0x1000 - 0x2000 - 0x2000 - 0x4000 - 0x4000 - 0x80000)
    let (dump, found) = try openQEMU(file)
    #expect(dump.isIncomplete)
    let survey = MemorySurvey(of: found.guest().memory)
    #expect(
      survey.missing == [.truncated: (0x20000 + 0x20000 + 0x20000 + 0x4000 + 0x1000) >> pageShift])
    #expect(survey.present == 0x80000 >> pageShift)
    #expect(found.guest().identity.name == "web1")
  }

  @Test(arguments: [
    "sev-guest,id=s", "{\"qom-type\":\"sev-snp-guest\",\"id\":\"s\"}", "tdx-guest,id=t",
  ])
  func encryptedMemoryIsNotTakenForData(_ object: String) throws {
    var qemu = SyntheticQEMU.pc
    qemu.arguments += ["-object", object]
    let guest = try openQEMU(qemu.core.file).qemu.guest()
    #expect(MemorySurvey(of: guest.memory).missing.keys.map(\.self) == [.encrypted])
    #expect(guest.findings.contains { $0.name == "guest.encrypted" })
  }

  @Test func privateMemoryOfTheGuestIsInNoMapping() throws {
    var qemu = SyntheticQEMU.pc
    qemu.blocks[0].flags = 1 << 12
    let survey = MemorySurvey(of: try openQEMU(qemu.core.file).qemu.guest().memory)
    #expect(survey.missing == [.encrypted: (0xa0000 + 0x20000 + 0x20000) >> pageShift])
  }
}

/// Cores in which something is wrong.
struct DamagedQEMUTests {
  private static func core(_ change: (inout SyntheticCore) -> Void) -> SyntheticFile {
    var core = SyntheticQEMU.pc.core
    change(&core)
    return core.file
  }

  /// The link behind the third block leads back, elsewhere, or out of the core.
  @Test(arguments: [
    SyntheticQEMU.block(0), SyntheticQEMU.block(2), SyntheticQEMU.block(3) + 8, 0x1234, .max,
    SyntheticQEMU.heap + 0x1_0000 - 8,
  ])
  func brokenLinkEndsTheList(_ link: UInt64) throws {
    let file = Self.core { $0.store(link, at: SyntheticQEMU.block(2) + 336) }
    let qemu = try openQEMU(file).qemu
    #expect(qemu.blocks.blocks.map(\.name) == ["pc.ram", "pc.bios", "system.flash0"])
    #expect(qemu.blocks.isCutOff)
  }

  /// The flat view then has regions whose blocks are not known.
  @Test func cutListIsTold() throws {
    let file = Self.core {
      $0.store(SyntheticQEMU.block(0), at: SyntheticQEMU.block(4) + 336)
      $0.store(UInt32(8), at: SyntheticQEMU.viewCount)
    }
    let guest = try openQEMU(file).qemu.guest()
    #expect(guest.findings.contains { $0.name == "qemu.ram-list-cut" })
    #expect(MemorySurvey(of: guest.memory).missingPages == 0)
  }

  enum BlockLie: String, CaseIterable {
    case usedBeyondMaximum, noLength, hugeLength, unalignedHost, hostBeyondUserSpace, noHost
    case binaryName, endlessName, noRegion, wrongBackLink
  }

  /// A first block that cannot be one is none.
  @Test(arguments: BlockLie.allCases)
  func blockThatLiesIsNoBlock(_ lie: BlockLie) throws {
    let block = SyntheticQEMU.block(0)
    let file = Self.core { core in
      switch lie {
      case .usedBeyondMaximum: core.store(UInt64(0x20_0000), at: block + 48)
      case .noLength: core.store(UInt64(0), at: block + 48)
      case .hugeLength:
        core.store(UInt64(1) << 60, at: block + 48)
        core.store(UInt64(1) << 60, at: block + 56)
      case .unalignedHost: core.store(UInt64(0x7f00_0000_0001), at: block + 24)
      case .hostBeyondUserSpace: core.store(UInt64.max & ~0xfff, at: block + 24)
      case .noHost: core.store(UInt64(0), at: block + 24)
      case .binaryName: core.store(UInt8(7), at: block + 78)
      case .endlessName: core.write([UInt8](repeating: 0x61, count: 256), at: block + 76)
      case .noRegion: core.store(UInt64(0), at: block + 16)
      case .wrongBackLink: core.store(block, at: block + 344)
      }
    }
    // What is left looks like a list that starts within the first block.
    let found = try? openQEMU(file).qemu.blocks.blocks
    #expect(found?.contains { $0.address.rawValue == block } != true)
  }

  enum ViewLie: String, CaseIterable {
    case outOfOrder, overlap, beyondBlock, offsetBeyondBlock, unknownBlock, unreadableRegion
    case noRanges, tooManyRanges, rangesElsewhere, otherName, wraps, highStart
  }

  /// A flat view that does not fit together is not used.
  @Test(arguments: ViewLie.allCases)
  func flatViewThatLiesIsNotUsed(_ lie: ViewLie) throws {
    let first = SyntheticQEMU.flatRanges
    let file = Self.core { core in
      switch lie {
      case .outOfOrder: core.store(UInt64(0xf_0000_0000), at: first + 16)
      case .overlap: core.store(UInt64(0xb0000), at: first + 32)
      case .beyondBlock: core.store(UInt64(0x20_0000), at: first + 7 * 64 + 32)
      case .offsetBeyondBlock: core.store(UInt64.max - 0xfff, at: first + 7 * 64 + 8)
      case .unknownBlock:
        core.store(SyntheticQEMU.block(0) + 8, at: SyntheticQEMU.spareRegion + 56)
        core.store(SyntheticQEMU.spareRegion, at: first)
      case .unreadableRegion: core.store(UInt64(0x1000), at: first)
      case .noRanges: core.store(UInt32(0), at: SyntheticQEMU.viewCount)
      case .tooManyRanges: core.store(UInt32.max, at: SyntheticQEMU.viewCount)
      case .rangesElsewhere: core.store(UInt64.max - 7, at: SyntheticQEMU.viewCount - 8)
      case .otherName: core.store(UInt64(0), at: SyntheticQEMU.addressSpace + 16)
      case .wraps: core.store(UInt64.max - 0xfff, at: first + 32)
      case .highStart: core.store(UInt64(1), at: first + 24)
      }
    }
    let qemu = try openQEMU(file).qemu
    #expect(qemu.layout.findings.map(\.name) == ["qemu.layout-by-rule"])
  }

  @Test func heapThatWasCutOffIsARAMListThatIsMissing() throws {
    let file = Self.core { core in
      core.mappings.removeAll { $0.start == SyntheticQEMU.heap }
    }
    #expect(
      try error(file) == .noRAMBlocks(program: "qemu-system-x86_64", isTruncated: false))
  }

  @Test func otherProgramIsNoQEMU() throws {
    var core = SyntheticCore()
    core.command = "sleep"
    core.mappings = [SyntheticCore.Mapping(0x5555_0000_0000, size: 0x2000, file: "/usr/bin/sleep")]
    core.auxiliaryVector = [(9, 0x5555_0000_0100)]
    #expect(try error(core.file) == .notQEMU(program: "sleep"))
  }

  @Test(arguments: ["qemu-system-aarch64", "qemu-system-i386", "qemu-system-ppc64"])
  func otherTargetIsRefused(_ name: String) throws {
    var qemu = SyntheticQEMU.pc
    qemu.program = "/usr/bin/" + name
    #expect(try error(qemu.core.file) == .otherTarget(program: name))
    qemu.isStartedByLoader = true
    #expect(try error(qemu.core.file) == .otherTarget(program: name))
  }

  @Test(arguments: ["/usr/bin/qemu-system-x86_64 (deleted)", "/usr/libexec/qemu-kvm"])
  func otherNamesOfQEMUAreTaken(_ name: String) throws {
    var qemu = SyntheticQEMU.pc
    qemu.program = name
    try expectTruth(qemu, qemu.core)
  }

  /// No damage to what QEMU had in memory, or to the notes, ends the program.
  @Test(arguments: 0..<40)
  func damageIsSurvived(seed: UInt64) throws {
    var generator = SeededGenerator(seed: seed)
    var qemu = SyntheticQEMU.pc
    qemu.slots = qemu.ranges.filter { $0.block != nil }
    for _ in 0..<5 {
      var core = qemu.core
      for (address, size) in [
        (SyntheticQEMU.base, 0x1000), (SyntheticQEMU.ramList, 0x800), (SyntheticQEMU.heap, 0x400),
        (SyntheticQEMU.block(0), 0xc00), (SyntheticQEMU.slotArray, 0x200),
      ] {
        var bytes = core.memory.bytes(at: PhysicalAddress(address), count: size)
        for _ in 0..<4 { bytes.damage(using: &generator) }
        core.write(bytes, at: address)
      }
      var file = core.file
      if seed % 2 == 1 {
        var start = Array(file.bytes.prefix(0x1000))
        start.damage(using: &generator)
        file.write(start, at: 0)
      }
      let saved = try file.save()
      guard let dump = try? DumpFile.open(FilePath(saved.path)), let process = dump.process,
        let found = try? QEMUProcess(process, in: dump)
      else { continue }
      _ = MemorySurvey(of: found.guest().memory)
    }
  }
}

/// The program that the process ran, where it is at hand as a file.
struct ProgramTests {
  private static func open(
    _ qemu: SyntheticQEMU, program: SyntheticQEMU
  ) throws -> QEMUProcess {
    let core = try qemu.core.file.save()
    let file = try program.programFile.save()
    let dump = try DumpFile.open(FilePath(core.path))
    return try QEMUProcess(
      try #require(dump.process), in: dump, program: try ProgramFile(FilePath(file.path)))
  }

  @Test func symbolsAreReadWhereTheCoreLeavesThemOut() throws {
    #expect(
      try openQEMU(SyntheticQEMU.pc.core.file).qemu.symbols?.address(of: "ram_list") == nil)
    let qemu = try Self.open(.pc, program: .pc)
    let symbols = try #require(qemu.symbols)
    #expect(symbols.address(of: "ram_list")?.rawValue == SyntheticQEMU.ramList)
    #expect(symbols.address(of: "address_space_memory")?.rawValue == SyntheticQEMU.addressSpace)
    #expect(symbols.address(of: "kvm_state") == nil)
    #expect(qemu.executable?.buildID == SyntheticQEMU.pc.buildID)
    #expect(qemu.executable?.base.rawValue == SyntheticQEMU.base)
    #expect(qemu.blocks.blocks.count == SyntheticQEMU.pc.blocks.count)
  }

  @Test func fileOfAnotherBuildIsRefused() throws {
    var other = SyntheticQEMU.pc
    other.buildID[0] = 0xff
    #expect(throws: QEMUError.self) { try Self.open(.pc, program: other) }
  }

  @Test func programStartedByTheLoaderHasItsOwnSymbols() throws {
    var qemu = SyntheticQEMU.pc
    qemu.isStartedByLoader = true
    #expect(try Self.open(qemu, program: .pc).blocks.blocks.count == qemu.blocks.count)
  }
}

/// Where the guest's memory is when QEMU's own view of it is lost.
struct LayoutTests {
  private static func withoutView(_ qemu: SyntheticQEMU) -> SyntheticFile {
    var core = qemu.core
    core.store(UInt64(0), at: SyntheticQEMU.addressSpace + 32)
    return core.file
  }

  @Test func slotsOfKVMTellTheLayout() throws {
    var qemu = SyntheticQEMU.pc
    qemu.slots = qemu.ranges.filter { $0.block == 0 || $0.block == 1 }
    let layout = try openQEMU(Self.withoutView(qemu)).qemu.layout
    #expect(layout.findings.map(\.name) == ["qemu.layout-of-slots"])
    #expect(layout.ranges.map(\.start) == [0, 0xc0000, 0xfffc_0000, 0x1_0000_0000])
    #expect(layout.ranges.map(\.offset) == [0, 0xc0000, 0, 0xe0000])
    #expect(layout.ranges.map(\.isReadOnly) == [false, false, true, false])
  }

  /// Slots that are not all of the memory are something else that looks like slots.
  @Test(arguments: [
    [SyntheticQEMU.Range(0, size: 0xa0000, block: 0)],
    [
      SyntheticQEMU.Range(0x1000, size: 0xff000, block: 0, offset: 0x1000),
      SyntheticQEMU.Range(0xfffc_0000, size: 0x4000, block: 1),
    ],
  ])
  func slotsOfAPartAreNotUsed(_ slots: [SyntheticQEMU.Range]) throws {
    var qemu = SyntheticQEMU.pc
    qemu.blocks[0].size = 0x40_0000
    qemu.slots = slots
    let layout = try openQEMU(Self.withoutView(qemu)).qemu.layout
    #expect(layout.findings.map(\.name) == ["qemu.layout-by-rule"])
  }

  @Test func whatLooksLikeSlotsIsNotUsedWithoutKVM() throws {
    var qemu = SyntheticQEMU.pc
    qemu.slots = qemu.ranges.filter { $0.block == 0 }
    var core = qemu.core
    core.store(UInt64(0), at: SyntheticQEMU.addressSpace + 32)
    core.mappings.removeAll { $0.file == "anon_inode:kvm-vcpu:0" }
    let layout = try openQEMU(core.file).qemu.layout
    #expect(layout.findings.map(\.name) == ["qemu.layout-by-rule"])
  }

  /// GiB in memory, and the parts below and above 4 GiB.
  @Test(
    arguments: [
      (["-M", "pc"], 3, 3 << 30, 0), ([], 4, 3 << 30, 1 << 30),
      (["-machine", "pc-i440fx-7.2,accel=tcg"], 5, 3 << 30, 2 << 30),
      (["-machine", "accel=kvm,type=q35"], 2, 2 << 30, 0),
      (["-M", "pc-q35-9.0"], 3, 2 << 30, 1 << 30), (["-M", "microvm"], 4, 3 << 30, 1 << 30),
    ] as [([String], UInt64, UInt64, UInt64)])
  func machinesPlaceTheirMemoryByRule(
    _ arguments: [String], size: UInt64, low: UInt64, high: UInt64
  ) throws {
    var qemu = SyntheticQEMU.pc
    qemu.arguments += arguments
    qemu.blocks[0] = SyntheticQEMU.Block("pc.ram", size: size << 30)
    qemu.blocks[0].isDumped = false
    let layout = try openQEMU(Self.withoutView(qemu)).qemu.layout
    #expect(layout.findings.map(\.severity) == [.warning])
    #expect(layout.ranges.map(\.start) == (high > 0 ? [0, 1 << 32] : [0]))
    #expect(layout.ranges.map(\.size) == (high > 0 ? [low, high] : [low]))
  }

  @Test(arguments: [
    ["-M", "isapc"], ["-M", "xenfv"], ["-machine", "q35,max-ram-below-4g=1G"],
  ])
  func otherMachinesAreNotGuessed(_ arguments: [String]) throws {
    var qemu = SyntheticQEMU.pc
    qemu.arguments += arguments
    #expect(try error(Self.withoutView(qemu)) == .noLayout)
  }

  @Test func memoryThatMayLieAboveATebibyteIsNotGuessed() throws {
    var qemu = SyntheticQEMU.pc
    qemu.blocks[0] = SyntheticQEMU.Block("pc.ram", size: 1 << 40)
    qemu.blocks[0].isDumped = false
    #expect(try error(Self.withoutView(qemu)) == .noLayout)
  }
}
