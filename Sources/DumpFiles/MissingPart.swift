import Memory

/// Frames of a split dump whose part was not given.
public struct MissingPart: Hashable, Sendable {
  public let frames: Range<PageFrameNumber>
  /// Pages that the dump has of them.
  public let pages: UInt64
}
