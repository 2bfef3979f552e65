import Memory

/// A swap device or swap file in use: `struct swap_info_struct`.
public struct SwapDevice: Sendable {
  /// Its index, which is a swap entry's type.
  public let index: UInt8
  /// The path that it was given to swapon by: `/dev/vda2`. Nil if that cannot be read.
  public let path: String?
  /// Pages of the swap area, the header's too: offsets are below this.
  public let size: UInt64
  /// Where its pages lie on the block device: `swap_extent`. Ascending by first page.
  let extents: [Extent]
  /// The `gendisk` of the block device; nil for a file on a network.
  let disk: KernelObject?
  let info: KernelObject

  struct Extent: Hashable, Sendable {
    let start: UInt64
    let pages: UInt64
    /// Where on the block device, in pages.
    let block: UInt64
  }

  /// How it is called where people read of it.
  public var name: String { path ?? "swap device \(index)" }

  /// True if pages lie on the block device as they lie in the swap area: a partition as a whole.
  public var isWholeDevice: Bool {
    extents.count == 1 && extents[0].start == 0 && extents[0].block == 0
  }

  /// Which page of the block device has a page of the swap area.
  public func block(of offset: UInt64) -> UInt64? {
    let next = extents.partitioningIndex { $0.start > offset }
    guard next > 0, offset - extents[next - 1].start < extents[next - 1].pages else { return nil }
    return extents[next - 1].block &+ (offset - extents[next - 1].start)
  }

  private static let extentLimit = 1 << 20

  init?(_ info: KernelObject, index: UInt8, names: FileNames?) throws(KernelError) {
    // SWP_USED (include/linux/swap.h); of a slot that is free the rest is from the last use.
    guard try info["flags"].unsigned() & 1 != 0 else { return nil }
    self.info = info
    self.index = index
    size = try info["max"].unsigned()
    let file = try? info["swap_file"].dereferenced()
    path = file.flatMap { try? names?.name(of: $0) }
    disk = try? info["bdev"].dereferenced()?["bd_disk"].dereferenced()
    extents = (try? Self.extents(of: info)) ?? []
  }

  /// A tree since 5.4 (4efaceb1c5f8), a list before.
  private static func extents(of info: KernelObject) throws(KernelError) -> [Extent] {
    guard let type = info.type.btf.structure(named: "swap_extent") else {
      throw .noType("swap_extent")
    }
    let objects: [KernelObject]
    if let root = info.memberIfPresent("swap_extent_root") {
      objects = try RedBlackTree(root).nodes(limit: extentLimit)
        .map { node throws(KernelError) in try node.container(of: type, member: "rb_node") }
    } else {
      let first = try info["first_swap_extent"]
      let others = try first["list"].listElements(of: type, link: "list", limit: extentLimit)
      objects = [first] + others
    }
    return try objects.map { object throws(KernelError) in
      Extent(
        start: try object["start_page"].unsigned(), pages: try object["nr_pages"].unsigned(),
        block: try object["start_block"].unsigned())
    }.sorted { $0.start < $1.start }
  }
}

extension LinuxKernel {
  /// MAX_SWAPFILES is below 1 << MAX_SWAPFILES_SHIFT (include/linux/swap.h).
  private static let swapDeviceLimit: UInt64 = 32

  /// The swap devices in use.
  public func swapDevices() throws(KernelError) -> [SwapDevice] {
    let used = try memory.word(try address(of: "nr_swapfiles"), of: "nr_swapfiles")
    let count = min(used & 0xffff_ffff, Self.swapDeviceLimit)
    let type = try structure("swap_info_struct")
    let table = try address(of: "swap_info")
    let names = try? FileNames(self)
    var devices: [SwapDevice] = []
    for index in 0..<count {
      let entry = try memory.word(table + index * 8, of: "swap_info")
      guard entry != 0 else { continue }
      let info = KernelObject(
        in: memory, at: VirtualAddress(entry), type: type, path: "swap_info[\(index)]")
      if let device = try SwapDevice(info, index: UInt8(index), names: names) {
        devices.append(device)
      }
    }
    return devices
  }
}
