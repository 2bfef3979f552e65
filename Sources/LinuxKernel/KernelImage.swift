import Memory
import X86

/// The part of a kernel's image in its memory in which its read-only data lie: searched for what
/// no symbol leads to.
struct KernelImage {
  let memory: VirtualMemory
  let range: Range<VirtualAddress>

  /// Read at a time.
  private static let pieceSize = 64 * Int(pageSize)

  /// From `_stext` up to the last of the variables that VMCOREINFO names, `swapper_pg_dir` and
  /// `init_uts_ns` among them, which lie behind the read-only data. Nil if it does not name any.
  init?(_ vmcoreinfo: Vmcoreinfo, in memory: VirtualMemory) {
    let symbols = vmcoreinfo.symbolNames.compactMap { vmcoreinfo.symbol($0) }
    let start = vmcoreinfo.symbol("_stext") ?? kernelImageBase
    guard start >= kernelImageBase,
      let last = symbols.filter({ $0 > start && $0 < kernelImageEnd }).max()
    else { return nil }
    self.memory = memory
    range = VirtualAddress(start.rawValue & ~(pageSize - 1))..<last
  }

  /// Calls `body` with one piece after another and its address, each of which begins with the last
  /// `overlap` bytes of the one before if it follows that one directly, until it returns false.
  /// Addresses are multiples of eight if `overlap` is. Pages that are not at hand are left out.
  func forEachPiece(overlap: Int, _ body: ([UInt8], VirtualAddress) -> Bool) {
    var bytes: [UInt8] = []
    var end = range.lowerBound
    while end < range.upperBound {
      let piece = memory.available(end, count: Self.pieceSize)
      bytes += piece
      end = end + UInt64(piece.count)
      guard body(bytes, end - UInt64(bytes.count)) else { return }
      if piece.count == Self.pieceSize {
        bytes.removeFirst(max(0, bytes.count - overlap))
      } else {
        bytes = []
        end = end + pageSize
      }
    }
  }
}

extension KernelImage {
  /// The kernel's BTF, found by its header: for kernels whose symbols do not tell `__start_BTF`.
  func types() -> BTF? {
    var types: BTF?
    forEachPiece(overlap: BTFHeader.sizeWithLayout) { bytes, address in
      for position in stride(from: 0, through: bytes.count - BTFHeader.size, by: 4) {
        guard let size = BTFHeader.extent(bytes, at: position) else { continue }
        let found = try? BTF.read(
          at: address + UInt64(position), size: size, of: "the kernel", in: memory, base: nil)
        if let found, found.structure(named: "list_head") != nil {
          types = found
          return false
        }
      }
      return true
    }
    return types
  }
}

extension VirtualMemory {
  /// The bytes from `address` on, up to `count` or to the first page that is not at hand.
  func available(_ address: VirtualAddress, count: Int) -> [UInt8] {
    (try? read(address, count: count)) ?? (try? bytesAvailable(address, limit: count)) ?? []
  }
}
