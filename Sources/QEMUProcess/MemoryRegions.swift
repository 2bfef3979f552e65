import DumpFiles
import Memory

/// Where `struct MemoryRegion` (QEMU include/exec/memory.h) has what, found out by what the regions of
/// known RAM blocks hold. QEMU adds members now and then.
struct MemoryRegionLayout: Hashable, Sendable {
  /// Of the pointer `ram_block`.
  let block: Int
  /// Of the flag `ram_device`, if it was found: memory of a device that the host passes through.
  let isDevice: Int?

  /// Object, then romd_mode, then `ram`: since QEMU 2.7 (`b4fefef9d52`).
  private static let isRAM = 41
  static let size = 512

  /// Nil if no offset holds, in the region of every block, the block's address.
  init?(of blocks: [RAMBlock], in image: ProcessImage) {
    let regions = blocks.compactMap { block in
      (try? image.read(block.region, count: Self.size)).map { (block: block, bytes: $0) }
    }
    let offset = stride(from: 0, to: Self.size, by: 8).first { offset in
      regions.allSatisfy { $0.bytes.load(at: offset) == $0.block.address.rawValue }
    }
    guard !regions.isEmpty, let offset else { return nil }
    block = offset
    isDevice = Self.deviceFlag(regions, behind: offset)
  }

  /// Behind `size` follow addr, destructor and align of 8 bytes each, then the flags `terminates`,
  /// which is set in every region of RAM, and `ram_device`. `size` is an Int128, and equals the
  /// block's length where the region was not made for a part of a page.
  private static func deviceFlag(
    _ regions: [(block: RAMBlock, bytes: [UInt8])], behind block: Int
  ) -> Int? {
    let first = (block + 8 + 15) & ~15
    for size in stride(from: first, to: Self.size - 48, by: 16) {
      let terminates = size + 40
      let fits = regions.allSatisfy { region in
        region.bytes.load(UInt64.self, at: size + 8) == 0
          && region.bytes[terminates] == 1 && region.bytes[terminates + 1] <= 1
          && (region.bytes.load(UInt64.self, at: size) ?? 0) <= region.block.maximumLength
      }
      let equals = regions.contains { region in
        region.bytes.load(at: size) == region.block.usedLength
      }
      if fits, equals { return terminates + 1 }
    }
    return nil
  }

  /// A region's part in the guest's memory.
  struct Region: Hashable, Sendable {
    /// The address of its RAM block; nil for I/O.
    let block: VirtualAddress?
    /// True if the guest sees memory there: RAM and ROM, but not flash, which is a device that can
    /// be read like memory.
    let isMemory: Bool
  }

  func region(at address: VirtualAddress, in image: ProcessImage) -> Region? {
    guard let bytes = try? image.read(address, count: Self.size),
      let block: UInt64 = bytes.load(at: block)
    else { return nil }
    let isDevice = isDevice.map { bytes[$0] != 0 } ?? false
    return Region(
      block: block == 0 ? nil : VirtualAddress(block),
      isMemory: block != 0 && bytes[Self.isRAM] != 0 && !isDevice)
  }
}
