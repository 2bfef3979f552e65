import DumpFiles
import Guest
import Memory

/// A range of guest-physical memory and the part of a RAM block that it is.
struct GuestRange: Hashable, Sendable {
  let start: UInt64
  let size: UInt64
  let block: RAMBlock
  /// In the block.
  let offset: UInt64
  let isReadOnly: Bool

  var end: UInt64 { start + size }

  /// The same, as the process has it mapped.
  var mapping: GuestMapping {
    GuestMapping(
      region: MemoryRegion(
        start: GuestPhysicalAddress(start), size: size, isReadOnly: isReadOnly,
        origin: "RAM block \(block.displayName) at \(hexadecimal(offset))"),
      host: block.host + offset, isPrivate: block.flags.contains(.guestMemfd))
  }
}

/// What QEMU itself says of the guest's physical memory: the flat view of its address space
/// `memory` (QEMU softmmu/memory.c, since 9.2 system/memory.c).
struct FlatView: Sendable {
  /// Ascending, apart from each other.
  let ranges: [GuestRange]

  /// Members of `struct AddressSpace`: rcu_head, name, root, current_map.
  private enum AddressSpaceOffset {
    static let name: UInt64 = 16
    static let view: UInt64 = 32
    static let size = 40
  }

  /// Members of `struct FlatView`: rcu_head, ref, ranges, nr.
  private enum ViewOffset {
    static let ranges = 24
    static let count = 32
    static let size = 40
  }

  /// Members of `struct FlatRange`: mr, offset_in_region, an AddrRange of two Int128, flags.
  private enum RangeOffset {
    static let region = 0
    static let regionOffset = 8
    static let start = 16
    static let startHigh = 24
    static let length = 32
    static let lengthHigh = 40
    /// dirty_log_mask, romd_mode, readonly.
    static let isReadOnly = 50
    static let size = 64
  }

  /// The address space that the devices of a machine see.
  private static let name = "memory"

  /// No machine has as many ranges.
  private static let limit: UInt32 = 1 << 16

  /// The view of the address space at the symbol `address_space_memory`; without the symbol, of the
  /// one in the program's data that has its name. Others of that name are in allocated memory.
  init?(
    of blocks: [RAMBlock], _ layout: MemoryRegionLayout, in image: ProcessImage,
    _ executable: Executable?, _ symbols: ExportedSymbols?
  ) {
    let known = Dictionary(
      blocks.map { ($0.address, $0) }, uniquingKeysWith: { first, _ in first })
    let view = symbols?.address(of: "address_space_memory")
      .flatMap { Self.ranges(ofAddressSpace: $0, known, layout, in: image) }
    if let view {
      ranges = view
      return
    }
    guard let executable else { return nil }
    var found: [GuestRange]?
    image.forEachWord(in: [executable.image]) { place, word in
      let text = VirtualAddress(word)
      guard text < UserSpace.end, !executable.image.contains(text), image.has(text),
        image.string(text, limit: Self.name.utf8.count + 1) == Self.name
      else { return true }
      found = Self.ranges(
        ofAddressSpace: place - AddressSpaceOffset.name, known, layout, in: image)
      return found == nil
    }
    guard let found else { return nil }
    ranges = found
  }

  /// Nil unless all that is found there fits together.
  private static func ranges(
    ofAddressSpace address: VirtualAddress, _ blocks: [VirtualAddress: RAMBlock],
    _ layout: MemoryRegionLayout, in image: ProcessImage
  ) -> [GuestRange]? {
    guard let name = try? image.pointer(address + AddressSpaceOffset.name),
      image.string(name, limit: Self.name.utf8.count + 1) == Self.name,
      let view = try? image.pointer(address + AddressSpaceOffset.view),
      let header = try? image.read(view, count: ViewOffset.size),
      let array: UInt64 = header.load(at: ViewOffset.ranges),
      let count: UInt32 = header.load(at: ViewOffset.count), count > 0, count <= limit,
      let bytes = try? image.read(
        VirtualAddress(array), count: Int(count) * RangeOffset.size)
    else { return nil }
    var regions: [VirtualAddress: MemoryRegionLayout.Region] = [:]
    var ranges: [GuestRange] = []
    var end: UInt64 = 0
    for offset in stride(from: 0, to: bytes.count, by: RangeOffset.size) {
      guard let region: UInt64 = bytes.load(at: offset + RangeOffset.region),
        let regionOffset: UInt64 = bytes.load(at: offset + RangeOffset.regionOffset),
        let start: UInt64 = bytes.load(at: offset + RangeOffset.start),
        let startHigh: UInt64 = bytes.load(at: offset + RangeOffset.startHigh),
        let size: UInt64 = bytes.load(at: offset + RangeOffset.length),
        let sizeHigh: UInt64 = bytes.load(at: offset + RangeOffset.lengthHigh)
      else { return nil }
      // A range may end at 2^64; nothing lies behind it.
      let (next, isBeyond) = start.addingReportingOverflow(size)
      let isLast = offset + RangeOffset.size == bytes.count
      guard startHigh == 0, start >= end, sizeHigh == 0 && !isBeyond && size > 0 || isLast else {
        return nil
      }
      end = next
      let address = VirtualAddress(region)
      if regions[address] == nil {
        guard let found = layout.region(at: address, in: image) else { return nil }
        regions[address] = found
      }
      guard let found = regions[address], let block = found.block else { continue }
      // A region of RAM whose block is not on the list is no region of RAM.
      guard let block = blocks[block] else { return nil }
      guard found.isMemory else { continue }
      guard regionOffset <= block.maximumLength, size <= block.maximumLength - regionOffset,
        sizeHigh == 0
      else { return nil }
      if let range = GuestRange(
        wholePagesFrom: start, size: size, block: block, offset: regionOffset,
        isReadOnly: bytes[offset + RangeOffset.isReadOnly] != 0)
      {
        ranges.append(range)
      }
    }
    return ranges.isEmpty ? nil : ranges
  }
}

extension GuestRange {
  /// A range cut to whole pages of the guest, whose bytes must be whole pages of the block. Nil if
  /// there is none.
  init?(
    wholePagesFrom start: UInt64, size: UInt64, block: RAMBlock, offset: UInt64, isReadOnly: Bool
  ) {
    let cut = -Int64(truncatingIfNeeded: start) & Int64(pageSize - 1)
    guard UInt64(cut) < size else { return nil }
    let whole = (size - UInt64(cut)) & ~(pageSize - 1)
    guard whole > 0, (offset &+ UInt64(cut)) % pageSize == 0, start <= (1 << 52) - size else {
      return nil
    }
    self.start = start + UInt64(cut)
    self.size = whole
    self.block = block
    self.offset = offset + UInt64(cut)
    self.isReadOnly = isReadOnly
  }
}
