import Glibc
import Guest
import Memory
import Synchronization

/// Moves a guest's pages from the source into its vmcore.
///
/// Guest pages lie scattered over the source. Window by window of guest memory, the pieces are
/// sorted by their place in the source, threads take them in that order, read, skip pages of
/// zeros, and write each run of data where it belongs. What is kept is one window's list.
struct PageMover {
  let source: any FrameSource
  let layout: VmcoreLayout
  let descriptor: Int32
  let threads: Int
  /// Counts pages done, for whoever shows progress.
  let progress: ExtractionProgress

  /// Pages that the source turned out not to have, though it names them; and the first error of
  /// writing (an errno), which ends the move.
  struct Result: Sendable {
    var written: UInt64 = 0
    var lost: [MemoryRun] = []
    var writeError: Int32?
  }

  func move(_ map: MemoryMap) -> Result {
    let result = Mutex(Result())
    map.forEachWindow { _, runs in
      guard result.withLock({ $0.writeError == nil }) else { return }
      let pieces = runs.flatMap(\.pieces).sorted { $0.frame < $1.frame }
      let pages = runs.reduce(0) { $0 + $1.pages }
      progress.add(pages - pieces.reduce(0) { $0 + UInt64($1.pages) })
      let batches = Batch.batches(of: pieces)
      let next = Atomic<Int>(0)
      onThreads(threads) { _ in
        var worker = Worker(self)
        while worker.writeError == nil {
          let index = next.add(1, ordering: .relaxed).oldValue
          guard index < batches.count else { break }
          worker.move(pieces[batches[index].pieces])
          progress.add(UInt64(batches[index].pages))
        }
        let done = worker
        result.withLock {
          $0.written += done.written
          $0.lost += done.lost
          $0.writeError = $0.writeError ?? done.writeError
        }
      }
    }
    return result.withLock { result in
      result.lost.sort { $0.start < $1.start }
      return result
    }
  }
}

/// Pieces that lie behind each other in the source, read at once.
private struct Batch: Sendable {
  let pieces: Range<Int>
  let pages: Int

  static func batches(of pieces: [FramePiece]) -> [Batch] {
    var batches: [Batch] = []
    var first = 0
    var pages = 0
    for (index, piece) in pieces.enumerated() {
      let follows =
        index > first && pieces[index - 1].frame + UInt64(pieces[index - 1].pages) == piece.frame
      if index > first, !follows || pages + piece.pages > FramePiece.maximumPages {
        batches.append(Batch(pieces: first..<index, pages: pages))
        first = index
        pages = 0
      }
      pages += piece.pages
    }
    if first < pieces.count { batches.append(Batch(pieces: first..<pieces.count, pages: pages)) }
    return batches
  }
}

/// One thread's part of the work.
private struct Worker {
  private let mover: PageMover
  private let reader: any FrameReader
  private let buffer: Buffer
  private(set) var written: UInt64 = 0
  private(set) var lost: [MemoryRun] = []
  private(set) var writeError: Int32?

  init(_ mover: PageMover) {
    self.mover = mover
    reader = mover.source.makeReader()
    buffer = Buffer(pages: FramePiece.maximumPages)
  }

  mutating func move(_ pieces: ArraySlice<FramePiece>) {
    guard let first = pieces.first else { return }
    let pages = pieces.reduce(0) { $0 + $1.pages }
    let room = unsafe UnsafeMutableRawBufferPointer(
      rebasing: buffer.bytes[..<(pages * Int(pageSize))])
    let absences = unsafe reader.read(from: first.frame, into: room)
    var position = 0
    for piece in pieces {
      for index in 0..<piece.pages {
        if let absence = absences[position + index] {
          lost.append(
            MemoryRun(
              start: piece.start + UInt64(index) << pageShift, pages: 1,
              content: .missing(MissingReason(absence))))
        }
      }
      let part = unsafe UnsafeRawBufferPointer(
        rebasing: room[(position * Int(pageSize))..<((position + piece.pages) * Int(pageSize))])
      unsafe write(part, at: piece.start)
      position += piece.pages
    }
  }

  /// Writes the pages that are not zero, each run of them at once.
  private mutating func write(_ bytes: UnsafeRawBufferPointer, at start: GuestPhysicalAddress) {
    let unit = Int(pageSize)
    var offset = 0
    while offset < bytes.count {
      let page = unsafe UnsafeRawBufferPointer(rebasing: bytes[offset..<(offset + unit)])
      if unsafe isAllZero(page) {
        offset += unit
        continue
      }
      var end = offset + unit
      while end < bytes.count,
        unsafe !isAllZero(UnsafeRawBufferPointer(rebasing: bytes[end..<(end + unit)]))
      {
        end += unit
      }
      unsafe put(
        UnsafeRawBufferPointer(rebasing: bytes[offset..<end]), at: start + UInt64(offset))
      offset = end
    }
  }

  private mutating func put(_ bytes: UnsafeRawBufferPointer, at start: GuestPhysicalAddress) {
    var done = 0
    while done < bytes.count {
      guard let place = mover.layout.position(of: start + UInt64(done)) else {
        // No place: a page at the edge of a gap, which the survey has counted as missing.
        done += Int(pageSize)
        continue
      }
      let count = min(bytes.count - done, Int(clamping: place.rest))
      let result = unsafe pwrite(
        mover.descriptor, bytes.baseAddress.map { unsafe $0 + done }, count,
        off_t(place.fileOffset))
      if result > 0 {
        done += result
        written += UInt64(result)
      } else if result < 0, errno != EINTR {
        writeError = errno
        return
      }
    }
  }
}

/// Memory that lives as long as its owner.
@safe private final class Buffer {
  let bytes: UnsafeMutableRawBufferPointer

  init(pages: Int) {
    unsafe bytes = .allocate(byteCount: pages * Int(pageSize), alignment: Int(pageSize))
  }

  deinit { unsafe bytes.deallocate() }
}
