import Synchronization

/// How far the writing of a file is, in pages; read by whoever shows it, while threads count it up.
public final class MoveProgress: Sendable {
  private let done = Atomic<UInt64>(0)

  public init() {}

  public var pagesDone: UInt64 { done.load(ordering: .relaxed) }

  public func add(_ pages: UInt64) { done.add(pages, ordering: .relaxed) }
}
