import Memory
import X86

/// Memory of a kernel built in a test: pages at virtual addresses, and page tables that map them.
struct KernelMemory: PhysicalMemory {
  private var pages: [PageFrameNumber: [UInt8]] = [:]
  private var nextFrame: UInt64 = 2
  private let root = PageFrameNumber(1)

  init() { pages[root] = Array(repeating: 0, count: Int(pageSize)) }

  func page(_ frame: PageFrameNumber) throws(MemoryError) -> [UInt8] {
    guard let page = pages[frame] else { throw .absent(frame.address, .notInDump) }
    return page
  }

  var virtual: VirtualMemory {
    VirtualMemory(physical: self, tables: PageTables(root: root.address, levels: 4))
  }

  /// Puts bytes at an address, into new pages where there are none. The rest of a page is 0xcc.
  mutating func store(_ bytes: [UInt8], at address: VirtualAddress) {
    var position = address
    var rest = bytes[...]
    while !rest.isEmpty {
      let frame = map(position)
      let piece = rest.prefix(Int(pageSize) - position.pageOffset)
      let start = position.pageOffset
      pages[frame]?.replaceSubrange(start..<(start + piece.count), with: piece)
      rest = rest.dropFirst(piece.count)
      position = position + UInt64(piece.count)
    }
  }

  /// Takes away the page that holds `address`, but not what maps it.
  mutating func removePage(of address: VirtualAddress) {
    guard let physical = try? virtual.translate(address) else { return }
    pages[physical.frame] = nil
  }

  private mutating func map(_ address: VirtualAddress) -> PageFrameNumber {
    var table = root
    for shift in [39, 30, 21, 12] as [UInt64] {
      let entry = Int(address.rawValue >> shift & 511) * 8
      var target: UInt64 = pages[table]?.load(at: entry) ?? 0
      if target == 0 {
        target = nextFrame << pageShift | PageTableEntry.present
        pages[PageFrameNumber(nextFrame)] = Array(
          repeating: shift == 12 ? 0xcc : 0, count: Int(pageSize))
        nextFrame += 1
        var bytes: [UInt8] = []
        bytes.append(littleEndian: target)
        pages[table]?.replaceSubrange(entry..<(entry + 8), with: bytes)
      }
      table = PhysicalAddress(target).frame
    }
    return table
  }
}

/// Random numbers that are the same in every run (SplitMix64).
struct SeededGenerator: RandomNumberGenerator {
  private var state: UInt64

  init(seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var value = state
    value = (value ^ value >> 30) &* 0xbf58_476d_1ce4_e5b9
    value = (value ^ value >> 27) &* 0x94d0_49bb_1331_11eb
    return value ^ value >> 31
  }
}

extension [UInt8] {
  /// Damages some bytes in the ways that find faults of parsers: single bits, extreme values,
  /// neighbours of what was there.
  mutating func damage(using generator: inout SeededGenerator) {
    guard !isEmpty else { return }
    for _ in 0..<Int.random(in: 1...4, using: &generator) {
      let index = Int.random(in: 0..<count, using: &generator)
      switch Int.random(in: 0..<5, using: &generator) {
      case 0: self[index] ^= 1 << UInt8.random(in: 0..<8, using: &generator)
      case 1: self[index] = [0, 1, 0x7f, 0x80, 0xff].randomElement(using: &generator) ?? 0
      case 2: self[index] &+= 1
      case 3: self[index] = UInt8.random(in: 0...255, using: &generator)
      default:
        for byte in index..<Swift.min(index + 4, count) { self[byte] = 0xff }
      }
    }
  }
}
