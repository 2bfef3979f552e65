import Memory

/// What a host's kernel keeps of what it has swapped out.
extension KernelTypes {
  static let swapRoots = [
    "swap_info_struct", "swap_extent", "block_device", "gendisk", "zram", "zram_table_entry",
    "zspage", "zs_pool", "zswap_entry", "zswap_tree", "zpool",
  ]

  /// Adds the structures of swapping in Linux 6.1.
  public mutating func addSwap() {
    structures.merge(Self.swap) { first, _ in first }
    self["file"].add("f_mapping", .pointer(to: "address_space"))
  }

  private static let swap: [String: CStructure] = [
    "rb_node": CStructure([
      "rb_left": .pointer(to: "rb_node"), "rb_right": .pointer(to: "rb_node"),
      "__rb_parent_color": .u64,
    ]),
    "rb_root": CStructure(["rb_node": .pointer(to: "rb_node")]),
    "swap_info_struct": CStructure([
      "flags": .u64, "max": .u32, "pages": .u32, "swap_extent_root": .named("rb_root"),
      "bdev": .pointer(to: "block_device"), "swap_file": .pointer(to: "file"),
      "zeromap": .pointer(.u64),
    ]),
    "swap_extent": CStructure([
      "rb_node": .named("rb_node"), "start_page": .u64, "nr_pages": .u64, "start_block": .u64,
    ]),
    "block_device": CStructure(["bd_disk": .pointer(to: "gendisk")]),
    "gendisk": CStructure([
      "disk_name": .array(.char, 32), "fops": .pointer(.void), "private_data": .pointer(.void),
    ]),
    "zram": CStructure([
      "table": .pointer(to: "zram_table_entry"), "mem_pool": .pointer(to: "zs_pool"),
      "comp": .pointer(to: "zcomp"), "disksize": .u64,
    ]),
    "zram_table_entry": CStructure(["handle": .u64, "flags": .u64]),
    "zcomp": CStructure(["name": .pointer(.char)]),
    "zs_pool": CStructure(["size_class": .array(.pointer(to: "size_class"), 4)]),
    "size_class": CStructure([
      "size": .s32, "objs_per_zspage": .s32, "pages_per_zspage": .s32,
    ]),
    "zspage": CStructure(["class": .u32, "magic": .u32]),
    "zswap_tree": CStructure(["rbroot": .named("rb_root")]),
    "zswap_entry": CStructure([
      "rbnode": .named("rb_node"), "offset": .u64, "length": .u32,
      "pool": .pointer(to: "zswap_pool"),
      "": .anonymous(CStructure(["handle": .u64, "value": .u64], isUnion: true)),
    ]),
    "zswap_pool": CStructure(["zpool": .pointer(to: "zpool"), "tfm_name": .array(.char, 32)]),
    "zpool": CStructure(["driver": .pointer(to: "zpool_driver"), "pool": .pointer(.void)]),
    "zpool_driver": CStructure(["type": .pointer(.char)]),
  ]
}

extension SyntheticHost {
  /// ZRAM_FLAG_SHIFT of this kernel, and what the flags behind it mean.
  static let zramFlags = ["ZRAM_LOCK", "ZRAM_SAME", "ZRAM_WB", "ZRAM_UNDER_WB", "ZRAM_HUGE"]
  static let zramFlagShift = 13

  var swapEnumerations: [CEnumeration] {
    guard kernel.types.structures["zram"] != nil else { return [] }
    return [
      Self.zramFlags.enumerated().map { ($1, Int32($0 + Self.zramFlagShift)) }
    ]
  }

  public static func zramFlag(_ name: String) -> UInt64 {
    1 << UInt64((zramFlags.firstIndex(of: name) ?? 0) + zramFlagShift)
  }

  /// Where a swap device has some of its pages: `swap_extent`.
  public typealias SwapExtent = (start: UInt64, pages: UInt64, block: UInt64)

