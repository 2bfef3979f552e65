/// An address in one address space. Each space has a type of its own, so that a guest-physical
/// address cannot be used where a physical address of the machine being read is meant.
///
/// Arithmetic wraps: addresses come out of damaged or hostile memory, and a sum that leaves the
/// space must lead to a failed read, never to a trap.
public protocol Address: Hashable, Comparable, Sendable, CustomStringConvertible {
  var rawValue: UInt64 { get }
  init(_ rawValue: UInt64)
}

extension Address {
  @inlinable public static func < (left: Self, right: Self) -> Bool {
    left.rawValue < right.rawValue
  }

  @inlinable public static func + (address: Self, offset: UInt64) -> Self {
    Self(address.rawValue &+ offset)
  }

  @inlinable public static func - (address: Self, offset: UInt64) -> Self {
    Self(address.rawValue &- offset)
  }

  /// Bytes from `other` up to this address, modulo 2^64.
  @inlinable public func distance(from other: Self) -> UInt64 {
    rawValue &- other.rawValue
  }

  /// Offset inside the 4 KiB page that the address lies in.
  @inlinable public var pageOffset: Int { Int(rawValue & (pageSize - 1)) }

  @inlinable public var isPageAligned: Bool { pageOffset == 0 }

  /// `count` bytes from this address on, of which `page` gives the page that holds an address.
  ///
  /// `count` must be bounded by the caller: it is allocated.
  @inlinable public func read<Failure: Error>(
    count: Int, page: (Self) throws(Failure) -> [UInt8]
  ) throws(Failure) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(count)
    var position = self
    while bytes.count < count {
      let page = try page(position)
      let start = position.pageOffset
      let end = min(page.count, start + count - bytes.count)
      bytes += page[start..<end]
      position = position + UInt64(end - start)
    }
    return bytes
  }

  public var description: String { hexadecimal(rawValue) }
}

/// Size in bytes of the smallest x86 page, the unit of every dump format read here.
public let pageSize: UInt64 = 4096

/// Binary logarithm of ``pageSize``.
public let pageShift: UInt64 = 12

/// A physical address of the machine whose memory is being read.
public struct PhysicalAddress: Address {
  public let rawValue: UInt64
  @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }

  @inlinable public var frame: PageFrameNumber { PageFrameNumber(rawValue >> pageShift) }
}

/// A virtual address of the machine whose memory is being read: of its kernel or of a process.
public struct VirtualAddress: Address {
  public let rawValue: UInt64
  @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
}

/// A physical address as a guest sees it. The guest's memory map says where its bytes are.
public struct GuestPhysicalAddress: Address {
  public let rawValue: UInt64
  @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
}

/// The number of a 4 KiB page frame in the memory that a dump holds: physical address >> 12 in a
/// machine's dump, virtual address >> 12 in a process's core.
public struct PageFrameNumber: Address {
  public let rawValue: UInt64
  @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }

  @inlinable public var address: PhysicalAddress { PhysicalAddress(rawValue << pageShift) }
}

/// `0x` and the digits of a number.
///
/// - Parameter digits: the least number of digits.
public func hexadecimal(_ value: UInt64, digits: Int = 1) -> String {
  let text = String(value, radix: 16)
  return "0x" + String(repeating: "0", count: max(0, digits - text.utf8.count)) + text
}
