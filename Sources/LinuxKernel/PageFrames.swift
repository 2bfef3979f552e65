import Memory
import X86

/// The kernel's descriptors of page frames (`struct page`, mapped at `vmemmap_base`).
public struct PageFrames: Sendable {
  private let memory: VirtualMemory
  private let type: BTFType
  private let base: VirtualAddress
  private let descriptorSize: UInt64
  private let flags: Flags
  private let shmemOperations: VirtualAddress?

  private struct Flags: Sendable {
    let lru: UInt64
    let privateData: UInt64
    let head: UInt64
    let upToDate: UInt64?
    let poisoned: UInt64?
  }

  /// What a frame is used for, in the classes by which makedumpfile filters.
  public enum Use: Hashable, Sendable, CaseIterable {
    /// Anonymous memory of a process.
    case userData
    /// A compound page that is neither anonymous nor on an LRU list: hugetlb, or the kernel's own.
    case compound
    /// In the page cache: a file's contents, memfd, shmem.
    case cache
    case privateCache
    case other

    /// The bit of the dump level that leaves such frames out.
    public var dumpLevel: DumpLevel {
      switch self {
      case .userData, .compound: .userData
      case .cache: .cache
      case .privateCache: .privateCache
      case .other: []
      }
    }
  }

  /// A page of a file: the file's `address_space`, and the page's index in it.
  public struct CachePosition: Sendable {
    public let mapping: KernelObject
    public let index: UInt64
    /// True for memfd, tmpfs, shared memory and guest_memfd: what is not in the cache nor swapped is
    /// zero.
    public let isInMemory: Bool

    public init(mapping: KernelObject, index: UInt64, isInMemory: Bool) {
      self.mapping = mapping
      self.index = index
      self.isInMemory = isInMemory
    }
  }

  public init(_ kernel: LinuxKernel) throws(KernelError) {
    memory = kernel.memory
    type = try kernel.structure("page")
    guard let size = type.size, size > 0 else { throw .noType("page") }
    descriptorSize = size
    let symbol = try kernel.address(of: "vmemmap_base")
    do throws(MemoryError) {
      base = VirtualAddress(try memory.load(symbol))
    } catch {
      throw .unreadable(what: "vmemmap_base", error)
    }
    flags = Flags(
      lru: try Self.flag("PG_lru", kernel), privateData: try Self.flag("PG_private", kernel),
      head: try Self.flag("PG_head", kernel), upToDate: try? Self.flag("PG_uptodate", kernel),
      poisoned: try? Self.flag("PG_hwpoison", kernel))
    shmemOperations = kernel.symbol("shmem_aops")
  }

  private static func flag(_ name: String, _ kernel: LinuxKernel) throws(KernelError) -> UInt64 {
    guard let bit = kernel.types.enumerator(named: name) ?? kernel.vmcoreinfo.number(name),
      (0..<64).contains(bit)
    else { throw .vmcoreinfoLacks(key: "NUMBER(\(name))", release: kernel.vmcoreinfo.release) }
    return 1 << UInt64(bit)
  }

  /// The use of a frame, by the rules of makedumpfile's `__exclude_unnecessary_pages`.
  public func use(of frame: PageFrameNumber) throws(KernelError) -> Use {
    let page = try head(of: frame)
    if try page["mapping"].unsigned() & PageMappingFlags.anonymous != 0 { return .userData }
    let flags = try flags(of: page)
    if flags & self.flags.lru != 0 {
      return flags & self.flags.privateData != 0 ? .privateCache : .cache
    }
    // The marks of hugetlb pages changed many times; compound they always are.
    return flags & self.flags.head != 0 ? .compound : .other
  }

  /// Where in the page cache the page of a frame is, or nil if it belongs to no file, or to
  /// hugetlbfs, which counts in other units and is never reclaimed.
  public func cachePosition(of frame: PageFrameNumber) throws(KernelError) -> CachePosition? {
    let use = try use(of: frame)
    guard use == .cache || use == .privateCache else { return nil }
    let page = try head(of: frame)
    guard try page["mapping"].unsigned() & PageMappingFlags.all == 0,
      let mapping = try page["mapping"].dereferenced()
    else { return nil }
    // A tail page's index counts on from its head's.
    let tail = frame.distance(from: number(of: page))
    return try cachePosition(in: mapping, at: try index(of: page) &+ tail)
  }

  /// A page of a file by its index in the file's `address_space`.
  public func cachePosition(
    in mapping: KernelObject, at index: UInt64
  ) throws(KernelError) -> CachePosition {
    CachePosition(
      mapping: mapping, index: index,
      isInMemory: try mapping["a_ops"].pointer() == shmemOperations)
  }

