import Glibc
import Memory

/// A bit per page frame, as it stands in the file: bit n is bit n % 8 of byte n / 8.
///
/// Memory: one bit per frame and a 64th of that for the rank index; nothing for stretches that are
/// zero, since memory fresh from the system stays unbacked until it is written.
@safe final class Bitmap: @unchecked Sendable {
  // Sendable: the words are written in the initialiser only.
  private let words: UnsafeMutablePointer<UInt64>
  private let wordCount: Int
  /// Frames from here on have no bit.
  let limit: UInt64
  private let ranks: Ranks

  /// What is read at once: whole groups of the rank index.
  private static let pieceSize: UInt64 = 1 << 20

  /// Reads the bits of frames below `limit` from `offset` of the file. The caller has checked that
  /// they lie in the file.
  init(_ file: InputFile, at offset: UInt64, limit: UInt64) throws(DumpFileError) {
    let byteCount = (limit + 7) / 8
    guard let wordCount = Int(exactly: (byteCount + 7) / 8),
      let memory = unsafe calloc(wordCount, 8)
    else { throw .outOfMemory(file.path, bytes: byteCount) }
    let words = unsafe memory.bindMemory(to: UInt64.self, capacity: wordCount)
    var ranks = Ranks()
    for position in stride(from: 0, to: byteCount, by: UInt64.Stride(Self.pieceSize)) {
      let piece: [UInt8]
      do throws(DumpFileError) {
        piece = try Self.piece(of: file, at: offset, from: position, limit: limit)
      } catch {
        unsafe free(memory)
        throw error
      }
      let isZero = piece.isZero
      if !isZero { unsafe (memory + Int(position)).copyMemory(from: piece, byteCount: piece.count) }
      let first = Int(position / 8)
      let count = min(wordCount - first, Int(Self.pieceSize / 8))
      unsafe ranks.append(UnsafeBufferPointer(start: words + first, count: count), isZero: isZero)
    }
    unsafe self.words = words
    self.wordCount = wordCount
    self.limit = limit
    self.ranks = ranks
  }

  deinit {
    unsafe free(words)
  }

  /// Whether another file has the same bits at `offset`.
  func equals(_ file: InputFile, at offset: UInt64) throws(DumpFileError) -> Bool {
    let byteCount = (limit + 7) / 8
    for position in stride(from: 0, to: byteCount, by: UInt64.Stride(Self.pieceSize)) {
      let piece = try Self.piece(of: file, at: offset, from: position, limit: limit)
      let isEqual = unsafe piece.withUnsafeBytes { bytes in
        unsafe bytes.baseAddress.map {
          unsafe memcmp(words + Int(position / 8), $0, bytes.count) == 0
        } ?? true
      }
      guard isEqual, UInt64(piece.count) == min(Self.pieceSize, byteCount - position) else {
        return false
      }
    }
    return true
  }

  /// The bytes of the bitmap at `offset` from byte `position` on.
  private static func piece(
    of file: InputFile, at offset: UInt64, from position: UInt64, limit: UInt64
  ) throws(DumpFileError) -> [UInt8] {
    let byteCount = (limit + 7) / 8
    var piece = try file.bytes(
      at: offset + position, count: Int(min(pieceSize, byteCount - position)))
    if position + UInt64(piece.count) == byteCount, limit % 8 != 0 {
      // Bits behind the last frame are padding, whatever they hold.
      piece[piece.count - 1] &= 1 << UInt8(limit % 8) - 1
    }
    return piece
  }

  /// Number of set bits.
  var count: UInt64 { ranks.total }

  /// Number of bits that are set here and not in another bitmap of the same length.
  func bits(notIn other: Bitmap) -> UInt64 {
    (0..<wordCount).reduce(0) { $0 + UInt64((word($1) & ~other.word($1)).nonzeroBitCount) }
  }

  /// 64 bits from a multiple of 64 on.
  @inline(__always) func word(_ index: Int) -> UInt64 {
    index < wordCount ? unsafe UInt64(littleEndian: words[index]) : 0
  }

  @inline(__always) subscript(frame: UInt64) -> Bool {
    frame < limit && word(Int(frame / 64)) >> (frame % 64) & 1 != 0
  }

  /// Number of set bits of frames below `frame`.
  func rank(of frame: UInt64) -> UInt64 {
    guard frame < limit else { return count }
    let index = Int(frame / 64)
    let group = index / Ranks.wordsPerGroup
    var rank = ranks.groups[group]
    for before in group * Ranks.wordsPerGroup..<index {
      rank += UInt64(word(before).nonzeroBitCount)
    }
    return rank + UInt64((word(index) & (1 << (frame % 64) - 1)).nonzeroBitCount)
  }
}

/// How many bits are set before each group of words.
private struct Ranks: Sendable {
  static let wordsPerGroup = 64

  private(set) var groups: [UInt64] = []
  private(set) var total: UInt64 = 0

  /// Words that follow those appended before, which were whole groups.
  mutating func append(_ words: UnsafeBufferPointer<UInt64>, isZero: Bool) {
    for start in stride(from: 0, to: words.count, by: Self.wordsPerGroup) {
      groups.append(total)
      if isZero { continue }
      for index in start..<min(start + Self.wordsPerGroup, words.count) {
        total += unsafe UInt64(words[index].nonzeroBitCount)
      }
    }
  }
}

/// How many bits from `start` up to `end` are set without a gap, in words that `word` gives.
@inline(__always)
func setRun(from start: UInt64, to end: UInt64, word: (Int) -> UInt64) -> UInt64 {
  var position = start
  while position < end {
    let clear = ~(word(Int(position / 64)) >> (position % 64))
    let left = 64 - position % 64
    let run = min(UInt64(clear.trailingZeroBitCount), left)
    position += run
    if run < left { break }
  }
  return min(position, end) - start
}
