import Compression
import Memory

/// zswap (mm/zswap.c): compressed pages in the kernel's memory, on their way to a swap device.
struct ZSwap: Sendable {
  private let kernel: LinuxKernel
  private let trees: VirtualAddress
  private let entry: BTFType
  /// Since 6.8 (44c7c734a513) a device has a tree for each so many slots, before one.
  private let hasSplitTrees: Bool
  private let objects: ZSMalloc?
  private let z3fold: Result<Z3Fold, KernelError>
  /// Until 6.4 an object in a pool that evicts by itself starts with its swap entry
  /// (`struct zswap_header`): its size.
  private let headerSize: UInt64

  /// ZSWAP_ADDRESS_SPACE_SHIFT: SWAP_ADDRESS_SPACE_SHIFT.
  private static let treeShift: UInt64 = 14

  /// Nil if the kernel has no zswap.
  init?(
    _ kernel: LinuxKernel, _ objects: () throws(KernelError) -> ZSMalloc
  ) throws(KernelError) {
    guard let trees = kernel.symbol("zswap_trees") else { return nil }
    self.kernel = kernel
    self.trees = trees
    entry = try kernel.structure("zswap_entry")
    hasSplitTrees = kernel.symbol("nr_zswap_trees") != nil
    // Pools of other kinds need none.
    self.objects = try? objects()
    z3fold = Result { () throws(KernelError) in try Z3Fold(kernel) }
    headerSize = kernel.types.structure(named: "zswap_header")?.size ?? 0
  }

  /// What zswap keeps of a page; nil if it does not have it.
  func page(_ entry: SwapEntry) throws(StoredPageError) -> StoredPage? {
    let page: Result<StoredPage, StoredPageError>
    do throws(KernelError) {
      guard let found = try find(entry) else { return nil }
      page = try stored(found)
    } catch {
      throw .kernel(error)
    }
    return try page.get()
  }

  private func find(_ wanted: SwapEntry) throws(KernelError) -> KernelObject? {
    let first = try kernel.memory.word(trees + UInt64(wanted.device) * 8, of: "zswap_trees")
    guard first != 0 else { return nil }
    // An xarray since 6.9 (796c2c23e14e).
    guard let type = ["zswap_tree", "xarray"].lazy.compactMap(kernel.types.structure).first else {
      throw .noType("xarray")
    }
    let index = hasSplitTrees ? wanted.offset >> Self.treeShift : 0
    let tree = KernelObject(
      in: kernel.memory, at: VirtualAddress(first) + index &* (type.size ?? 0), type: type,
      path: "zswap_trees")
    let found: KernelObject?
    if tree.has("rbroot") {
      found = try RedBlackTree(try tree["rbroot"])
        .node(where: wanted.offset) { node throws(KernelError) in
          try offset(of: try node.container(of: entry, member: "rbnode"))
        }?.container(of: entry, member: "rbnode")
    } else {
      let stored = try XArray(tree).entry(at: wanted.offset).entry
      found =
        stored != 0 && stored & 3 == 0
        ? KernelObject(in: kernel.memory, at: VirtualAddress(stored), type: entry) : nil
    }
    guard let found, try offset(of: found) == wanted.offset else { return nil }
    return found
  }

  /// The whole swap entry since 6.5 (0bb488498c98), before its offset alone.
  private func offset(of entry: KernelObject) throws(KernelError) -> UInt64 {
    if let whole = entry.memberIfPresent("swpentry") {
      return SwapEntry(value: try whole["val"].unsigned()).offset
    }
    return try entry["offset"].unsigned()
  }

