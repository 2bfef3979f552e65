import Memory

/// A machine's memory under construction: pages are given out one after another.
public struct SyntheticMachine: Sendable {
  public var memory = SyntheticMemory()
  /// The first frame that was never given out.
  public private(set) var nextFrame: UInt64

  public init(firstFrame: UInt64 = 1) {
    nextFrame = firstFrame
  }

  /// New frames, filled with one byte.
  public mutating func allocate(
    _ count: Int = 1, alignedTo alignment: UInt64 = 1, filledWith byte: UInt8 = 0
  ) -> PageFrameNumber {
    let first = (nextFrame + alignment - 1) / alignment * alignment
    nextFrame = first + UInt64(count)
    let page = [UInt8](repeating: byte, count: Int(pageSize))
    for frame in first..<nextFrame { memory[PageFrameNumber(frame)] = page }
    return PageFrameNumber(first)
  }

  /// Frames without bytes: RAM that a source has to tell about by other means.
  public mutating func skip(to frame: UInt64) { nextFrame = max(nextFrame, frame) }
}

/// Page tables of x86-64 under construction (Intel SDM vol. 3A 4.5, AMD APM vol. 2 5.3).
public struct SyntheticPageTables: Sendable {
  public let root: PhysicalAddress
  public let levels: Int
  /// Set in every entry, as a kernel does under memory encryption (the C-bit).
  public let encryptionMask: UInt64

  public init(
    levels: Int = 4, encryptionMask: UInt64 = 0, in machine: inout SyntheticMachine
  ) {
    root = machine.allocate().address
    self.levels = levels
    self.encryptionMask = encryptionMask
  }

  /// What an entry maps.
  public enum PageSize: UInt64, Sendable {
    case page4KiB = 0
    case page2MiB = 1
    case page1GiB = 2

    /// In bytes.
    public var bytes: UInt64 { 4096 << (9 * rawValue) }
    public var pages: Int { Int(bytes / 4096) }
  }

  public static let present: UInt64 = 1
  public static let writable: UInt64 = 1 << 1
  public static let user: UInt64 = 1 << 2
  /// Bit 7 of an entry that maps 2 MiB or 1 GiB.
  public static let large: UInt64 = 1 << 7
  /// The global bit, which Linux takes for `_PAGE_PROTNONE` in entries that are not present.
  public static let global: UInt64 = 1 << 8

  /// Where the entry for `address` lies. Tables on the way are made.
  public func entryPlace(
    of address: VirtualAddress, _ size: PageSize = .page4KiB, in machine: inout SyntheticMachine
  ) -> PhysicalAddress {
    var table = root
    for level in stride(from: UInt64(levels - 1), to: size.rawValue, by: -1) {
      let place = table + (address.rawValue >> (12 + 9 * level) & 511) * 8
      let entry = machine.memory.load(UInt64.self, at: place)
      if entry & Self.present != 0 {
        table = PhysicalAddress(entry & 0x000f_ffff_ffff_f000 & ~encryptionMask)
      } else {
        table = machine.allocate().address
        let flags = Self.present | Self.writable | Self.user | encryptionMask
        machine.memory.store(table.rawValue | flags, at: place)
      }
    }
    return table + (address.rawValue >> (12 + 9 * size.rawValue) & 511) * 8
  }

  /// The entry that maps a frame.
  public func entry(for frame: PageFrameNumber, _ size: PageSize = .page4KiB) -> UInt64 {
    frame.address.rawValue | Self.present | Self.writable | Self.user | encryptionMask
      | (size == .page4KiB ? 0 : Self.large)
  }

  public func map(
    _ address: VirtualAddress, to frame: PageFrameNumber, _ size: PageSize = .page4KiB,
    in machine: inout SyntheticMachine
  ) {
    setEntry(of: address, size, to: entry(for: frame, size), in: &machine)
  }

  /// Makes the entry for an address anything.
  public func setEntry(
    of address: VirtualAddress, _ size: PageSize = .page4KiB, to entry: UInt64,
    in machine: inout SyntheticMachine
  ) {
    machine.memory.store(entry, at: entryPlace(of: address, size, in: &machine))
  }

  /// The frame of a 4 KiB page, a new one filled with `byte` if the address is not mapped yet.
  public func frame(
    of address: VirtualAddress, filledWith byte: UInt8 = 0, in machine: inout SyntheticMachine
  ) -> PageFrameNumber {
    let place = entryPlace(of: address, in: &machine)
    let old = machine.memory.load(UInt64.self, at: place)
    if old & Self.present != 0 {
      return PhysicalAddress(old & 0x000f_ffff_ffff_f000 & ~encryptionMask).frame
    }
    let frame = machine.allocate(filledWith: byte)
    machine.memory.store(entry(for: frame), at: place)
    return frame
  }

  /// Puts bytes at an address, into new pages where there are none.
  public func write(
    _ bytes: [UInt8], at address: VirtualAddress, filledWith byte: UInt8 = 0,
    in machine: inout SyntheticMachine
  ) {
    var done = 0
    while done < bytes.count {
      let position = address + UInt64(done)
      let count = min(bytes.count - done, Int(pageSize) - position.pageOffset)
      let frame = frame(of: position, filledWith: byte, in: &machine)
      machine.memory.write(
        Array(bytes[done..<done + count]), at: frame.address + UInt64(position.pageOffset))
      done += count
    }
  }
}

extension SyntheticMemory {
  /// An integer in little-endian order.
  public func load<Integer: FixedWidthInteger>(
    _ type: Integer.Type, at address: PhysicalAddress
  ) -> Integer {
    bytes(at: address, count: MemoryLayout<Integer>.size).load(at: 0) ?? 0
  }
}
