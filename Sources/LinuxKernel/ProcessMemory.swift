import Memory
import X86

/// What a process's page tables say of its memory, in the terms of x86 Linux.
public enum ProcessPage: Hashable, Sendable {
  /// The page's frame.
  case frame(PageFrameNumber)
  /// No entry: never touched, or unmapped since.
  case unmapped
  /// Swapped out.
  case swapped(SwapEntry)
  /// An entry of the swap format that names no swap device: migration, device memory, poison,
  /// a marker. Most have a frame's number in place of the offset.
  case special(PageFrameNumber)
  /// A page table is not in the dump.
  case tableAbsent(Absence)
}

/// Tells what the entries of a kernel's processes mean that map no page.
public struct SwapEntries: Sendable {
  /// `nr_swapfiles`: swap types below it are devices, types above mean something else.
  private let devices: UInt8
  private let source: any FrameSource

  public init(of kernel: LinuxKernel, in source: any FrameSource) {
    let count = kernel.symbol("nr_swapfiles").flatMap { address in
      try? kernel.memory.load(address, as: UInt32.self)
    }
    devices = count.map { UInt8(clamping: $0) } ?? 32
    self.source = source
  }

  /// An entry that is not present but not empty (arch/x86/include/asm/pgtable_64.h): a page made
  /// inaccessible for a while (PROT_NONE, NUMA balancing), or a swap entry. It stands for `span`
  /// bytes around `address`. `encryptionMask` is not a part of addresses.
  func meaning(
    of entry: UInt64, at address: VirtualAddress, span: UInt64, encryptionMask: UInt64
  ) -> ProcessPage {
    // A large page that is being split is marked by its size alone (`pmd_mkinvalid`); swap entries
    // keep that bit clear.
    let isLarge = span > pageSize && entry & PageTableEntry.large != 0
    if isLarge || entry & LinuxEntry.protectNone != 0 {
      // Since 4.19 (6b28baca9b1f) the address bits of such entries are inverted, against L1TF.
      // Which form this kernel has shows in whether the frame is one of the machine's.
      let mask = LinuxEntry.addressMask & ~(span - 1) & ~encryptionMask
      let offset = address.rawValue & (span - 1)
      let inverted = PhysicalAddress((~entry & mask) | offset).frame
      let plain = PhysicalAddress((entry & mask) | offset).frame
      let isInverted = source.presence(from: inverted, limit: 1).absence != .notInDump
      return .frame(isInverted ? inverted : plain)
    }
    // Type in bits 59-63, inverted offset in bits 14-58 of `entry << 5` (eee4818baac0, 4.19).
    let type = UInt8(entry >> 59)
    let offset = (~entry << 5) >> 14
    guard type < devices else {
      // Above the frame's number are bits for old and dirty pages (0d206b5d2e0d, 6.1).
      let frame = PageFrameNumber(offset & LinuxEntry.frameMask)
      return .special(frame + (address.rawValue & (span - 1)) >> pageShift)
    }
    return .swapped(SwapEntry(device: type, offset: offset))
  }
}

/// Walks a process's memory.
public struct ProcessMemory: Sendable {
  private var walker: PageTableWalker
  private let swap: SwapEntries

  public init(_ tables: PageTables, in memory: any PhysicalMemory, swap: SwapEntries) {
    walker = PageTableWalker(tables, in: memory)
    self.swap = swap
  }

  /// What is at `address`, and for how many bytes from there on the same entry answers. A run of
  /// frames counts up with the address.
  public mutating func lookUp(_ address: VirtualAddress) -> (page: ProcessPage, bytes: UInt64) {
    let (mapping, span) = walker.lookUp(address)
    let bytes = span - address.rawValue % span
    switch mapping {
    case .page(let physical, _): return (.frame(physical.frame), bytes)
    case .notPresent(0): return (.unmapped, bytes)
    case .notPresent(let entry):
      let page = swap.meaning(
        of: entry, at: address, span: span, encryptionMask: walker.tables.encryptionMask)
      return (page, bytes)
    case .tableAbsent(_, let absence): return (.tableAbsent(absence), bytes)
    }
  }
}

private enum LinuxEntry {
  /// `_PAGE_PROTNONE`: the global bit of an entry that is not present.
  static let protectNone: UInt64 = 1 << 8
  static let addressMask: UInt64 = 0x000f_ffff_ffff_f000
  /// SWP_PFN_MASK, where physical addresses have up to 52 bits.
  static let frameMask: UInt64 = 1 << 40 - 1
}
