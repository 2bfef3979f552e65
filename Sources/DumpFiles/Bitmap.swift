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
  /// Set bits in all words before each group of `wordsPerGroup`, and at the end in all words.
  private let ranks: [UInt64]

  private static let wordsPerGroup = 64

  /// Reads the bits of frames below `limit` from `offset` of the file. The caller has checked that
  /// they lie in the file.
  init(_ file: InputFile, at offset: UInt64, limit: UInt64) throws(DumpFileError) {
    let byteCount = (limit + 7) / 8
    guard let wordCount = Int(exactly: (byteCount + 7) / 8),
      let memory = unsafe calloc(wordCount, 8)
    else { throw .outOfMemory(file.path, bytes: byteCount) }
    unsafe words = memory.bindMemory(to: UInt64.self, capacity: wordCount)
    self.wordCount = wordCount
    self.limit = limit
    do throws(DumpFileError) {
      try unsafe Self.load(
        UnsafeMutableRawBufferPointer(start: memory, count: Int(byteCount)), from: file, at: offset)
    } catch {
      unsafe free(memory)
      throw error
    }
    if limit % 64 != 0, wordCount > 0 {
      // Bits behind the last frame are padding, whatever they hold.
      let last = unsafe UInt64(littleEndian: words[wordCount - 1])
      unsafe words[wordCount - 1] = (last & (1 << (limit % 64) - 1)).littleEndian
    }
    var ranks: [UInt64] = []
    ranks.reserveCapacity(wordCount / Self.wordsPerGroup + 2)
    var rank: UInt64 = 0
    for index in 0..<wordCount {
      if index % Self.wordsPerGroup == 0 { ranks.append(rank) }
      rank += unsafe UInt64(words[index].nonzeroBitCount)
    }
    ranks.append(rank)
    self.ranks = ranks
  }

  deinit {
    unsafe free(words)
  }

  private static func load(
    _ bits: UnsafeMutableRawBufferPointer, from file: InputFile, at offset: UInt64
  ) throws(DumpFileError) {
    let pieceSize = 1 << 20
    var position = 0
    while position < bits.count {
      let piece = try file.bytes(
        at: offset + UInt64(position), count: min(pieceSize, bits.count - position))
      guard !piece.isEmpty else { return }
      if !piece.isZero {
        unsafe UnsafeMutableRawBufferPointer(rebasing: bits[position...]).copyBytes(from: piece)
      }
      position += piece.count
    }
  }

  /// Number of set bits.
  var count: UInt64 { ranks.last ?? 0 }

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
    let group = index / Self.wordsPerGroup
    var rank = ranks[group]
    for before in group * Self.wordsPerGroup..<index {
      rank += UInt64(word(before).nonzeroBitCount)
    }
    return rank + UInt64((word(index) & (1 << (frame % 64) - 1)).nonzeroBitCount)
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
