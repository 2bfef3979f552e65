import DumpFiles
import Guest
import Memory

/// A part of a guest's memory, and where the VMM has it mapped.
struct GuestMapping: Hashable, Sendable {
  let region: MemoryRegion
  let host: VirtualAddress
  /// True if the guest's private memory is in no mapping of the VMM.
  let isPrivate: Bool
}

/// A guest's memory through the mappings of its VMM.
struct MappedMemory: MemoryBacking {
  /// Ascending and apart from each other.
  let mappings: [GuestMapping]
  let core: ProcessCore
  let source: any FrameSource
  let isEncrypted: Bool

  func runs(from start: GuestPhysicalAddress, pages: UInt64) -> [MemoryRun] {
    guard let mapping = mapping(holding: start) else { return [] }
    var builder = PageRunBuilder<GuestPhysicalAddress>()
    let offset = start.distance(from: mapping.region.start)
    let total = min(pages, (mapping.region.size - offset) >> pageShift)
    if isEncrypted || mapping.isPrivate {
      builder.append(MemoryRun(start: start, pages: total, content: .missing(.encrypted)))
      return builder.runs
    }
    let host = mapping.host + offset
    var done: UInt64 = 0
    while done < total {
      let (content, count) = content(at: host + done << pageShift, limit: total - done)
      let pages = max(1, min(count, total - done))
      builder.append(MemoryRun(start: start + done << pageShift, pages: pages, content: content))
      done += pages
    }
    return builder.runs
  }

  /// What the core has of a page of the process, and of how many pages the same is true. A core that
  /// was written from a host's dump tells why it lacks pages.
  private func content(
    at address: VirtualAddress, limit: UInt64
  ) -> (content: PageContent, pages: UInt64) {
    let frame = PageFrameNumber(address.rawValue >> pageShift)
    let (absence, count) = source.presence(from: frame, limit: limit)
    let segment = core.segment(at: address)
    // Behind its end may be pages of another kind that are at hand as well.
    let pages = segment.map { min(count, $0.end.distance(from: address) >> pageShift) } ?? count
    return switch segment?.gap {
    case nil:
      (absence.map { .missing(MissingReason(inCore: $0)) } ?? .frames(frame), pages)
    case .unsaid: (.missing(.notDumped), pages)
    case .zero: (.zero(.neverTouched), pages)
    case .missing(let reason): (.missing(reason), pages)
    }
  }

  private func mapping(holding address: GuestPhysicalAddress) -> GuestMapping? {
    let next = mappings.partitioningIndex { $0.region.start > address }
    guard next > 0, mappings[next - 1].region.contains(address) else { return nil }
    return mappings[next - 1]
  }
}

extension MemoryMap {
  init(
    _ mappings: [GuestMapping], of core: ProcessCore, in source: any FrameSource,
    isEncrypted: Bool
  ) {
    let mappings = mappings.sorted { $0.region.start < $1.region.start }
    self.init(
      regions: mappings.map(\.region),
      backing: MappedMemory(
        mappings: mappings, core: core, source: source, isEncrypted: isEncrypted))
  }
}

extension MissingReason {
  /// The kernel names mappings that it leaves out of a core, gdb does not.
  init(inCore absence: Absence) {
    self =
      switch absence {
      case .excluded, .notInDump: .notDumped
      case .truncated: .truncated
      case .corrupt: .corrupt
      case .missingPart: .missingPart
      }
  }
}
