import DumpFiles
import Memory
import SyntheticDumps
import Testing

@Suite struct SplitTests {
  static let memory: SyntheticMemory = {
    var generator = SeededGenerator(seed: 21)
    return SyntheticMemory(randomIn: [3..<64, 65..<200, 8190..<8200], using: &generator)
  }()
  static let excluded = Set((70..<90 as Range<UInt64>).map(PageFrameNumber.init))
  static let limit: UInt64 = 8200

  static func part(
    _ range: Range<UInt64>, _ compression: Compression = .mixed, level: Int32 = 1,
    version: Int32 = 6, release: String = "6.1.0"
  ) -> SyntheticFile {
    var options = SyntheticKdump()
    options.compression = compression
    options.level = level
    options.version = version
    options.excluded = excluded
    options.split = PageFrameNumber(range.lowerBound)..<PageFrameNumber(range.upperBound)
    options.vmcoreinfo = "OSRELEASE=\(release)\n"
    return memory.kdump(options)
  }

  @Sendable static func truth(_ frame: PageFrameNumber) -> Expected {
    guard let page = memory[frame] else { return .absent(.notInDump) }
    return excluded.contains(frame) ? .absent(.excluded) : .bytes(page)
  }

  static func expectTruth(_ dump: DumpFile, missing: [Range<UInt64>] = []) {
    for range in [0..<300, 8150..<8250] as [Range<UInt64>] {
      expectReads(dump, in: range) { frame in
        let truth = truth(frame)
        return truth.absence == nil && missing.contains { $0.contains(frame.rawValue) }
          ? .absent(.missingPart) : truth
      }
    }
  }

  static func error(_ parts: [SyntheticFile]) -> String? {
    do {
      _ = try openDump(parts: parts)
      return nil
    } catch {
      return (error as? DumpFileError)?.name
    }
  }

