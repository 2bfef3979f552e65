import Memory
import X86

/// What a process's page tables say of its memory, in the terms of x86 Linux.
public enum ProcessPage: Hashable, Sendable {
  /// The page's frame.
  case frame(PageFrameNumber)
  /// No entry: never touched, or unmapped since.
  case unmapped
  /// Swapped out.
  case swapped(type: UInt64, offset: UInt64)
  /// An entry of the swap format that names no swap device: migration, device memory, poison,
  /// a marker.
  case special(entry: UInt64)
  /// A page table is not in the dump.
  case tableAbsent(Absence)
}

/// Walks a process's memory.
public struct ProcessMemory: Sendable {
  private var walker: PageTableWalker
  /// `nr_swapfiles`: swap types below it are devices, types above mean something else.
  private let swapDevices: UInt64
  private let source: any FrameSource

  public init(_ tables: PageTables, of kernel: LinuxKernel, in source: any FrameSource) {
    walker = PageTableWalker(tables, in: kernel.memory.physical)
    self.source = source
    let count = kernel.symbols.address(of: "nr_swapfiles").flatMap { address in
      try? kernel.memory.load(address, as: UInt32.self)
    }
    swapDevices = count.map(UInt64.init) ?? 32
  }

  /// What is at `address`, and for how many bytes from there on the same entry answers. A run of
  /// frames counts up with the address.
  public mutating func lookUp(_ address: VirtualAddress) -> (page: ProcessPage, bytes: UInt64) {
    let (mapping, span) = walker.lookUp(address)
    let bytes = span - address.rawValue % span
    switch mapping {
    case .page(let physical, _): return (.frame(physical.frame), bytes)
    case .notPresent(0): return (.unmapped, bytes)
    case .notPresent(let entry): return (interpret(entry, at: address, span: span), bytes)
    case .tableAbsent(_, let absence): return (.tableAbsent(absence), bytes)
    }
  }

  /// An entry that is not present but not empty (arch/x86/include/asm/pgtable_64.h): a page made
  /// inaccessible for a while (PROT_NONE, NUMA balancing), or a swap entry.
  private func interpret(_ entry: UInt64, at address: VirtualAddress, span: UInt64) -> ProcessPage {
    if entry & LinuxEntry.protectNone != 0 {
      // Since 4.19 (6b28baca9b1f) the address bits of such entries are inverted, against L1TF.
      // Which form this kernel has shows in whether the frame is one of the machine's.
      let mask = LinuxEntry.addressMask & ~(span - 1)
      let offset = address.rawValue & (span - 1)
      let inverted = PhysicalAddress((~entry & mask) | offset).frame
      let plain = PhysicalAddress((entry & mask) | offset).frame
      let isInverted = source.presence(from: inverted, limit: 1).absence != .notInDump
      return .frame(isInverted ? inverted : plain)
    }
    // Type in bits 59-63, inverted offset in bits 14-58 of `entry << 5` (eee4818baac0, 4.19).
    let type = entry >> 59
    guard type < swapDevices else { return .special(entry: entry) }
    return .swapped(type: type, offset: (~entry << 5) >> 14)
  }
}

private enum LinuxEntry {
  /// `_PAGE_PROTNONE`: the global bit of an entry that is not present.
  static let protectNone: UInt64 = 1 << 8
  static let addressMask: UInt64 = 0x000f_ffff_ffff_f000
}
