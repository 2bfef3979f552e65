import Guest
import Memory
import SyntheticDumps
import Testing

/// A host's memory as a map, for those who search all of it.
struct WholeMemoryTests {
  /// A dump that says that it has more than there is.
  private struct TruncatedDump: FrameSource {
    let named: [Range<PageFrameNumber>]
    let present: [Range<PageFrameNumber>]

    func page(_ frame: PageFrameNumber) throws(MemoryError) -> [UInt8] {
      throw .absent(frame.address, .truncated)
    }

    func presence(
      from frame: PageFrameNumber, limit: UInt64
    ) -> (absence: Absence?, count: UInt64) {
      if let range = present.first(where: { $0.contains(frame) }) {
        return (nil, min(limit, range.upperBound.distance(from: frame)))
      }
      let next = present.map(\.lowerBound).filter { $0 > frame }.min()
      return (.truncated, next.map { min(limit, $0.distance(from: frame)) } ?? limit)
    }

    var dumpLevel: DumpLevel? { nil }
    var frameRanges: [Range<PageFrameNumber>] { named }
    func makeReader() -> SyntheticSource.Reader { SyntheticSource(SyntheticMemory()).makeReader() }
  }

  private static func frames(_ range: Range<UInt64>) -> Range<PageFrameNumber> {
    PageFrameNumber(range.lowerBound)..<PageFrameNumber(range.upperBound)
  }

  /// Header fields of damaged files name petabytes; a search of them would not end.
  @Test func memoryThatIsMissingInLargePartsIsLeftOut() {
    let dump = TruncatedDump(
      named: [Self.frames(0..<0x100), Self.frames(0x1000..<1 << 40)],
      present: [Self.frames(0..<0x100), Self.frames(1 << 30..<1 << 30 + 10)])
    let map = MemoryMap(wholeOf: dump)
    var found: [UInt64] = []
    map.forEachWindow { _, runs in
      for run in runs {
        if case .frames(let first) = run.content { found += [first.rawValue, run.pages] }
      }
    }
    #expect(found == [0, 0x100, 1 << 30, 10])
    #expect(map.size < 16 << 30)
  }

  @Test func shortGapsStayInTheMap() {
    let dump = TruncatedDump(
      named: [Self.frames(0..<0x1000)], present: [Self.frames(0..<1), Self.frames(0x800..<0x1000)])
    let map = MemoryMap(wholeOf: dump)
    #expect(map.regions.map(\.size) == [0x1000 << pageShift])
  }
}
