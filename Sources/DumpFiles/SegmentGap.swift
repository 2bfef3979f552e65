import Memory

/// Why a PT_LOAD in the core of a process has no bytes (p_filesz 0), as cores written by this program
/// tell it: a number in the bits of p_flags that are the operating system's (PF_MASKOS of elf.h).
/// Linux and gdb leave them 0, and readers pass over them.
public enum SegmentGap: Hashable, Sendable {
  /// The core does not tell.
  case unsaid
  /// The pages are zero: most often, the process never touched them.
  case zero
  /// The pages could not be had.
  case missing(MissingReason)

  private static let mask: UInt32 = 0x0ff0_0000
  private static let shift: UInt32 = 20

  /// A number that no version of this program wrote counts as none.
  public init(flags: UInt32) {
    let code = (flags & Self.mask) >> Self.shift
    switch code {
    case 1: self = .zero
    default:
      self = MissingReason.allCases.first { $0.code == code }.map { .missing($0) } ?? .unsaid
    }
  }

  /// To be added to PF_R, PF_W and PF_X.
  public var flags: UInt32 {
    let code: UInt32 =
      switch self {
      case .unsaid: 0
      case .zero: 1
      case .missing(let reason): reason.code
      }
    return code << Self.shift
  }
}

extension MissingReason {
  /// The number in p_flags. Written files keep it: a number is never used anew.
  fileprivate var code: UInt32 {
    switch self {
    case .swappedOut: 2
    case .inFile: 3
    case .specialEntry: 4
    case .filtered: 5
    case .notInDump: 6
    case .notDumped: 7
    case .truncated: 8
    case .corrupt: 9
    case .pageTableMissing: 10
    case .encrypted: 11
    case .missingPart: 12
    case .swapUnsupported: 13
    case .swapUnreadable: 14
    case .poisoned: 15
    case .released: 16
    }
  }
}
