import Memory
import SyntheticDumps
import X86

/// Memory of a kernel built in a test: pages at virtual addresses, and page tables that map them.
struct KernelMemory: PhysicalMemory {
  private var machine = SyntheticMachine()
  private let tables: SyntheticPageTables

  init() { tables = SyntheticPageTables(in: &machine) }

  func page(_ frame: PageFrameNumber) throws(MemoryError) -> [UInt8] {
    try machine.memory.page(frame)
  }

  var virtual: VirtualMemory {
    VirtualMemory(
      physical: self, tables: PageTables(root: tables.root, levels: tables.levels))
  }

  /// Puts bytes at an address, into new pages where there are none. The rest of a page is 0xcc.
  mutating func store(_ bytes: [UInt8], at address: VirtualAddress) {
    tables.write(bytes, at: address, filledWith: 0xcc, in: &machine)
  }

  /// Takes away the page that holds `address`, but not what maps it.
  mutating func removePage(of address: VirtualAddress) {
    guard let physical = try? virtual.translate(address) else { return }
    machine.memory[physical.frame] = nil
  }
}
