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
      ranges = Self.withoutUnplugged(view.ranges, in: image)
      findings = []
    } else if image.core.hasKVM, let slots = KVMSlots(of: blocks, in: image) {
      ranges = Self.withoutUnplugged(slots.ranges, in: image)
      findings = [
        Finding(
          .note, "qemu.layout-of-slots",
          "QEMU's view of the guest's physical memory is not in the core: KVM's memory slots tell"
            + " where the guest has its memory")
      ]
    } else if let rule = MachineRule(for: blocks, arguments: arguments) {
      ranges = rule.ranges
      findings = [
        Finding(
          .warning, "qemu.layout-by-rule",
          "QEMU's view of the guest's physical memory is not in the core: the largest RAM block is"
            + " placed as machines of type \(rule.machine) have it, and no other block")
      ]
    } else {
      throw .noLayout
    }
  }
  private static func withoutUnplugged(
    _ ranges: [GuestRange], in image: ProcessImage
  ) -> [GuestRange] {
    ranges.flatMap { VirtioMemory($0, in: image)?.plugged ?? [$0] }
  }
}