  /// What the page cache has at `index`, and up to which index that is the same answer: frames
  /// are told one by one.
  public func cachedPage(
    of mapping: KernelObject, at index: UInt64
  ) throws(KernelError) -> (page: CachedPage, last: UInt64) {
    let (entry, first, last) = try XArray(try mapping["i_pages"]).entry(at: index)
    if entry == 0 { return (.none, last) }
    // Value entries stand for pages that reclaim took away: a shmem page that was swapped out
    // (`swp_to_radix_entry`), of large folios one for all.
    if entry & 1 != 0 {
      let swapped = SwapEntry(value: entry >> 1)
      let offset = swapped.offset &+ (index &- first)
      return (.swapped(SwapEntry(device: swapped.device, offset: offset)), index)
    }
    let page = try head(of: KernelObject(in: memory, at: VirtualAddress(entry), type: type))
    let offset = index &- (try self.index(of: page))
    return (.frame(number(of: page) + offset), index)
  }

  /// What the page cache has at an index.
  public enum CachedPage: Hashable, Sendable {
    case none
    case frame(PageFrameNumber)
    case swapped(SwapEntry)
  }

  // MARK: Swap

  /// The frame of a swapped page in the swap cache, which has there the descriptor at `address`, or that
  /// of the large folio it is a part of; nil if that is not a page of this entry, or is still to be read.
  func swapCached(
    at address: VirtualAddress, _ entry: SwapEntry
  ) throws(KernelError) -> PageFrameNumber? {
    let page = try head(of: KernelObject(in: memory, at: address, type: type))
    guard isDescriptor(page.address) else { return nil }
    // The head's own entry: in a member `swap` of the folio since 6.6 (3d2c90876868), which lies over
    // `private`.
    let own = SwapEntry(value: try page["private"].unsigned())
    let tail = entry.offset &- own.offset
    guard own.device == entry.device, tail < Self.largestFolio, let upToDate = flags.upToDate,
      try flags(of: page) & upToDate != 0
    else { return nil }
    return number(of: page) + tail
  }

  /// What an entry of the swap format means that has a frame's number in place of an offset: the page is
  /// on its way to another frame, or lent to a device, and still there; or the frame has failed. Nil if
  /// there is no page of a process or a file in that frame.
  public func specialUse(of frame: PageFrameNumber) throws(KernelError) -> SpecialUse? {
    let page = try head(of: frame)
    if let poisoned = flags.poisoned, try flags(of: descriptor(frame)) & poisoned != 0 {
      return .poisoned
    }
    return try page["mapping"].unsigned() != 0 ? .page : nil
  }

  public enum SpecialUse: Hashable, Sendable {
    case page
    case poisoned
  }

  /// Pages of a huge page of 1 GiB.
  private static let largestFolio: UInt64 = 1 << 18

  // MARK: Descriptors

  private func flags(of page: KernelObject) throws(KernelError) -> UInt64 {
    let word = try page["flags"]
    // Since 6.18 the flags are in a structure of their own, `memdesc_flags_t`.
    return try (word.memberIfPresent("f") ?? word).unsigned()
  }

  /// Where the descriptor of a frame is.
  func address(of frame: PageFrameNumber) -> VirtualAddress { descriptor(frame).address }

  /// The frame of a descriptor; nil if there is none at the address.
  func frame(at address: VirtualAddress) -> PageFrameNumber? {
    isDescriptor(address)
      ? number(of: KernelObject(in: memory, at: address, type: type)) : nil
  }

  /// Physical addresses have 52 bits at most.
  private func isDescriptor(_ address: VirtualAddress) -> Bool {
    let distance = address.distance(from: base)
    return distance % descriptorSize == 0 && distance / descriptorSize < 1 << 40
  }

  /// The page's index in its file; renamed in 6.16.
  private func index(of page: KernelObject) throws(KernelError) -> UInt64 {
    try page.member("index", "__folio_index").unsigned()
  }

  private func descriptor(_ frame: PageFrameNumber) -> KernelObject {
    KernelObject(in: memory, at: base + frame.rawValue &* descriptorSize, type: type)
  }

  private func number(of page: KernelObject) -> PageFrameNumber {
    PageFrameNumber(page.address.distance(from: base) / descriptorSize)
  }

  private func head(of frame: PageFrameNumber) throws(KernelError) -> KernelObject {
    try head(of: descriptor(frame))
  }

  /// The descriptor of the compound page that `page` is a tail of, or itself. A tail's
  /// `compound_head` has bit 0 set (since 4.4, 1d798ca3f164), by 7.2 under the name
  /// `compound_info`, which can then also be the mask that makes the head's address of a tail's.
  private func head(of page: KernelObject) throws(KernelError) -> KernelObject {
    let word = try page.member("compound_head", "compound_info").unsigned()
    guard word & 1 != 0 else { return page }
    let head = word >= Self.leastMask ? page.address.rawValue & word : word - 1
    return KernelObject(in: memory, at: VirtualAddress(head), type: type)
  }

  /// A mask has all its high bits set: below it are the descriptors of at most a few GiB, and no
  /// descriptor lies so high, where the kernel's image is.
  private static let leastMask: UInt64 = 0xffff_ffff_0000_0000
}

/// Low bits of `page.mapping` (include/linux/page-flags.h).
private enum PageMappingFlags {
  static let anonymous: UInt64 = 1
  static let all: UInt64 = 3
}
