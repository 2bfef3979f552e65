/// Why a page of a guest, or of the process that runs it, is missing.
public enum MissingReason: String, Hashable, Sendable, CaseIterable {
  case swappedOut = "swapped-out"
  /// In the host's memory, compressed by zram or zswap in a form that is not read here.
  case swapUnsupported = "swap-unsupported"
  /// Swapped out, to zram or zswap or by way of the swap cache, of which the dump lacks a part or has a
  /// damaged one.
  case swapUnreadable = "swap-unreadable"
  /// In a file of the host, of which this page was not in memory.
  case inFile = "in-file"
  /// Marked by the host in a way that names no page.
  case specialEntry = "special-entry"
  /// The memory under the page has failed, and the host has taken it out of use.
  case poisoned
  /// Left out by the dump's filter.
  case filtered
  case notInDump = "not-in-dump"
  /// In memory of the VMM that was not put into its core.
  case notDumped = "not-dumped"
  case truncated
  case corrupt
  /// In a file of a split dump that was not given.
  case missingPart = "missing-part"
  /// A host page table that would tell is not in the dump.
  case pageTableMissing = "page-table-missing"
  /// The host keeps the page encrypted for the guest.
  case encrypted
  /// The VMM's process had ended, or was ending, and had given its memory back.
  case released

  public init(_ absence: Absence) {
    self =
      switch absence {
      case .excluded: .filtered
      case .notInDump: .notInDump
      case .truncated: .truncated
      case .corrupt: .corrupt
      case .missingPart: .missingPart
      }
  }

  /// Completes "pages are missing: …".
  public var explanation: String {
    switch self {
    case .swappedOut: "swapped out by the host"
    case .inFile: "in a file of the host and not in its memory"
    case .swapUnsupported: "compressed by the host (zram, zswap) in a form that cannot be read"
    case .swapUnreadable:
      "swapped out by the host, and what its kernel has of them is damaged or not in the dump"
    case .specialEntry: "taken by the host for a purpose of its own"
    case .poisoned: "in memory that failed (hwpoison)"
    case .filtered: "left out by the dump's filter"
    case .notInDump: "not in the dump, though the host has them"
    case .notDumped: "in memory of the VMM that was not put into its core"
    case .truncated: "beyond the end of the truncated dump"
    case .corrupt: "damaged in the dump"
    case .missingPart: "in a part of the split dump that was not given"
    case .pageTableMissing: "unknown, as the host's page table for them is not in the dump"
    case .encrypted: "encrypted by the host's processor"
    case .released: "given back to the host by the VMM's process, which had ended or was ending"
    }
  }
}
