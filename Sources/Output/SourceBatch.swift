import Guest
import Memory

/// Pages that lie behind each other in the source, and belong behind each other elsewhere.
protocol SourcePiece {
  var frame: PageFrameNumber { get }
  var pages: Int { get }
}

extension PlacedPiece: SourcePiece {}
extension FramePiece: SourcePiece {}

/// Pieces that lie behind each other in the source, read at once.
struct SourceBatch: Sendable {
  let pieces: Range<Int>
  let pages: Int

  /// - Parameters:
  ///   - pieces: in the order of the source.
  ///   - maximumPages: of a batch, unless it is of one piece alone that has more.
  static func batches(of pieces: [some SourcePiece], maximumPages: Int) -> [SourceBatch] {
    var batches: [SourceBatch] = []
    var first = 0
    var pages = 0
    for (index, piece) in pieces.enumerated() {
      let follows =
        index > first && pieces[index - 1].frame + UInt64(pieces[index - 1].pages) == piece.frame
      if index > first, !follows || pages + piece.pages > maximumPages {
        batches.append(SourceBatch(pieces: first..<index, pages: pages))
        first = index
        pages = 0
      }
      pages += piece.pages
    }
    if first < pieces.count {
      batches.append(SourceBatch(pieces: first..<pieces.count, pages: pages))
    }
    return batches
  }
}

/// Room for pages that lives as long as its owner.
@safe final class PageBuffer {
  let bytes: UnsafeMutableRawBufferPointer

  init(pages: Int) {
    unsafe bytes = .allocate(byteCount: pages * Int(pageSize), alignment: Int(pageSize))
  }

  deinit { unsafe bytes.deallocate() }
}
