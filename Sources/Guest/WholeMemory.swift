import Memory

extension PageMap<GuestPhysicalAddress> {
  /// A machine's own memory as a map: the frames that its dump speaks of, where they are. Large parts
  /// that the dump does not have are left out: damaged headers name petabytes.
  public init(wholeOf source: any FrameSource) {
    let regions = source.frameRanges.flatMap { source.parts(of: $0) }.map { range in
      MemoryRegion(
        start: GuestPhysicalAddress(range.lowerBound.rawValue << pageShift),
        size: range.upperBound.distance(from: range.lowerBound) << pageShift, isReadOnly: false,
        origin: "memory of the dump")
    }
    self.init(regions: regions, backing: WholeMemory(source: source))
  }
}

extension FrameSource {
  /// The range without what is missing of it in one piece of 4 GiB or more, or to its end.
  fileprivate func parts(of range: Range<PageFrameNumber>) -> [Range<PageFrameNumber>] {
    let stride: UInt64 = 1 << 20
    var parts: [Range<PageFrameNumber>] = []
    var position = range.lowerBound
    while position < range.upperBound {
      let rest = range.upperBound.distance(from: position)
      // One question for each step, as pages may come and go with every frame.
      let (absence, count) = presence(from: position, limit: rest)
      if absence != nil, count >= min(stride, rest) {
        position = position + count
        continue
      }
      let end = position + min(stride, rest)
      if let last = parts.last, last.upperBound == position {
        parts[parts.count - 1] = last.lowerBound..<end
      } else {
        parts.append(position..<end)
      }
      position = end
    }
    return parts
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
