import Memory

extension PageMap<GuestPhysicalAddress> {
  /// A machine's own memory as a map: every frame that its dump speaks of, where it is.
  public init(wholeOf source: any FrameSource) {
    let regions = source.frameRanges.map { range in
      MemoryRegion(
        start: GuestPhysicalAddress(range.lowerBound.rawValue << pageShift),
        size: range.upperBound.distance(from: range.lowerBound) << pageShift, isReadOnly: false,
        origin: "memory of the dump")
    }
    self.init(regions: regions, backing: WholeMemory(source: source))
  }
}

private struct WholeMemory: MemoryBacking {
  let source: any FrameSource

  func runs(from start: GuestPhysicalAddress, pages: UInt64) -> [MemoryRun] {
    var builder = PageRunBuilder<GuestPhysicalAddress>()
    let first = PageFrameNumber(start.rawValue >> pageShift)
    var done: UInt64 = 0
    while done < pages {
      let (absence, count) = source.presence(from: first + done, limit: pages - done)
      builder.append(
        MemoryRun(
          start: start + done << pageShift, pages: max(1, count),
          content: absence.map { .missing(MissingReason($0)) } ?? .frames(first + done)))
      done += max(1, count)
    }
    return builder.runs
  }
}
