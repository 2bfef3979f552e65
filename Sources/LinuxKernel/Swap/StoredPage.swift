import Compression
import Memory

/// What zram or zswap keeps of a page.
enum StoredPage: Sendable {
  /// Nothing but a word that fills it.
  case fill(UInt64)
  case object(ZSMalloc.Location, size: Int, PageCompression)
  /// Bytes that lie together in the kernel's memory.
  case bytes(VirtualAddress, size: Int, PageCompression)
  /// Not compressed.
  case plain(ZSMalloc.Location)
}

/// Why what zram or zswap keeps of a page cannot be had.
enum StoredPageError: Error {
  /// zram wrote it to its backing device.
  case writtenBack
  /// The compressor, the allocator or their types are not known.
  case unsupported
  case kernel(KernelError)

  var reason: MissingReason {
    switch self {
    case .writtenBack: .swappedOut
    case .unsupported: .swapUnsupported
    case .kernel(let error): error.meansUnknownTypes ? .swapUnsupported : .swapUnreadable
    }
  }
}

extension KernelError {
  /// The structures are there, and what they are is not known.
  var meansUnknownTypes: Bool {
    switch self {
    case .noSymbol, .types, .noTypes, .noType, .noMember: true
    default: false
    }
  }
}
