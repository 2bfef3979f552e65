import DumpFiles
import Memory

/// A block of memory that QEMU has for its guest: `struct RAMBlock` (QEMU
/// include/exec/ramblock.h, since 10.0 include/system/ramblock.h).
struct RAMBlock: Hashable, Sendable {
  /// Where the structure is.
  let address: VirtualAddress
  /// The MemoryRegion that the block was made for.
  let region: VirtualAddress
  /// Where QEMU has the memory mapped.
  let host: VirtualAddress
  /// Bytes in use, and bytes reserved.
  let usedLength: UInt64
  let maximumLength: UInt64
  let flags: Flags
  /// What migration calls the block; empty where it has no name.
  let name: String

  struct Flags: OptionSet, Hashable, Sendable {
    let rawValue: UInt32
    /// RAM_SHARED.
    static let shared = Flags(rawValue: 1 << 1)
    /// RAM_GUEST_MEMFD, since 9.0: the guest's private memory is in no mapping of QEMU.
    static let guestMemfd = Flags(rawValue: 1 << 12)
  }

  /// The members up to the list's links lie where they are since QEMU 3.1 (colo_cache).
  private enum Offset {
    static let region = 16
    static let host = 24
    static let offset = 40
    static let usedLength = 48
    static let maximumLength = 56
    static let flags = 72
    static let name = 76
    static let next = 336
    static let previous = 344
    static let end = 352
  }

  private static let nameSize = 256

  /// `le_next`, and where the pointer to the block is: `le_prev`.
  let next: VirtualAddress
  let previous: VirtualAddress

  /// The block at an address, if what is there can be one.
  init?(at address: VirtualAddress, in image: ProcessImage) {
    guard address.rawValue % 8 == 0, let bytes = try? image.read(address, count: Offset.end),
      let region: UInt64 = bytes.load(at: Offset.region),
      let host: UInt64 = bytes.load(at: Offset.host),
      let offset: UInt64 = bytes.load(at: Offset.offset),
      let used: UInt64 = bytes.load(at: Offset.usedLength),
      let maximum: UInt64 = bytes.load(at: Offset.maximumLength),
      let flags: UInt32 = bytes.load(at: Offset.flags),
      let name = bytes.cString(at: Offset.name, limit: Self.nameSize),
      let next: UInt64 = bytes.load(at: Offset.next),
      let previous: UInt64 = bytes.load(at: Offset.previous)
    else { return nil }
    let isPlausible =
      host != 0 && [host, offset, used, maximum].allSatisfy { $0 % pageSize == 0 }
      && used > 0 && used <= maximum && maximum <= Self.lengthLimit
      && host <= UserSpace.end.rawValue - maximum && region != 0 && region % 8 == 0
      && previous % 8 == 0
      && name.utf8.allSatisfy { (0x20..<0x7f).contains($0) }
    guard isPlausible else { return nil }
    self.address = address
    self.region = VirtualAddress(region)
    self.host = VirtualAddress(host)
    usedLength = used
    maximumLength = maximum
    self.flags = Flags(rawValue: flags)
    self.name = name
    self.next = VirtualAddress(next)
    self.previous = VirtualAddress(previous)
  }

  /// 2^52: x86 processors address no more.
  private static let lengthLimit: UInt64 = 1 << 52

  /// Where the pointer to the block behind this one is.
  var link: VirtualAddress { address + UInt64(Offset.next) }

  /// How to call the block in a message.
  var displayName: String { name.isEmpty ? "at \(host)" : name }

  func contains(host address: VirtualAddress) -> Bool {
    address.distance(from: host) < maximumLength
  }

  /// Where in a block the link is that points back.
  static let previousOffset = UInt64(Offset.previous)
}

/// The addresses that a process can have.
enum UserSpace {
  /// With five levels of page tables.
  static let end = VirtualAddress(1 << 56)
}

/// QEMU's list of RAM blocks, `ram_list.blocks`.
struct RAMBlockList: Sendable {
  /// Where the pointer to the first block is.
  let head: VirtualAddress
  /// In the order of the list: the largest first.
  let blocks: [RAMBlock]
  /// The list's end was not reached: the rest is not known.
  let isCutOff: Bool

  /// `blocks` in `struct RAMList`, behind a QemuMutex and the block used last.
  private static let headOffset: UInt64 = 56

  /// No QEMU has as many.
  private static let limit = 1 << 16

  /// Walks the list that starts at `head`. Nil unless the first block points back to it.
  private init?(head: VirtualAddress, in image: ProcessImage) {
    guard var address = try? image.pointer(head) else { return nil }
    var blocks: [RAMBlock] = []
    var link = head
    // A block that points back to its predecessor is met once, so the walk does not go round.
    while address.rawValue != 0, blocks.count < Self.limit,
      let block = RAMBlock(at: address, in: image), block.previous == link
    {
      blocks.append(block)
      link = block.link
      address = block.next
    }
    guard !blocks.isEmpty else { return nil }
    self.head = head
    self.blocks = blocks
    isCutOff = address.rawValue != 0
  }

  /// The list whose head is in a program's data; else one whose head is in any memory that the
  /// process could write to.
  init?(in image: ProcessImage, dataOf executable: Executable?) {
    let data = executable.map { [$0.image] } ?? []
    guard
      let found = Self.search(data, executable, in: image)
        ?? Self.search(image.core.smallWritableMemory, executable, in: image)
    else { return nil }
    self = found
  }

  /// The list that the symbol `ram_list` names.
  init?(in image: ProcessImage, _ symbols: ExportedSymbols) {
    guard let list = symbols.address(of: "ram_list") else { return nil }
    self.init(head: list + Self.headOffset, in: image)
  }

  /// The list's head is a word that points to a block that points back to the word.
  private static func search(
    _ ranges: [Range<VirtualAddress>], _ executable: Executable?, in image: ProcessImage
  ) -> RAMBlockList? {
    var found: RAMBlockList?
    image.forEachWord(in: ranges) { head, word in
      let block = VirtualAddress(word)
      // Blocks are allocated: never in the program itself.
      guard word % 8 == 0, block < UserSpace.end, executable?.image.contains(block) != true,
        image.has(block),
        (try? image.pointer(block + RAMBlock.previousOffset)) == head
      else { return true }
      guard let list = RAMBlockList(head: head, in: image) else { return true }
      // A link between two blocks looks like a head too: the head's list is the longest.
      if list.blocks.count > found?.blocks.count ?? 0 { found = list }
      return true
    }
    return found
  }
}

extension ProcessCore {
  /// Memory that the process could write to, without what can only be a guest's RAM by its size;
  /// small pieces first.
  var smallWritableMemory: [Range<VirtualAddress>] {
    segments
      .filter { $0.isWritable && $0.size <= 1 << 28 && $0.start < $0.end && $0.gap == nil }
      .sorted { $0.size < $1.size }.map { $0.start..<$0.end }
  }
}
