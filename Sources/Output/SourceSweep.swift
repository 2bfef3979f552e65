import Guest
import Memory

/// Pages that lie behind each other in the source, and belong behind each other elsewhere.
protocol SourcePiece: Sendable {
  var frame: PageFrameNumber { get }
  var pages: Int { get }
}

extension FramePiece: SourcePiece {}

/// Goes through pieces in the order of the source and cuts them into batches of pages that are read
/// at once, each page once, however many pieces want it: guests share pages that the host merged
/// (KSM), and their templates'.
struct SourceSweep<Piece: SourcePiece>: Sendable {
  private let pieces: [Piece]
  private let batchPages: UInt64
  /// The first piece that has not begun.
  private var next = 0
  /// Pieces that began before `position` and go on behind it.
  private var open: [Piece] = []
  private var position = PageFrameNumber(0)

  /// - Parameters:
  ///   - pieces: in any order.
  ///   - batchPages: the most pages of a batch, a power of two: they end where this divides the
  ///     frame's number, so that what huge pages hold is read as it lies.
  init(_ pieces: consuming [Piece], batchPages: Int) {
    var pieces = pieces
    // None ends behind the last frame there can be: such runs are not in any source.
    pieces.removeAll { $0.end <= $0.frame }
    pieces.sort { $0.frame < $1.frame }
    self.pieces = pieces
    self.batchPages = UInt64(batchPages)
  }

  /// The next pages, and all that is wanted of them; false behind the last.
  mutating func next(into batch: inout SourceBatch<Piece>) -> Bool {
    batch.parts.removeAll(keepingCapacity: true)
    if open.isEmpty {
      guard next < pieces.count else { return false }
      position = pieces[next].frame
    }
    let limit = PageFrameNumber(position.rawValue | (batchPages - 1)) + 1
    var end = position
    for piece in open { end = max(end, piece.end) }
    while next < pieces.count, pieces[next].frame <= end, pieces[next].frame < limit {
      open.append(pieces[next])
      end = max(end, pieces[next].end)
      next += 1
    }
    end = min(end, limit)
    batch.first = position
    batch.pages = Int(end.distance(from: position))
    for piece in open {
      let start = max(piece.frame, position)
      batch.parts.append(
        SourceBatch.Part(
          piece: piece, skipped: start.distance(from: piece.frame),
          position: Int(start.distance(from: position)),
          pages: Int(min(piece.end, end).distance(from: start))))
    }
    open.removeAll { $0.end <= end }
    position = end
    return true
  }
}

/// Pages that are read at once.
struct SourceBatch<Piece: SourcePiece>: Sendable {
  /// What a piece wants of them.
  struct Part: Sendable {
    let piece: Piece
    /// Pages of the piece that came in batches before.
    let skipped: UInt64
    /// Where the part begins in the batch, in pages.
    let position: Int
    let pages: Int
  }

  fileprivate(set) var first = PageFrameNumber(0)
  fileprivate(set) var pages = 0
  fileprivate(set) var parts: [Part] = []

  /// How many pages the parts have together.
  var wanted: UInt64 { parts.reduce(0) { $0 + UInt64($1.pages) } }
}

extension SourcePiece {
  fileprivate var end: PageFrameNumber { frame + UInt64(pages) }
}

/// Room for pages that lives as long as its owner.
@safe final class PageBuffer {
  let bytes: UnsafeMutableRawBufferPointer

  init(pages: Int) {
    unsafe bytes = .allocate(byteCount: pages * Int(pageSize), alignment: Int(pageSize))
  }

  deinit { unsafe bytes.deallocate() }

  /// Reads a batch that is not larger than the buffer: its bytes, and per page why it is zero.
  func read<Piece>(
    _ batch: SourceBatch<Piece>, by reader: any FrameReader
  ) -> (bytes: UnsafeRawBufferPointer, absences: [Absence?]) {
    let room = unsafe UnsafeMutableRawBufferPointer(
      rebasing: bytes[..<(batch.pages * Int(pageSize))])
    let absences = unsafe reader.read(from: batch.first, into: room)
    return (UnsafeRawBufferPointer(room), absences)
  }
}

extension UnsafeRawBufferPointer {
  func page(_ index: Int) -> UnsafeRawBufferPointer { unsafe pages(index..<index + 1) }

  func pages(_ range: Range<Int>) -> UnsafeRawBufferPointer {
    let start = range.lowerBound << Int(pageShift)
    return unsafe UnsafeRawBufferPointer(
      rebasing: self[start..<range.upperBound << Int(pageShift)])
  }
}
