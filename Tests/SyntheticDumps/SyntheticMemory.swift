import Memory

/// A machine's memory made in code: the truth that a dump of it is compared with.
///
/// ``elf(_:)`` and ``kdump(_:)`` make dumps of it.
public struct SyntheticMemory: PhysicalMemory {
  private var bytes = SparseBytes()

  public init() {}

  /// Random pages in `ranges`, the same for the same seed. One of eight is zero.
  public init(
    randomIn ranges: [Range<UInt64>], using generator: inout some RandomNumberGenerator
  ) {
    for frame in ranges.joined() {
      self[PageFrameNumber(frame)] =
        Int.random(in: 0..<8, using: &generator) == 0
        ? SparseBytes.zeros : Self.randomPage(using: &generator)
    }
  }

  /// A page that compresses, as most pages of a machine do: random at its start, then repetitive.
  public static func randomPage(using generator: inout some RandomNumberGenerator) -> [UInt8] {
    let varied = Int.random(in: 1...Int(pageSize), using: &generator)
    var page: [UInt8] = []
    page.reserveCapacity(Int(pageSize))
    while page.count < varied { page.append(littleEndian: generator.next()) }
    let byte = UInt8.random(in: 0...255, using: &generator)
    page.append(contentsOf: repeatElement(byte, count: max(0, Int(pageSize) - page.count)))
    return Array(page.prefix(Int(pageSize)))
  }

  /// The 4096 bytes of a frame; nil where the machine has no memory.
  public subscript(frame: PageFrameNumber) -> [UInt8]? {
    get { bytes.blocks[frame.rawValue] }
    set {
      precondition(newValue.map { $0.count == Int(pageSize) } ?? true)
      bytes.blocks[frame.rawValue] = newValue
    }
  }

  /// Writes bytes; the frames that they touch become memory.
  public mutating func write(_ new: [UInt8], at address: PhysicalAddress) {
    bytes.write(new, at: address.rawValue)
  }

  /// Writes an integer in little-endian order.
  public mutating func store<Integer: FixedWidthInteger>(
    _ value: Integer, at address: PhysicalAddress
  ) {
    var new: [UInt8] = []
    new.append(littleEndian: value)
    write(new, at: address)
  }

  /// Bytes of memory; zeros where there is none.
  public func bytes(at address: PhysicalAddress, count: Int) -> [UInt8] {
    bytes.read(at: address.rawValue, count: count)
  }

  public func page(_ frame: PageFrameNumber) throws(MemoryError) -> [UInt8] {
    guard let page = self[frame] else { throw .absent(frame.address, .notInDump) }
    return page
  }

  /// The frames of memory, ascending.
  public var frames: [PageFrameNumber] {
    bytes.blocks.keys.sorted().map(PageFrameNumber.init)
  }

  /// The frames of memory as ranges, ascending, coalesced.
  public var frameRanges: [Range<PageFrameNumber>] {
    var ranges: [Range<PageFrameNumber>] = []
    for frame in frames {
      if let last = ranges.last, last.upperBound == frame {
        ranges[ranges.count - 1] = last.lowerBound..<frame + 1
      } else {
        ranges.append(frame..<frame + 1)
      }
    }
    return ranges
  }
}

/// A small fast generator with a seed (SplitMix64), so that a failing test can be run again.
public struct SeededGenerator: RandomNumberGenerator, Sendable {
  private var state: UInt64

  public init(seed: UInt64) {
    state = seed
  }

  public mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var value = state
    value = (value ^ (value >> 30)) &* 0xbf58_476d_1ce4_e5b9
    value = (value ^ (value >> 27)) &* 0x94d0_49bb_1331_11eb
    return value ^ (value >> 31)
  }
}
