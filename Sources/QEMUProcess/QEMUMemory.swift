import DumpFiles
import Guest
import Memory

/// A guest's memory through the mappings of its QEMU.
struct QEMUMemory: MemoryBacking {
  /// Ascending and apart from each other.
  let ranges: [GuestRange]
  let source: any FrameSource
  let isEncrypted: Bool

  func runs(from start: GuestPhysicalAddress, pages: UInt64) -> [MemoryRun] {
    guard let range = range(holding: start.rawValue) else { return [] }
    var builder = MemoryRunBuilder()
    let offset = start.rawValue - range.start
    let total = min(pages, (range.size - offset) >> pageShift)
    if isEncrypted || range.block.flags.contains(.guestMemfd) {
      builder.append(MemoryRun(start: start, pages: total, content: .missing(.encrypted)))
      return builder.runs
    }
    let host = range.block.host + range.offset + offset
    let first = PageFrameNumber(host.rawValue >> pageShift)
    var done: UInt64 = 0
    while done < total {
      let (absence, count) = source.presence(from: first + done, limit: total - done)
      let pages = max(1, min(count, total - done))
      builder.append(
        MemoryRun(
          start: start + done << pageShift, pages: pages,
          content: absence.map { .missing(MissingReason(inCore: $0)) } ?? .frames(first + done)))
      done += pages
    }
    return builder.runs
  }

  private func range(holding address: UInt64) -> GuestRange? {
    var low = 0
    var high = ranges.count
    while low < high {
      let middle = (low + high) / 2
      if ranges[middle].end <= address { low = middle + 1 } else { high = middle }
    }
    guard low < ranges.count, ranges[low].start <= address else { return nil }
    return ranges[low]
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
      }
  }
}
