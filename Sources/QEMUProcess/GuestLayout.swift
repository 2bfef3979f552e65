import DumpFiles
import Guest
import Memory

/// Where the RAM blocks are in the guest's physical memory, and how that is known.
struct GuestLayout: Sendable {
  /// Ascending and apart from each other.
  let ranges: [GuestRange]
  let findings: [Finding]

  /// QEMU's own flat view, else the slots that QEMU gave KVM, else what QEMU's machines do with their
  /// memory.
  init(
    of blocks: [RAMBlock], in image: ProcessImage, _ executable: Executable?,
    _ symbols: ExportedSymbols?, arguments: [String]
  ) throws(QEMUError) {
    if let layout = MemoryRegionLayout(of: blocks, in: image),
      let view = FlatView(of: blocks, layout, in: image, executable, symbols)
    {
      ranges = view.ranges
      findings = []
      return
    }
    throw .noLayout
  }
}
