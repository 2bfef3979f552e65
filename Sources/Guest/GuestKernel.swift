import LinuxKernel
import Memory
import X86

/// A Linux kernel found in a guest's memory by its VMCOREINFO note.
public struct GuestKernel: Sendable {
  public let vmcoreinfo: Vmcoreinfo
  /// Where in the guest the note lies.
  public let noteAddress: GuestPhysicalAddress
  /// The vCPUs whose page tables lead to this kernel.
  public let processors: [Int]
  /// The kernel's symbols, where its release exports them.
  public let symbols: Kallsyms?
  /// Where the kernel maps all of physical memory; nil without symbols.
  public let pageOffsetBase: UInt64?

  /// True if the kernel panicked and told the time.
  public var hasCrashed: Bool { vmcoreinfo.crashTime != nil }

  /// Checks a candidate: nil unless the kernel that the note describes is in the guest's memory.
  init?(_ candidate: VmcoreinfoCandidate, in guest: Guest, memory: GuestMemory) {
    guard let space = try? VirtualMemory(ofKernel: candidate.vmcoreinfo, in: memory) else {
      return nil
    }
    vmcoreinfo = candidate.vmcoreinfo
    noteAddress = candidate.address
    processors = guest.processors.filter { processor in
      guard let text = candidate.vmcoreinfo.symbol("_stext"),
        let tables = processor.registers.pageTables(encryptionMask: space.tables.encryptionMask),
        let seen = try? VirtualMemory(physical: memory, tables: tables).translate(text)
      else { return false }
      return seen == (try? space.translate(text))
    }.map(\.index)
    symbols = try? Kallsyms(candidate.vmcoreinfo, in: space)
    pageOffsetBase = symbols?.address(of: "page_offset_base").flatMap { try? space.load($0) }
  }
}

/// A VMCOREINFO note somewhere in a guest's memory: its kernel's own, or a stale copy.
public struct VmcoreinfoCandidate: Sendable {
  public let address: GuestPhysicalAddress
  public let vmcoreinfo: Vmcoreinfo
}

/// The kernels in a guest's memory.
public struct GuestKernels: Sendable {
  /// Best first: see ``rank(_:_:)``.
  public let kernels: [GuestKernel]
  /// Notes whose kernel is not there: copies in the page cache, or left in freed memory.
  public let staleCopies: Int

  /// Searches the guest's whole memory: no device, and no hint of the VMM, is needed.
  public init(of guest: Guest, in source: any FrameSource, threads: Int) {
    let memory = GuestMemory(guest.memory, in: source)
    let candidates = VmcoreinfoSearch(guest.memory, source, threads: threads).candidates()
    var verified: [GuestKernel] = []
    var stale = 0
    for candidate in candidates {
      // Copies of one note describe one kernel.
      if verified.contains(where: { $0.vmcoreinfo == candidate.vmcoreinfo }) { continue }
      if let kernel = GuestKernel(candidate, in: guest, memory: memory) {
        verified.append(kernel)
      } else {
        stale += 1
      }
    }
    kernels = verified.sorted(by: Self.rank)
    staleCopies = stale
  }

  /// A guest in its own kdump kernel has two: the crashed one is what its owner wants to see, as
  /// crash does. Else the one that more vCPUs execute.
  private static func rank(_ first: GuestKernel, _ second: GuestKernel) -> Bool {
    if first.hasCrashed != second.hasCrashed { return first.hasCrashed }
    if first.processors.count != second.processors.count {
      return first.processors.count > second.processors.count
    }
    return first.noteAddress < second.noteAddress
  }
}
