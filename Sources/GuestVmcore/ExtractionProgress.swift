import Synchronization

/// How far an extraction is, in pages; read by whoever shows it, while threads count it up.
public final class ExtractionProgress: Sendable {
  private let done = Atomic<UInt64>(0)

  public init() {}

  public var pagesDone: UInt64 { done.load(ordering: .relaxed) }

  func add(_ pages: UInt64) { done.add(pages, ordering: .relaxed) }
}
