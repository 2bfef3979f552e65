import DumpFiles
import Memory

/// The part of a virtio-mem device's memory that is plugged in: the rest is not the guest's.
///
/// `struct VirtIOMEM` (QEMU include/hw/virtio/virtio-mem.h) has bitmap_size and bitmap, and behind
/// them, after what versions differ in, addr, usable_region_size, size, requested_size and block_size.
/// It is found through its memory's MemoryRegion, which points to it as its RamDiscardManager, and
/// told by these members' agreement: one bit for each block, and as many bits set as `size` has
/// blocks.
struct VirtioMemory {
  /// The blocks that are plugged in, as runs of the guest's memory.
  let plugged: [GuestRange]

  /// Offsets from the member `addr`.
  private enum Offset {
    static let usableSize = 8
    static let size = 16
    static let requestedSize = 24
    static let blockSize = 32
    static let end = 40
  }

  /// The device's object is smaller; VirtIODevice, its first member, has some 550 bytes.
  private static let objectSize = 2048
  /// `bitmap` is not further before `addr`.
  private static let reach = 256
  /// Memory in more pieces is left whole: a vmcore has a program header for each.
  private static let pieceLimit = 64

  /// Nil if the range is not all the memory of such a device.
  init?(_ range: GuestRange, in image: ProcessImage) {
    guard range.start > 0, range.offset == 0, range.size == range.block.usedLength,
      let region = try? image.read(range.block.region, count: MemoryRegionLayout.size)
    else { return nil }
    for offset in stride(from: 0, to: region.count, by: 8) {
      guard let word: UInt64 = region.load(at: offset), word % 8 == 0,
        let object = try? image.read(VirtualAddress(word), count: Self.objectSize)
      else { continue }
      for place in stride(from: Self.reach, to: object.count - Offset.end, by: 8)
      where object.load(at: place) == range.start {
        if let plugged = Self.plugged(object, addressAt: place, range, in: image) {
          self.plugged = plugged
          return
        }
      }
    }
    return nil
  }

  private static func plugged(
    _ object: [UInt8], addressAt place: Int, _ range: GuestRange, in image: ProcessImage
  ) -> [GuestRange]? {
    guard let usable: UInt64 = object.load(at: place + Offset.usableSize),
      let size: UInt64 = object.load(at: place + Offset.size),
      let requested: UInt64 = object.load(at: place + Offset.requestedSize),
      let block: UInt64 = object.load(at: place + Offset.blockSize),
      block >= pageSize, block.nonzeroBitCount == 1, range.size % block == 0,
      usable <= range.size, size <= usable, requested <= usable, size % block == 0,
      range.size / block <= 1 << 24
    else { return nil }
    let count = Int(range.size / block)
    for pointer in stride(from: place - 8, to: place - reach + 8, by: -8) {
      guard object.load(UInt32.self, at: pointer - 8) == UInt32(count),
        let address: UInt64 = object.load(at: pointer),
        let bitmap = try? image.read(VirtualAddress(address), count: (count + 7) / 8)
      else { continue }
      let bits = (0..<count).filter { bitmap[$0 / 8] & 1 << UInt8($0 % 8) != 0 }
      guard UInt64(bits.count) == size / block else { continue }
      return runs(of: bits, block, range)
    }
    return nil
  }

  /// Nil if there are too many.
  private static func runs(of bits: [Int], _ block: UInt64, _ range: GuestRange) -> [GuestRange]? {
    var runs: [Range<Int>] = []
    for bit in bits {
      if let last = runs.last, last.upperBound == bit {
        runs[runs.count - 1] = last.lowerBound..<(bit + 1)
      } else {
        runs.append(bit..<(bit + 1))
      }
    }
    guard runs.count <= pieceLimit else { return nil }
    return runs.compactMap { run in
      let offset = UInt64(run.lowerBound) * block
      return GuestRange(
        wholePagesFrom: range.start + offset, size: UInt64(run.count) * block, block: range.block,
        offset: offset, isReadOnly: range.isReadOnly)
    }
  }
}
