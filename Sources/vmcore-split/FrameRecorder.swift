import Memory
import Synchronization

/// Remembers which frames were read.
final class FrameRecorder: Sendable {
  private let recorded = Mutex<Set<UInt64>>([])

  func record(_ frame: PageFrameNumber) {
    recorded.withLock { _ = $0.insert(frame.rawValue) }
  }

  /// Ascending.
  var frames: [PageFrameNumber] {
    recorded.withLock { $0.sorted().map { PageFrameNumber($0) } }
  }
}

/// A dump's memory that tells a recorder of every page read through it.
struct RecordingSource<Source: FrameSource>: FrameSource {
  private let source: Source
  private let recorder: FrameRecorder

  init(_ source: Source, _ recorder: FrameRecorder) {
    self.source = source
    self.recorder = recorder
  }

  func page(_ frame: PageFrameNumber) throws(MemoryError) -> [UInt8] {
    let page = try source.page(frame)
    recorder.record(frame)
    return page
  }

  func presence(
    from frame: PageFrameNumber, limit: UInt64
  ) -> (absence: Absence?, count: UInt64) {
    source.presence(from: frame, limit: limit)
  }

  var dumpLevel: DumpLevel? { source.dumpLevel }
  var frameRanges: [Range<PageFrameNumber>] { source.frameRanges }
  func makeReader() -> Source.Reader { source.makeReader() }
}
