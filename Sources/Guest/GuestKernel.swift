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
        let place = try? space.translate(text)
      else { return false }
      return processor.kernelTables(encryptionMask: space.tables.encryptionMask).contains {
        (try? VirtualMemory(physical: memory, tables: $0).translate(text)) == place
      }
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

  /// Finds them without the VMM's help, and without a device for it: where a vCPU's kernel points
  /// at its note, or, unless that kernel is known to be the only one, by a search of all memory.
  public init(of guest: Guest, in source: any FrameSource, threads: Int) {
    let memory = GuestMemory(guest.memory, in: source)
    let search = VmcoreinfoSearch(guest.memory, source, threads: threads)
    var kernels = Self(search.candidatesPointedAt(by: guest), in: guest, memory: memory)
    if !kernels.kernels.contains(where: { $0.isOnlyKernel(in: memory) }) {
      kernels = Self(search.candidates(), in: guest, memory: memory)
    }
    self = kernels
  }

  private init(_ candidates: [VmcoreinfoCandidate], in guest: Guest, memory: GuestMemory) {
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

extension GuestKernel {
  /// True if a vCPU executes the kernel, and it has not been started to dump a kernel that crashed
  /// before: `elfcorehdr_addr` (kernel/crash_dump.c) has no address then.
  fileprivate func isOnlyKernel(in memory: GuestMemory) -> Bool {
    guard !processors.isEmpty, let symbols,
      let space = try? VirtualMemory(ofKernel: vmcoreinfo, in: memory)
    else { return false }
    // Without the variable, the kernel was built to be none that dumps.
    guard let address = symbols.address(of: "elfcorehdr_addr") else { return true }
    return (try? space.load(address, as: UInt64.self)) == .max
  }
}

extension VmcoreinfoSearch {
  /// Notes that the kernels point at which the guest's vCPUs execute.
  fileprivate func candidatesPointedAt(by guest: Guest) -> [VmcoreinfoCandidate] {
    var seen: Set<PageTables> = []
    for tables in guest.processors.flatMap({ $0.kernelTables() })
    where seen.insert(tables).inserted {
      let candidates = candidates(ofKernelIn: tables)
      if !candidates.isEmpty { return candidates }
    }
    return []
  }
}

extension VirtualProcessor {
  /// Page tables that may map the kernel: those in use, and the kernel's own beside them.
  ///
  /// With page table isolation the tables of a process map next to nothing of the kernel; they lie
  /// in the page behind the kernel's (PTI_USER_PGTABLE_BIT, arch/x86/include/asm/pgtable.h).
  fileprivate func kernelTables(encryptionMask: UInt64 = 0) -> [PageTables] {
    guard let tables = registers.pageTables(encryptionMask: encryptionMask) else { return [] }
    let isUser = tables.root.rawValue & pageSize != 0
    let kernel = PageTables(
      root: tables.root - (isUser ? pageSize : 0), levels: tables.levels,
      encryptionMask: encryptionMask)
    return isUser ? [tables, kernel] : [tables]
  }
}
