/// The place of a page that a host has swapped out: `swp_entry_t`.
public struct SwapEntry: Hashable, Sendable {
  /// The index of the device in `swap_info`: swp_type.
  public let device: UInt8
  /// In pages: swp_offset.
  public let offset: UInt64

  public init(device: UInt8, offset: UInt64) {
    self.device = device
    self.offset = offset
  }

  /// As the page cache and the swap cache keep it: the type in the bits above 58 (`swp_entry`,
  /// include/linux/swapops.h).
  public init(value: UInt64) {
    self.init(
      device: UInt8(truncatingIfNeeded: value >> 58), offset: value & (1 << 58 - 1))
  }

  public var value: UInt64 { UInt64(device) << 58 | offset }
}

/// What has the bytes of a swapped page.
public enum SwapStore: UInt8, Hashable, Sendable, CaseIterable {
  /// Compressed in the memory of a zram device.
  case zram
  /// Compressed in zswap, in front of the swap device.
  case zswap
  /// An image of the swap device that the user gave.
  case image
}

/// A swapped page that can be read. Where pages are named by frames, it has a number beyond all that
/// machines and processes have, so that it goes the way of all others.
public struct SwappedPage: Hashable, Sendable {
  public let store: SwapStore
  public let entry: SwapEntry

  private static let mark: UInt64 = 1 << 62
  private static let offsetBits: UInt64 = 50
  private static let deviceBits: UInt64 = 5

  /// Nil if the kernel could not have such an entry: an entry in a page table has 45 bits for the
  /// offset, and 5 for the device.
  public init?(_ entry: SwapEntry, in store: SwapStore) {
    guard entry.offset < 1 << (Self.offsetBits - 1), entry.device < 1 << Self.deviceBits else {
      return nil
    }
    self.entry = entry
    self.store = store
  }

  /// The page that a frame's number stands for; nil if it is one of the machine's memory.
  public init?(_ frame: PageFrameNumber) {
    let number = frame.rawValue
    let store = number >> (Self.offsetBits + Self.deviceBits) & 0x7f
    guard number & Self.mark != 0, number < 2 * Self.mark,
      let store = SwapStore(rawValue: UInt8(store))
    else { return nil }
    self.store = store
    entry = SwapEntry(
      device: UInt8(number >> Self.offsetBits & (1 << Self.deviceBits - 1)),
      offset: number & (1 << Self.offsetBits - 1))
  }

  public var frame: PageFrameNumber {
    PageFrameNumber(
      Self.mark | UInt64(store.rawValue) << (Self.offsetBits + Self.deviceBits)
        | UInt64(entry.device) << Self.offsetBits | entry.offset)
  }
}

extension SwapStore {
  public var name: String {
    switch self {
    case .zram: "zram"
    case .zswap: "zswap"
    case .image: "swap-image"
    }
  }

  /// Completes "pages from …".
  public var explanation: String {
    switch self {
    case .zram: "zram"
    case .zswap: "zswap"
    case .image: "the image of the swap device"
    }
  }
}