  private func stored(_ entry: KernelObject) throws(KernelError) -> Result<
    StoredPage, StoredPageError
  > {
    let length = try entry["length"].unsigned()
    // Of pages filled with one value, until zeros were noted elsewhere (6.12).
    if length == 0 { return .success(.fill(try entry["value"].unsigned())) }
    guard length <= pageSize else {
      throw .unexpectedKind(type: "zswap_entry", needed: "of at most a page")
    }
    let handle = try entry["handle"].unsigned()
    let pool = try entry["pool"].required()
    let form = PageCompression(kernelName: try pool["tfm_name"].text())
    // A page that does not become smaller is stored as it is, since 6.18.
    let isPlain = length == pageSize
    guard form != nil || isPlain else { return .failure(.unsupported) }
    // zsmalloc is the only allocator since 6.18 (2ccd9fecd916).
    guard let zpool = try zpool(of: pool) else {
      guard let objects else { return .failure(.unsupported) }
      let location = try objects.location(
        of: handle, in: try pool["zs_pool"].required(), size: Int(length))
      return .success(
        isPlain ? .plain(location) : .object(location, size: Int(length), form ?? .lzo))
    }
    let evicts = try zpool.memberIfPresent("evictable")?.isTrue() ?? false
    let header = evicts ? headerSize : 0
    let allocator = try kernel.memory.string(
      try zpool["driver"].required()["type"].pointer(), of: "zpool_driver.type")
    guard let form else { return .failure(.unsupported) }
    switch allocator {
    case "zsmalloc":
      guard let objects else { return .failure(.unsupported) }
      let location = try objects.location(
        of: handle, in: objects.pool(at: try zpool["pool"].pointer()), size: Int(length + header))
      return .success(.object(location, size: Int(length), form))
    case "zbud":
      // The handle is the object's address (`encode_handle`, mm/zbud.c).
      return .success(.bytes(VirtualAddress(handle) + header, size: Int(length), form))
    case "z3fold":
      let address = try z3fold.get().address(of: handle)
      return .success(.bytes(address + header, size: Int(length), form))
    default: return .failure(.unsupported)
    }
  }

  /// 32 of them in 6.6 and 6.7 (b8cf32dc6e8c), all of one kind; none since 6.18.
  private func zpool(of pool: KernelObject) throws(KernelError) -> KernelObject? {
    guard let member = pool.memberIfPresent("zpools") ?? pool.memberIfPresent("zpool") else {
      return nil
    }
    let first = member.type.kind == .array ? try member.element(0) : member
    // zswap's own types may only name it.
    return try first.required().cast(to: try kernel.structure("zpool"))
  }
}

/// z3fold (mm/z3fold.c, until 6.14): up to three objects in a page, in units of 64 bytes.
private struct Z3Fold: Sendable {
  private let kernel: LinuxKernel
  private let header: BTFType

  /// CHUNK_SHIFT: 64 chunks are a page.
  private static let chunkShift: UInt64 = 6
  /// PAGE_HEADLESS, in a handle.
  private static let headless: UInt64 = 1
  /// BUDDY_MASK.
  private static let buddyMask: UInt64 = 3
  private static let buddyShift: UInt64 = 2

  init(_ kernel: LinuxKernel) throws(KernelError) {
    self.kernel = kernel
    let module = try kernel.module("z3fold")
    guard let header = (module?.types ?? kernel.types).structure(named: "z3fold_header") else {
      throw module?.missingTypes ?? .noType("z3fold_header")
    }
    self.header = header
  }

  /// `z3fold_map`.
  func address(of handle: UInt64) throws(KernelError) -> VirtualAddress {
    let page = handle & ~(pageSize - 1)
    if handle & Self.headless != 0 { return VirtualAddress(page) }
    let slot = try kernel.memory.word(VirtualAddress(handle), of: "z3fold handle")
    let start = VirtualAddress(slot & ~(pageSize - 1))
    let object = KernelObject(in: kernel.memory, at: start, type: header)
    let chunk = UInt64(1) << Self.chunkShift
    switch (slot &- (try object["first_num"].unsigned())) & Self.buddyMask {
    case 1: return start + (((header.size ?? 0) &+ chunk - 1) & ~(chunk - 1))
    case 2: return start + (try object["start_middle"].unsigned() << Self.chunkShift)
    case 3:
      let chunks = (slot & (pageSize - 1)) >> Self.buddyShift
      return start + (pageSize &- chunks << Self.chunkShift)
    default:
      throw .unexpectedKind(type: "z3fold handle", needed: "one of three objects of a page")
    }
  }
}
