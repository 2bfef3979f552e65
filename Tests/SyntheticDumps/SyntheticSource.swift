import Memory
import Synchronization

/// A dump of a ``SyntheticMemory``, without a file: for tests of what reads dumps.
public struct SyntheticSource: FrameSource {
  public var memory: SyntheticMemory
  public var dumpLevel: DumpLevel?
  /// Frames that the dump's writer left out.
  public var excluded: Set<PageFrameNumber> = []
  /// RAM without bytes in ``memory``: its pages tell their own number.
  public var numbered: [Range<PageFrameNumber>] = []

  /// Pages read so far: what an answer costs, on a machine of any speed.
  public var pagesRead: Int { counter.value.load(ordering: .relaxed) }
  private let counter = Counter()

  private final class Counter: Sendable {
    let value = Atomic<Int>(0)
  }

  public init(_ memory: SyntheticMemory, dumpLevel: DumpLevel? = nil) {
    self.memory = memory
    self.dumpLevel = dumpLevel
  }

  /// The bytes of a numbered frame.
  public static func numberedPage(_ frame: PageFrameNumber) -> [UInt8] {
    var page: [UInt8] = []
    while page.count < Int(pageSize) { page.append(littleEndian: frame.rawValue) }
    return page
  }

  public func page(_ frame: PageFrameNumber) throws(MemoryError) -> [UInt8] {
    if let absence = presence(from: frame, limit: 1).absence {
      throw .absent(frame.address, absence)
    }
    counter.value.add(1, ordering: .relaxed)
    return memory[frame] ?? Self.numberedPage(frame)
  }

  public func presence(
    from frame: PageFrameNumber, limit: UInt64
  ) -> (absence: Absence?, count: UInt64) {
    if excluded.contains(frame) { return (.excluded, 1) }
    if let range = numbered.first(where: { $0.contains(frame) }) {
      return (nil, min(limit, range.upperBound.distance(from: frame)))
    }
    guard memory[frame] != nil else { return (.notInDump, 1) }
    let count = (1..<max(limit, 1)).first { offset in
      excluded.contains(frame + offset) || memory[frame + offset] == nil
    }
    return (nil, count ?? max(limit, 1))
  }

  public var frameRanges: [Range<PageFrameNumber>] { memory.frameRanges }

  public func makeReader() -> Reader { Reader(self) }

  public final class Reader: FrameReader {
    private let source: SyntheticSource

    init(_ source: SyntheticSource) { self.source = source }

    public func read(
      from frame: PageFrameNumber, into buffer: UnsafeMutableRawBufferPointer
    ) -> [Absence?] {
      (0..<buffer.count / Int(pageSize)).map { index in
        let number = frame + UInt64(index)
        let absence = source.presence(from: number, limit: 1).absence
        let page =
          absence == nil ? source.memory[number] ?? numberedPage(number) : SparseBytes.zeros
        let start = index * Int(pageSize)
        unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[start..<start + Int(pageSize)])
          .copyBytes(from: page)
        return absence
      }
    }
  }
}
