/// What a dump's writer was told to leave out: makedumpfile's dump level (`-d`).
public struct DumpLevel: OptionSet, Hashable, Sendable, CustomStringConvertible {
  public let rawValue: Int32
  public init(rawValue: Int32) { self.rawValue = rawValue }

  public static let zeroPages = DumpLevel(rawValue: 1)
  /// Page-cache pages without private data: file contents, and memory of memfd and shmem.
  public static let cache = DumpLevel(rawValue: 2)
  /// Page-cache pages with private data.
  public static let privateCache = DumpLevel(rawValue: 4)
  /// Anonymous and hugetlb pages of processes: guest memory, as a rule.
  public static let userData = DumpLevel(rawValue: 8)
  public static let freePages = DumpLevel(rawValue: 16)

  public var description: String { String(rawValue) }
}

/// A dump's memory: which frames it holds, and their bytes.
public protocol FrameSource: PhysicalMemory {
  /// Whether bytes of `frame` are at hand (nil: they are), and for how many frames from there on,
  /// at most `limit`, the answer is the same. Reads no page.
  func presence(from frame: PageFrameNumber, limit: UInt64) -> (absence: Absence?, count: UInt64)

  /// What the dump's writer left out, where the format records it.
  var dumpLevel: DumpLevel? { get }

  /// The frames that the dump speaks of, ascending.
  var frameRanges: [Range<PageFrameNumber>] { get }

  /// Where in a file the bytes of consecutive frames lie as they are in memory, at most `limit` of
  /// them; nil if they do not.
  func fileExtent(from frame: PageFrameNumber, limit: UInt64) -> FileExtent?

  /// One thread's way to read many pages.
  associatedtype Reader: FrameReader
  func makeReader() -> Reader
}

/// Pages in a file.
public struct FileExtent: Hashable, Sendable {
  /// Open as long as the source is.
  public let descriptor: Int32
  /// In bytes.
  public let offset: UInt64
  public let pages: UInt64

  public init(descriptor: Int32, offset: UInt64, pages: UInt64) {
    self.descriptor = descriptor
    self.offset = offset
    self.pages = pages
  }
}

/// One thread's way to read many pages, with buffers of its own.
public protocol FrameReader: AnyObject {
  /// Reads consecutive frames into `buffer`, 4096 bytes each; the room of absent ones is zeroed.
  /// Returns a result per frame: nil where its bytes are in the buffer, else why not.
  func read(
    from frame: PageFrameNumber, into buffer: UnsafeMutableRawBufferPointer
  ) -> [Absence?]
}

extension FrameSource {
  public func fileExtent(from frame: PageFrameNumber, limit: UInt64) -> FileExtent? { nil }

  /// At most `count` frames that the dump holds, evenly spread over it.
  public func sampleFrames(count: UInt64) -> [PageFrameNumber] {
    let total = frameRanges.reduce(0) { $0 &+ $1.upperBound.distance(from: $1.lowerBound) }
    let step = max(1, total / max(1, count))
    var samples: [PageFrameNumber] = []
    for range in frameRanges {
      var frame = range.lowerBound
      while frame < range.upperBound {
        if presence(from: frame, limit: 1).absence == nil { samples.append(frame) }
        frame = frame + step
      }
    }
    return samples
  }
}