  /// Adds the swap devices that the options speak of, none of them with anything in the swap cache.
  ///
  /// - Parameter extents: of each device; one has all by default.
  public mutating func addSwapDevices(
    pages: [UInt64], extents: [[SwapExtent]] = []
  ) -> [SyntheticObject] {
    let table = kernel.define("swap_info", size: 32 * 8)
    let spaces = kernel.define("swapper_spaces", size: 32 * 8)
    let trees = kernel.define("zswap_trees", size: 32 * 8)
    _ = kernel.define("zram_devops", size: 64)
    for index in 0..<32 as Range<UInt64> {
      for symbol in [table, spaces, trees] { kernel.store(0 as UInt64, at: symbol + 8 * index) }
    }
    return pages.enumerated().map { index, count in
      let info = kernel.make("swap_info_struct")
      kernel.set(info, "flags", 3)
      kernel.set(info, "max", count)
      kernel.set(info, "bdev", 0)
      kernel.set(info, "swap_file", 0)
      kernel.setIfPresent(info, "zeromap", 0)
      let list = index < extents.count ? extents[index] : [(0, count, 0)]
      kernel.set(info, "swap_extent_root.rb_node", extentTree(list[...]))
      kernel.store(info.address.rawValue, at: table + UInt64(8 * index))
      let space = addFile()
      kernel.store(space.address.rawValue, at: spaces + UInt64(8 * index))
      return info
    }
  }

  /// A balanced tree; returns a pointer to its root.
  private mutating func extentTree(_ extents: ArraySlice<SwapExtent>) -> UInt64 {
    guard !extents.isEmpty else { return 0 }
    let middle = (extents.startIndex + extents.endIndex) / 2
    let object = kernel.make("swap_extent")
    kernel.set(object, "start_page", extents[middle].start)
    kernel.set(object, "nr_pages", extents[middle].pages)
    kernel.set(object, "start_block", extents[middle].block)
    let left = extentTree(extents[..<middle])
    let right = extentTree(extents[(middle + 1)...])
    kernel.set(object, "rb_node.rb_left", left)
    kernel.set(object, "rb_node.rb_right", right)
    return kernel.address(object, "rb_node").rawValue
  }

  /// Puts a frame into the swap cache, as the page of an entry.
  public mutating func putIntoSwapCache(
    _ frame: PageFrameNumber, _ entry: SwapEntry, isUpToDate: Bool = true
  ) {
    let page = descriptor(of: frame)
    kernel.set(page, "private", entry.value)
    let flags = kernel.load(page, "flags")
    kernel.set(page, "flags", isUpToDate ? flags | flag("PG_uptodate") : flags)
    guard let spaces = kernel.address(of: "swapper_spaces"),
      let place = kernel.physical(spaces + 8 * UInt64(entry.device))
    else { return }
    let space = VirtualAddress(kernel.machine.memory.load(UInt64.self, at: place))
    fill(SyntheticObject(space, "address_space"), [entry.offset: page.address.rawValue])
  }

  public mutating func poison(_ frame: PageFrameNumber) {
    let page = descriptor(of: frame)
    kernel.set(page, "flags", kernel.load(page, "flags") | flag("PG_hwpoison"))
  }

  // MARK: Compressed pages

  /// A pool with one class of objects.
  public struct Pool: Sendable {
    public let object: SyntheticObject
    fileprivate let objectSize: UInt64
    fileprivate let isHuge: Bool
  }

  /// - Parameter objectSize: bytes of an object with its header; a whole page has none.
  public mutating func addPool(objectSize: UInt64) -> Pool {
    let pool = kernel.make("zs_pool")
    let isHuge = objectSize == pageSize
    let sizeClass = kernel.make("size_class")
    kernel.set(sizeClass, "size", objectSize)
    kernel.set(sizeClass, "objs_per_zspage", isHuge ? 1 : 2 * pageSize / objectSize)
    kernel.set(sizeClass, "pages_per_zspage", isHuge ? 1 : 2)
    for index in 0..<4 {
      kernel.set(pool, "size_class[\(index)]", index == 2 ? sizeClass.address.rawValue : 0)
    }
    return Pool(object: pool, objectSize: objectSize, isHuge: isHuge)
  }

