import Memory

/// Why pages on a swap device of the host are missing.
public struct SwapLoss: Hashable, Sendable {
  public let reason: MissingReason
  /// See ``SwapEntry/device``.
  public let device: UInt8

  public init(reason: MissingReason, device: UInt8) {
    self.reason = reason
    self.device = device
  }
}

/// How much of an address space's memory is at hand, and what is missing why.
public struct PageSurvey<Location: Address>: Hashable, Sendable {
  /// Pages whose bytes are in the source.
  public private(set) var present: UInt64 = 0
  public private(set) var zero: [ZeroReason: UInt64] = [:]
  public private(set) var missing: [MissingReason: UInt64] = [:]
  /// Those of ``present`` that the host had swapped out, by what has their bytes.
  public private(set) var swapped: [SwapStore: UInt64] = [:]
  /// Those of ``missing`` that are on swap devices of the host.
  public private(set) var onDevice: [SwapLoss: UInt64] = [:]
  /// The runs that are missing, ascending; at most ``runLimit`` of them.
  public private(set) var missingRuns: [PageRun<Location>] = []
  /// Missing runs beyond the limit: they are counted in ``missing`` only.
  public private(set) var unlistedRuns: UInt64 = 0

  /// Keeps a report of a badly fragmented guest at a few hundred kilobytes.
  public static var runLimit: Int { 4096 }

  public init() {}

  public init(of map: PageMap<Location>) {
    map.forEachWindow { _, runs in
      for run in runs { add(run) }
    }
  }

  public var missingPages: UInt64 { missing.values.reduce(0, +) }
  public var zeroPages: UInt64 { zero.values.reduce(0, +) }
  public var pages: UInt64 { present + zeroPages + missingPages }

  public mutating func add(_ run: PageRun<Location>) {
    switch run.content {
    case .frames(let frame):
      present += run.pages
      if let page = SwappedPage(frame) { swapped[page.store, default: 0] += run.pages }
    case .zero(let reason): zero[reason, default: 0] += run.pages
    case .missing(let reason, let device):
      missing[reason, default: 0] += run.pages
      if let device { onDevice[SwapLoss(reason: reason, device: device), default: 0] += run.pages }
      if let last = missingRuns.last, last.start + last.size == run.start,
        last.content.missingReason == reason
      {
        missingRuns[missingRuns.count - 1].pages += run.pages
      } else if missingRuns.count < Self.runLimit {
        missingRuns.append(run)
      } else {
        unlistedRuns += 1
      }
    }
  }
}
