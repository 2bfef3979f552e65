import Memory

/// The page tables of one x86-64 address space (Intel SDM vol. 3A 4.5, AMD APM vol. 2 5.3).
public struct PageTables: Hashable, Sendable {
  public let root: PhysicalAddress
  /// 4, or 5 with CR4.LA57.
  public let levels: Int
  /// Bits of an entry that are not part of the address though they lie inside it: the C-bit of
  /// AMD's memory encryption.
  public let encryptionMask: UInt64

  public init(root: PhysicalAddress, levels: Int, encryptionMask: UInt64 = 0) {
    self.root = PhysicalAddress(root.rawValue & entryAddressMask & ~encryptionMask)
    self.levels = levels
    self.encryptionMask = encryptionMask
  }

  /// True if an address of this many levels is sign-extended from its highest bit.
  public func isCanonical(_ address: VirtualAddress) -> Bool {
    let unused = Int64(64 - 12 - 9 * levels)
    let value = Int64(bitPattern: address.rawValue)
    return (value << unused) >> unused == value
  }
}

/// Bits 12 to 51: where an entry holds a physical address.
@usableFromInline let entryAddressMask: UInt64 = 0x000f_ffff_ffff_f000

/// What the page tables say of one virtual address.
public enum Mapping: Hashable, Sendable {
  /// Mapped: the address translated, and the entry that did it.
  case page(PhysicalAddress, entry: UInt64)
  /// No present entry. What the entry then means is the operating system's business.
  case notPresent(entry: UInt64)
  /// The table of the next level is not at hand.
  case tableAbsent(table: PhysicalAddress, Absence)
}

/// Walks page tables. Keeps the last table of each level, so that a walk over ascending addresses
/// reads each table once.
public struct PageTableWalker: Sendable {
  public let tables: PageTables
  private let memory: any PhysicalMemory
  private var cached: [CachedTable]

  private struct CachedTable: Sendable {
    var address = PhysicalAddress(.max)
    var entries: [UInt8] = []
  }

  public init(_ tables: PageTables, in memory: any PhysicalMemory) {
    self.tables = tables
    self.memory = memory
    cached = Array(repeating: CachedTable(), count: tables.levels)
  }

  /// The mapping of `address`, and the size in bytes of the naturally aligned range around it for
  /// which the same entry answers.
  public mutating func lookUp(_ address: VirtualAddress) -> (mapping: Mapping, span: UInt64) {
    var table = tables.root
    var level = tables.levels - 1
    while true {
      let shift = pageShift + 9 * UInt64(level)
      let span = UInt64(1) << shift
      let index = Int(address.rawValue >> shift & 511)
      let entry: UInt64
      switch load(index, of: table, level: level) {
      case .success(let value): entry = value
      case .failure(.absent(_, let absence)):
        return (.tableAbsent(table: table, absence), span << 9)
      case .failure:
        return (.tableAbsent(table: table, .corrupt), span << 9)
      }
      guard entry & PageTableEntry.present != 0 else { return (.notPresent(entry: entry), span) }
      let target = entry & entryAddressMask & ~tables.encryptionMask
      // Bit 7 is PAT in a 4 KiB entry, "page size" in those of 2 MiB and 1 GiB.
      if level == 0 || (level <= 2 && entry & PageTableEntry.large != 0) {
        let page = (target & ~(span - 1)) | (address.rawValue & (span - 1))
        return (.page(PhysicalAddress(page), entry: entry), span)
      }
      table = PhysicalAddress(target)
      level -= 1
    }
  }

  private mutating func load(
    _ index: Int, of table: PhysicalAddress, level: Int
  ) -> Result<UInt64, MemoryError> {
    if cached[level].address != table {
      do throws(MemoryError) {
        cached[level] = CachedTable(address: table, entries: try memory.page(table.frame))
      } catch {
        return .failure(error)
      }
    }
    return .success(cached[level].entries.load(at: index * 8) ?? 0)
  }
}

/// Bits of a page table entry.
public enum PageTableEntry {
  public static let present: UInt64 = 1 << 0
  public static let writable: UInt64 = 1 << 1
  public static let user: UInt64 = 1 << 2
  public static let large: UInt64 = 1 << 7
  public static let noExecute: UInt64 = 1 << 63
}
