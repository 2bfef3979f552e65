import Memory

/// How much of a guest's memory is at hand, and what is missing why.
public struct MemorySurvey: Hashable, Sendable {
  /// Pages whose bytes are in the source.
  public private(set) var present: UInt64 = 0
  public private(set) var zero: [ZeroReason: UInt64] = [:]
  public private(set) var missing: [MissingReason: UInt64] = [:]
  /// The runs that are missing, ascending; at most ``runLimit`` of them.
  public private(set) var missingRuns: [MemoryRun] = []
  /// Missing runs beyond the limit: they are counted in ``missing`` only.
  public private(set) var unlistedRuns: UInt64 = 0

  /// Keeps a report of a badly fragmented guest at a few hundred kilobytes.
  public static let runLimit = 4096

  public init() {}

  public init(of map: MemoryMap) {
    map.forEachWindow { _, runs in
      for run in runs { add(run) }
    }
  }

  public var missingPages: UInt64 { missing.values.reduce(0, +) }
  public var zeroPages: UInt64 { zero.values.reduce(0, +) }
  public var pages: UInt64 { present + zeroPages + missingPages }

  public mutating func add(_ run: MemoryRun) {
    switch run.content {
    case .frames: present += run.pages
    case .zero(let reason): zero[reason, default: 0] += run.pages
    case .missing(let reason):
      missing[reason, default: 0] += run.pages
      if let last = missingRuns.last, last.start + last.size == run.start,
        last.content == run.content
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
