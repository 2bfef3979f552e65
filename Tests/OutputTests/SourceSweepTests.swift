import Memory
import Testing

@testable import Guest
@testable import Output

@Suite struct SourceSweepTests {
  private typealias Piece = FramePiece<GuestPhysicalAddress>

  private static func piece(_ frame: UInt64, _ pages: Int) -> Piece {
    Piece(start: GuestPhysicalAddress(frame << 20), frame: PageFrameNumber(frame), pages: pages)
  }

  /// Each piece's pages must come once and in order, each frame be read once, and no batch be
  /// larger than `batchPages` or go back.
  private static func check(_ pieces: [Piece], batchPages: Int) -> Int {
    var sweep = SourceSweep(pieces, batchPages: batchPages)
    var batch = SourceBatch<Piece>()
    var seen: [Piece: Int] = [:]
    var end: UInt64 = 0
    var batches = 0
    while sweep.next(into: &batch) {
      batches += 1
      #expect(batch.first.rawValue >= end)
      #expect((1...batchPages).contains(batch.pages))
      end = batch.first.rawValue + UInt64(batch.pages)
      var wanted: Set<Int> = []
      for part in batch.parts {
        #expect(seen[part.piece, default: 0] == Int(part.skipped))
        seen[part.piece, default: 0] += part.pages
        #expect(part.piece.frame + part.skipped == batch.first + UInt64(part.position))
        wanted.formUnion(part.position..<part.position + part.pages)
      }
      // Nothing is read that nobody wants.
      #expect(wanted == Set(0..<batch.pages))
    }
    for piece in pieces { #expect(seen[piece] == piece.pages) }
    return batches
  }

  @Test func `pages that several pieces want are read once`() {
    #expect(
      Self.check(
        [Self.piece(10, 4), Self.piece(12, 1), Self.piece(11, 6), Self.piece(16, 2)],
        batchPages: 256) == 1)
  }

  @Test func `a long piece is cut where the frame's number is a multiple`() {
    #expect(Self.check([Self.piece(100, 1000)], batchPages: 256) == 5)
  }

  @Test func `gaps are not read`() {
    #expect(
      Self.check([Self.piece(1, 1), Self.piece(3, 1), Self.piece(9, 8)], batchPages: 256) == 3)
  }

  @Test func `any pieces`() {
    var random = Xorshift(state: 7)
    for _ in 0..<200 {
      var pieces: Set<Piece> = []
      for _ in 0..<40 {
        pieces.insert(Self.piece(random.next() % 600, Int(random.next() % 90) + 1))
      }
      // Pieces are told apart by where they start.
      var byStart: [UInt64: Piece] = [:]
      for piece in pieces { byStart[piece.frame.rawValue] = piece }
      _ = Self.check(Array(byStart.values), batchPages: 64)
    }
  }

  @Test func `pieces that end behind the last frame there can be are left out`() {
    var sweep = SourceSweep(
      [Self.piece(.max - 1, 5), Self.piece(3, 0)], batchPages: 256)
    var batch = SourceBatch<Piece>()
    let hasBatch = sweep.next(into: &batch)
    #expect(!hasBatch)
  }
}

private struct Xorshift: RandomNumberGenerator {
  var state: UInt64

  mutating func next() -> UInt64 {
    state ^= state << 13
    state ^= state >> 7
    state ^= state << 17
    return state
  }
}
