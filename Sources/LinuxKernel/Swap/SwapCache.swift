import Memory

/// The swap cache: pages that have a place in swap, and are in memory yet or again.
///
/// Until 6.17 it is the page cache of `swapper_spaces`; since 6.18 (8578e0c00dcf) each cluster of a
/// device has a table of its slots.
struct SwapCache: Sendable {
  private let kernel: LinuxKernel
  private let frames: PageFrames
  private let spaces: VirtualAddress?

  /// Slots that one `address_space` is for: SWAP_ADDRESS_SPACE_SHIFT (mm/swap.h).
  private static let spaceShift: UInt64 = 14

  init(_ kernel: LinuxKernel, _ frames: PageFrames) {
    self.kernel = kernel
    self.frames = frames
    spaces = kernel.symbol("swapper_spaces")
  }

  /// The frame of a swapped page that is in the cache, and up to date.
  func frame(
    of entry: SwapEntry, on device: SwapDevice
  ) throws(KernelError) -> PageFrameNumber? {
    guard entry.offset < device.size else { return nil }
    if let spaces { return try frame(of: entry, inSpaces: spaces) }
    return try frame(of: entry, inClustersOf: device.info)
  }

  private func frame(
    of entry: SwapEntry, inSpaces table: VirtualAddress
  ) throws(KernelError) -> PageFrameNumber? {
    let type = try kernel.structure("address_space")
    let spaces = try kernel.memory.word(table + UInt64(entry.device) * 8, of: "swapper_spaces")
    guard spaces != 0, let size = type.size else { return nil }
    let space = KernelObject(
      in: kernel.memory,
      at: VirtualAddress(spaces) + (entry.offset >> Self.spaceShift) &* size, type: type,
      path: "swapper_spaces")
    let pages = try XArray(try space["i_pages"])
    // Since 6.11 (7aad25b4b454) an index is counted from the first slot of its space.
    for index in Set([entry.offset, entry.offset & (1 << Self.spaceShift - 1)]) {
      let stored = try pages.entry(at: index).entry
      if stored & 1 == 0, stored != 0,
        let frame = try frames.swapCached(at: VirtualAddress(stored), entry)
      {
        return frame
      }
    }
    return nil
  }

  /// True of a page that the kernel noted to be zero instead of writing it.
  ///
  /// Since 6.12 (0ca0c24e3211) a bitmap of the device has the notes; by 7.2 the device has none any more, and
  /// the slots in the clusters' tables have a bit of their own.
  func isNotedAsZero(_ entry: SwapEntry, on device: SwapDevice) throws(KernelError) -> Bool {
    guard entry.offset < device.size else { return false }
    guard let map = device.info.memberIfPresent("zeromap") else {
      guard let slot = try slot(of: entry, inClustersOf: device.info) else { return false }
      // Bad slots have all bits set, and neither of these marks.
      return slot & Slot.zero != 0 && (slot & Slot.shadow != 0 || slot & 3 == Slot.frame)
    }
    let start = try map.pointer()
    guard start.rawValue != 0 else { return false }
    let word = try kernel.memory.word(start + entry.offset / 64 * 8, of: "zeromap")
    return word >> (entry.offset % 64) & 1 != 0
  }

  /// Marks of a slot in a cluster's table (mm/swap_table.h).
  private enum Slot {
    static let shadow: UInt64 = 1
    static let frame: UInt64 = 2
    /// SWP_TB_ZERO_FLAG: the lowest of 5 flags at the top, the others being a count.
    static let zero: UInt64 = 1 << 59
  }

  /// A slot of a cluster's table; nil if this kernel has none, or the cluster has no page swapped out.
  private func slot(
    of entry: SwapEntry, inClustersOf info: KernelObject
  ) throws(KernelError) -> UInt64? {
    guard let first = try info["cluster_info"].dereferenced(), first.has("table"),
      let size = first.type.size,
      let slots = try kernel.structure("swap_table")["entries"]?.elementCount, slots > 0
    else { return nil }
    let cluster = KernelObject(
      in: kernel.memory, at: first.address + (entry.offset / slots) &* size, type: first.type)
    let table = try cluster["table"].pointer()
    guard table.rawValue != 0 else { return nil }
    return try kernel.memory.word(
      table + entry.offset % slots * 8, of: "swap_cluster_info.table")
  }

  private func frame(
    of entry: SwapEntry, inClustersOf info: KernelObject
  ) throws(KernelError) -> PageFrameNumber? {
    // Null, or a shadow of a page that is out.
    guard let stored = try slot(of: entry, inClustersOf: info), stored != 0,
      stored & Slot.shadow == 0
    else { return nil }
    // The frame's number, marked by bit 1 and with a count in the highest bits since 7.0; a folio before.
    let page =
      stored & Slot.frame != 0
      ? frames.address(of: PageFrameNumber(stored >> 2 & (1 << 40 - 1)))
      : VirtualAddress(stored)
    return try frames.swapCached(at: page, entry)
  }
}

extension BTFType {
  fileprivate subscript(name: String) -> BTFType? { member(name)?.type }
}
