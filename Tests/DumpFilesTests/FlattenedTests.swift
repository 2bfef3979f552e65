import Memory
import SyntheticDumps
import SystemPackage
import Testing

@testable import DumpFiles

@Suite struct FlattenedTests {
  typealias Record = SyntheticFile.Record

  static let memory: SyntheticMemory = {
    var generator = SeededGenerator(seed: 11)
    return SyntheticMemory(randomIn: [1..<40, 60..<90], using: &generator)
  }()

  static let dumps: [SyntheticFile] = {
    var options = KdumpTests.options()
    options.excluded = []
    return [
      memory.kdump(options), memory.elf(SyntheticELF(notes: [.vmcoreinfo("A=1\n")])),
    ]
  }()

  static func truth(_ frame: PageFrameNumber) -> Expected {
    guard let page = memory[frame] else { return .absent(.notInDump) }
    return .bytes(page)
  }

  @Test(arguments: 0..<6 as Range<UInt64>)
  func readsWhatTheFileHoldsInOrder(seed: UInt64) throws {
    var generator = SeededGenerator(seed: seed)
    for whole in Self.dumps {
      let file = SyntheticFile(flattened: whole.records(using: &generator))
      let dump = try openDump(file)
      let plain = try openDump(whole)
      #expect(dump.isFlattened && !plain.isFlattened)
      #expect(dump.format == plain.format)
      #expect(dump.formatDescription == plain.formatDescription + ", flattened")
      #expect(!dump.isIncomplete)
      #expect(dump.notes == plain.notes)
      #expect(dump.frameRanges == plain.frameRanges)
      expectReads(dump, in: 0..<100) { frame in plain.read(frame) ?? .absent(.corrupt) }
    }
  }

  /// However few places are remembered, all bytes are found.
  @Test(arguments: [1, 2, 7, 100, 1 << 19])
  func findsEveryByteWithAnyNumberOfCheckpoints(limit: Int) throws {
    var generator = SeededGenerator(seed: UInt64(limit))
    let whole = Self.dumps[0]
    let saved = try SyntheticFile(flattened: whole.records(using: &generator)).save()
    let file = try FlattenedFile(InputFile(FilePath(saved.path)), checkpointLimit: limit)
    let bytes = whole.bytes
    #expect(file.size == whole.size)
    for _ in 0..<500 {
      let offset = Int.random(in: 0..<bytes.count + 100, using: &generator)
      var buffer = [UInt8](repeating: 0xa5, count: Int.random(in: 0..<9000, using: &generator))
      let got = try unsafe buffer.withUnsafeMutableBytes {
        try unsafe file.read(at: UInt64(offset), into: $0)
      }
      let expected = bytes.dropFirst(offset).prefix(buffer.count)
      #expect(got == expected.count)
      #expect(buffer.prefix(got).elementsEqual(expected))
    }
  }

  @Test func laterRecordsHold() throws {
    let elf = Self.memory.elf()
    let bytes = elf.bytes
    // As makedumpfile does: the header is written again when all else is written.
    let dump = try openDump(
      SyntheticFile(flattened: [
        Record(offset: 0, bytes: [UInt8](repeating: 0, count: 64)),
        Record(offset: 64, bytes: Array(bytes[64...])),
        Record(offset: 0, bytes: Array(bytes[..<64])),
      ]))
    expectReads(dump, in: 0..<100, Self.truth)
  }

  /// Whatever was lost, no page is wrong: it has its bytes, or is not there.
  @Test(arguments: 0..<4 as Range<UInt64>)
  func saysTruncatedWhereRecordsAreCutOff(seed: UInt64) throws {
    var generator = SeededGenerator(seed: 100 + seed)
    for whole in Self.dumps {
      let bytes = whole.bytes
      let half = bytes.count / 2
      let file = SyntheticFile(flattened: [
        Record(offset: 0, bytes: Array(bytes[..<half])),
        Record(offset: UInt64(half), bytes: Array(bytes[half...])),
      ])
      var cut = file
      cut.resize(
        to: UInt64.random(in: UInt64(4096 + 16 + half)..<file.size - 16, using: &generator))
      let dump = try openDump(cut)
      #expect(dump.isIncomplete)
      var lost = 0
      for frame in (0..<100).map({ PageFrameNumber($0) }) {
        let found = dump.read(frame)
        if found == .absent(.truncated) { lost += 1 } else { #expect(found == Self.truth(frame)) }
      }
      #expect(lost > 0)
    }
  }

  @Test func saysIncompleteWithoutTheEndMark() throws {
    let records = [Record(offset: 0, bytes: Self.dumps[0].bytes)]
    #expect(try openDump(SyntheticFile(flattened: records, hasEndMark: false)).isIncomplete)
    var damaged = SyntheticFile(flattened: records)
    damaged.store((-7 as Int64).byteSwapped, at: damaged.size - 8)
    let dump = try openDump(damaged)
    #expect(dump.isIncomplete)
    expectReads(dump, in: 0..<70, Self.truth)
  }

  /// A page no record has is not zero.
  @Test func saysTruncatedWhereNoRecordHasThePage() throws {
    let bytes = Self.memory.elf().bytes
    let page = bytes.count - 10 * 4096
    let dump = try openDump(
      SyntheticFile(flattened: [
        Record(offset: 0, bytes: Array(bytes[..<page])),
        Record(offset: UInt64(page + 4096), bytes: Array(bytes[(page + 4096)...])),
      ]))
    expectReads(dump, in: 0..<100, presenceIsExact: false) { frame in
      frame == PageFrameNumber(80) ? .absent(.truncated) : Self.truth(frame)
    }
  }

  @Test func refusesAFileWithoutItsStart() throws {
    for records in [[], [Record(offset: 4096, bytes: [1, 2, 3])]] {
      #expect(openingError(SyntheticFile(flattened: records))?.name == "dump.truncated-header")
    }
    #expect(
      openingError(SyntheticFile(Array("makedumpfile\0\0\0\0".utf8)))?.name
        == "dump.truncated-header")
  }

  @Test func refusesRecordsAllOverThePlace() throws {
    let records = (0..<40_000).map { Record(offset: UInt64($0) * 2, bytes: [0x7f]) }
    #expect(openingError(SyntheticFile(flattened: records))?.name == "dump.too-scattered")
  }
}
