import DumpFiles
import Guest
import LinuxKernel
import Memory
import X86

/// What a guest's vmcore is made of: all that is not a page, and where the pages are.
///
/// It is small, so that those of all guests of a host can be at hand when their pages are moved.
public struct VmcoreContents: Sendable {
  let memory: MemoryMap
  let layout: VmcoreLayout
  /// The kernel's own names, for headers that have them.
  let system: SystemName
  /// The text of the kernel's VMCOREINFO.
  let vmcoreinfo: [UInt8]?
  /// Pages of the guest.
  public let pages: UInt64
  /// Pages that are not known to be missing.
  let storedPages: UInt64

  private let header: VmcoreHeader
  private let provenance: Provenance
  /// Bytes for the provenance: with room for pages that turn out to be damaged only when they are
  /// read.
  private let provenanceRoom: Int

  public init(
    _ guest: Guest, kernels: GuestKernels, survey: MemorySurvey, in source: any FrameSource,
    provenance: Provenance, hasChecksums: Bool = false
  ) {
    let kernel = kernels.kernels.first
    memory = guest.memory
    header = VmcoreHeader(
      guest, kernel: kernel, canTrustTables: guest.tablesLeadSomewhere(in: source))
    self.provenance = provenance
    let sums = hasChecksums ? Checksums.room(for: memory) : 0
    provenanceRoom = (provenance.encoded().count + 16384 + sums + 3) & ~3
    layout = VmcoreLayout(
      memory, survey: survey, noteRoom: header.noteSize(provenanceSize: provenanceRoom),
      pageOffsetBase: kernel?.pageOffsetBase)
    system = SystemName(of: kernel, in: GuestMemory(memory, in: source))
    vmcoreinfo = kernel?.vmcoreinfo.text
    pages = survey.pages
    storedPages = survey.pages - survey.missingPages
  }

  /// The file's bytes before the first load.
  func elfHeader(lost: [MemoryRun] = [], _ checksums: Checksums? = nil) -> [UInt8] {
    header.encoded(for: layout, provenance: text(lost, checksums))
  }

  /// Always of the same size.
  func notes(lost: [MemoryRun] = [], _ checksums: Checksums? = nil) -> [Note] {
    header.notes(provenance: text(lost, checksums), room: provenanceRoom)
  }

  private func text(_ lost: [MemoryRun], _ checksums: Checksums?) -> [UInt8] {
    var provenance = provenance.adding(lost: lost)
    provenance.checksums = checksums
    return provenance.encoded()
  }
}

extension Guest {
  /// True if the page tables of every vCPU that has paging on lead from its RIP to memory of the
  /// guest.
  fileprivate func tablesLeadSomewhere(in source: any FrameSource) -> Bool {
    let memory = GuestMemory(memory, in: source)
    let paging = processors.compactMap { processor in
      processor.registers.pageTables().map { (processor, $0) }
    }
    return !paging.isEmpty
      && paging.allSatisfy { processor, tables in
        guard let rip = processor.registers[.rip].value else { return false }
        let space = VirtualMemory(physical: memory, tables: tables)
        return (try? space.translate(VirtualAddress(rip))) != nil
      }
  }
}