  /// Stores an object as the `index`th of two pages of its own, and returns its handle.
  public mutating func store(
    _ bytes: [UInt8], in pool: Pool, index: UInt64 = 0
  ) -> (handle: UInt64, place: PhysicalAddress) {
    let group = kernel.make("zspage")
    kernel.set(group, "class", 2)
    kernel.set(group, "magic", 0x58)
    let frames = (0..<(pool.isHuge ? 1 : 2)).map { _ in
      frame([UInt8](repeating: 0xcc, count: Int(pageSize)), as: .other)
    }
    let pages = frames.map { descriptor(of: $0) }
    for page in pages { kernel.set(page, "private", group.address) }
    let handle = kernel.allocate(8)
    if pool.isHuge {
      kernel.set(pages[0], "index", handle.rawValue | 1)
    } else {
      kernel.set(pages[0], "index", pages[1].address)
    }
    let start = pool.objectSize * index
    var object = bytes
    if !pool.isHuge {
      object = []
      object.append(littleEndian: handle.rawValue | 1)
      object += bytes
    }
    for (offset, byte) in object.enumerated() {
      let position = start + UInt64(offset)
      let frame = frames[Int(position >> pageShift)]
      kernel.machine.memory.write([byte], at: frame.address + position % pageSize)
    }
    let first = frames[Int(start >> pageShift)]
    kernel.store((first.rawValue << 23 | index) << 1, at: handle)
    return (handle.rawValue, first.address + start % pageSize)
  }

  /// Makes a swap device one of zram.
  public mutating func makeZRAM(
    _ device: SyntheticObject, compressor: String, pool: Pool,
    entries: [UInt64: (handle: UInt64, flags: UInt64)]
  ) {
    let zram = kernel.make("zram")
    let pages = kernel.load(device, "max") & 0xffff_ffff
    let size = kernel.types.size(of: .named("zram_table_entry"))
    let table = kernel.allocate(size * Int(pages), filledWith: 0)
    for (index, entry) in entries {
      let object = SyntheticObject(table + index * UInt64(size), "zram_table_entry")
      kernel.set(object, "handle", entry.handle)
      kernel.set(object, "flags", entry.flags)
    }
    let zcomp = kernel.make("zcomp")
    kernel.set(zcomp, "name", kernel.string(compressor))
    kernel.set(zram, "table", table)
    kernel.set(zram, "mem_pool", pool.object.address)
    kernel.set(zram, "comp", zcomp.address)
    kernel.set(zram, "disksize", pages << pageShift)
    let disk = kernel.make("gendisk")
    kernel.set(disk, "disk_name", text: "zram0")
    kernel.set(disk, "fops", kernel.address(of: "zram_devops") ?? VirtualAddress(0))
    kernel.set(disk, "private_data", zram.address)
    let bdev = kernel.make("block_device")
    kernel.set(bdev, "bd_disk", disk.address)
    kernel.set(device, "bdev", bdev.address)
  }

  /// What zswap keeps of a page.
  public struct ZSwapEntry: Sendable {
    public var offset: UInt64
    public var length: UInt64
    /// The handle, or the value that fills the page.
    public var value: UInt64

    public init(offset: UInt64, length: UInt64, value: UInt64) {
      self.offset = offset
      self.length = length
      self.value = value
    }
  }

  /// Gives a device a tree of pages in zswap, each to the right of the one before.
  public mutating func addZSwap(
    device: UInt64, allocator: String, compressor: String, pool: UInt64, _ entries: [ZSwapEntry]
  ) {
    let driver = kernel.make("zpool_driver")
    kernel.set(driver, "type", kernel.string(allocator))
    let zpool = kernel.make("zpool")
    kernel.set(zpool, "driver", driver.address)
    kernel.set(zpool, "pool", pool)
    let owner = kernel.make("zswap_pool")
    kernel.set(owner, "zpool", zpool.address)
    kernel.set(owner, "tfm_name", text: compressor)
    let tree = kernel.make("zswap_tree")
    var next: UInt64 = 0
    for entry in entries.sorted(by: { $0.offset > $1.offset }) {
      let object = kernel.make("zswap_entry")
      kernel.set(object, "offset", entry.offset)
      kernel.set(object, "length", entry.length)
      kernel.set(object, "pool", owner.address)
      kernel.set(object, "value", entry.value)
      kernel.set(object, "rbnode.rb_left", 0)
      kernel.set(object, "rbnode.rb_right", next)
      next = kernel.address(object, "rbnode").rawValue
    }
    kernel.set(tree, "rbroot.rb_node", next)
    if let trees = kernel.address(of: "zswap_trees") {
      kernel.store(tree.address.rawValue, at: trees + 8 * device)
    }
  }
}