  @Test(arguments: [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1]], [2, 5, 6] as [Int32])
  func readsThePartsInAnyOrder(order: [Int], version: Int32) throws {
    // Bounds within a word of the bitmap, and within a run of pages left out.
    let ranges: [Range<UInt64>] = [0..<37, 37..<80, 80..<Self.limit]
    let dump = try openDump(parts: order.map { Self.part(ranges[$0], version: version) })
    #expect(dump.partCount == 3)
    #expect(dump.formatDescription == "kdump-compressed, header version \(version), 3 parts")
    #expect(dump.missingParts.isEmpty)
    #expect(!dump.isIncomplete)
    #expect(dump.frameRanges == Self.memory.frameRanges)
    Self.expectTruth(dump)
  }

  /// The pages of zeros of each part share a block, at the same offset in both files.
  @Test func doesNotMixUpWhatPartsHaveAtTheSameOffset() throws {
    var generator = SeededGenerator(seed: 22)
    var memory = SyntheticMemory()
    for frame in 0..<20 as Range<UInt64> {
      memory[PageFrameNumber(frame)] =
        frame % 2 == 0 ? zeros : SyntheticMemory.randomPage(using: &generator)
    }
    var parts: [SyntheticFile] = []
    for range in [0..<10, 10..<20] as [Range<UInt64>] {
      var options = SyntheticKdump()
      options.level = 1
      options.split = PageFrameNumber(range.lowerBound)..<PageFrameNumber(range.upperBound)
      parts.append(memory.kdump(options))
    }
    // The block that they share in the second part is no longer zero, but equal in its descriptor.
    let descriptor: UInt64 = 4 * 4096
    let offset: UInt64 = parts[1].load(at: descriptor)
    let size: UInt32 = parts[1].load(at: descriptor + 8)
    let first: UInt64 = parts[0].load(at: descriptor)
    #expect(first == offset)
    parts[1].write([UInt8](repeating: 0xff, count: Int(size)), at: offset)
    let dump = try openDump(parts: parts)
    expectReads(dump, in: 0..<20, presenceIsExact: false) { frame in
      frame.rawValue >= 10 && frame.rawValue % 2 == 0
        ? .absent(.corrupt) : memory[frame].map { .bytes($0) } ?? .absent(.notInDump)
    }
  }

  @Test(arguments: 0..<4)
  func tellsWhichPartsAreMissing(given: Int) throws {
    let ranges: [Range<UInt64>] = [0..<37, 37..<80, 80..<150, 150..<Self.limit]
    let dump = try openDump(parts: [Self.part(ranges[given])])
    let missing = ranges.enumerated().filter { $0.offset != given }.map(\.element)
    Self.expectTruth(dump, missing: missing)
    #expect(dump.partCount == 1)
    let pages = dump.missingParts.reduce(0) { $0 + $1.pages }
    #expect(
      pages
        == UInt64(
          Self.memory.frames.count { frame in
            !Self.excluded.contains(frame) && !ranges[given].contains(frame.rawValue)
          }))
    for part in dump.missingParts {
      let frames = part.frames.lowerBound.rawValue..<part.frames.upperBound.rawValue
      #expect(!ranges[given].overlaps(frames))
    }
  }

  @Test func aPartWithoutPagesIsNotMissed() throws {
    let dump = try openDump(parts: [Self.part(0..<200)])
    // Frames 200 to 8189 are no RAM; the part behind them has pages.
    #expect(dump.missingParts.map(\.pages) == [10])
    let both = try openDump(parts: [Self.part(0..<200), Self.part(300..<Self.limit)])
    #expect(both.missingParts.isEmpty)
    Self.expectTruth(both)
  }

  @Test func takesThePartThatWasGivenTwiceOnce() throws {
    var cut = Self.part(0..<100)
    cut.resize(to: cut.size - 5000)
    let dump = try openDump(
      parts: [cut, Self.part(100..<Self.limit), Self.part(0..<100)])
    #expect(dump.partCount == 2)
    #expect(!dump.isIncomplete)
    Self.expectTruth(dump)
  }

  @Test func readsFlattenedParts() throws {
    var generator = SeededGenerator(seed: 23)
    let parts = [Self.part(0..<100), Self.part(100..<Self.limit)].map { part in
      SyntheticFile(flattened: part.records(using: &generator))
    }
    let dump = try openDump(parts: parts)
    #expect(dump.formatDescription == "kdump-compressed, header version 6, flattened, 2 parts")
    Self.expectTruth(dump)
  }

  @Test func losesOnlyWhatIsCutOffOfAPart() throws {
    var cut = Self.part(0..<100, .none, level: 0)
    cut.resize(to: cut.size - 2 * 4096 - 1)
    let dump = try openDump(parts: [cut, Self.part(100..<Self.limit, .none, level: 0)])
    #expect(dump.isIncomplete)
    #expect(dump.lostPages == 3)
    expectReads(dump, in: 0..<300) { frame in
      (97..<100).contains(frame.rawValue) ? .absent(.truncated) : Self.truth(frame)
    }
  }

  @Test func refusesPartsOfDifferentDumps() {
    let first = Self.part(0..<100)
    #expect(Self.error([first, Self.part(100..<Self.limit)]) == nil)
    #expect(Self.error([first, Self.part(100..<Self.limit, level: 17)]) == "dump.parts-differ")
    #expect(Self.error([first, Self.part(100..<Self.limit, version: 5)]) == "dump.parts-differ")
    #expect(
      Self.error([first, Self.part(100..<Self.limit, release: "6.1.1")]) == "dump.parts-differ")
    // Another division of the same dump.
    #expect(Self.error([first, Self.part(90..<Self.limit)]) == "dump.parts-differ")
    var otherTime = Self.part(100..<Self.limit)
    otherTime.store(1 as UInt64, at: 408)
    #expect(Self.error([first, otherTime]) == "dump.parts-differ")
    for bitmap: UInt64 in [2, 3] {
      var otherBitmap = Self.part(100..<Self.limit)
      otherBitmap.store(0x55 as UInt8, at: bitmap * 4096 + 1)
      #expect(Self.error([first, otherBitmap]) == "dump.parts-differ")
    }
  }

  @Test func refusesWhatIsNoPart() {
    let part = Self.part(0..<100)
    #expect(Self.error([part, Self.memory.kdump()]) == "dump.not-a-part")
    #expect(Self.error([Self.memory.elf(), part]) == "dump.not-a-part")
    #expect(Self.error([part, SyntheticFile([1, 2, 3])]) == "dump.not-a-dump.unknown")
  }
}
