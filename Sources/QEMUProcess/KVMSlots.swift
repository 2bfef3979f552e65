import DumpFiles
import Memory

/// The memory slots that QEMU gave KVM, found in its allocated memory by what they hold.
///
/// `struct KVMSlot` (QEMU include/sysemu/kvm_int.h) starts with start_addr, memory_size, ram, slot and
/// flags in every version; slots stand in an array, in the order of their numbers.
struct KVMSlots: Sendable {
  /// Ascending, apart from each other.
  let ranges: [GuestRange]

  private struct Slot {
    let address: UInt64
    let number: UInt64
    let range: GuestRange
  }

  /// Offsets from the member `ram`.
  private enum Offset {
    static let start: UInt64 = 16
    static let size = 24
  }

  /// KVM_MEM_READONLY.
  private static let readOnlyFlag: UInt32 = 2
  /// KVM has at most SHRT_MAX slots.
  private static let slotLimit: UInt32 = 1 << 15
  /// Sizes that the structure can have; it had 56 bytes in QEMU 7.2.
  private static let strides = stride(from: UInt64(32), through: 256, by: 8)

  /// Nil if no slots are found that do not overlap and are all of the guest's main memory.
  init?(of blocks: [RAMBlock], in image: ProcessImage) {
    let slots = Self.candidates(blocks, in: image)
    var best: [Slot] = []
    for stride in Self.strides {
      let arrays = Dictionary(grouping: slots) { $0.address &- $0.number &* stride }
      // SMM's address space has slots of its own; of two arrays alike the first is taken.
      for (_, array) in arrays.sorted(by: { $0.key < $1.key }) where array.count > best.count {
        let sorted = array.sorted { $0.range.start < $1.range.start }
        let isApart = zip(sorted, sorted.dropFirst()).allSatisfy { $0.range.end <= $1.range.start }
        if isApart { best = sorted }
      }
    }
    guard Self.isWhole(best.map(\.range), blocks) else { return nil }
    ranges = best.map(\.range)
  }

  /// True if the ranges have the largest block, which is the guest's main memory, but for what lies
  /// under the display's memory and ROM below 1 MiB.
  private static func isWhole(_ ranges: [GuestRange], _ blocks: [RAMBlock]) -> Bool {
    guard let main = blocks.max(by: { $0.usedLength < $1.usedLength }), ranges.first?.start == 0
    else { return false }
    let covered = ranges.filter { $0.block == main }.reduce(0) { $0 + $1.size }
    return covered <= main.usedLength && main.usedLength - covered <= 1 << 20
  }

  private static func candidates(_ blocks: [RAMBlock], in image: ProcessImage) -> [Slot] {
    var slots: [Slot] = []
    image.forEachWord(in: image.core.smallWritableMemory) { place, word in
      let host = VirtualAddress(word)
      guard host.isPageAligned, let block = blocks.first(where: { $0.contains(host: host) }),
        place.rawValue >= Offset.start,
        let bytes = try? image.read(place - Offset.start, count: Offset.size + 8),
        let start: UInt64 = bytes.load(at: 0), let size: UInt64 = bytes.load(at: 8),
        let number: UInt32 = bytes.load(at: Offset.size),
        let flags: UInt32 = bytes.load(at: Offset.size + 4), number < slotLimit,
        start % pageSize == 0, size % pageSize == 0, size > 0, flags < 16
      else { return true }
      let offset = host.distance(from: block.host)
      guard size <= block.maximumLength - offset,
        let range = GuestRange(
          wholePagesFrom: start, size: size, block: block, offset: offset,
          isReadOnly: flags & readOnlyFlag != 0)
      else { return true }
      slots.append(
        Slot(address: place.rawValue - Offset.start, number: UInt64(number), range: range))
      return slots.count < 1 << 16
    }
    return slots
  }
}
