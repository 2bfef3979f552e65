import Guest
import Memory
import Synchronization

/// Moves pages from the source into a file.
///
/// Pages of a guest lie scattered over the source. Window by window, the pieces are sorted by their
/// place in the source, threads take them in that order, read, skip pages of zeros, and write each
/// run of data where it belongs. What is kept is one window's list.
public struct PageMover {
  fileprivate let source: any FrameSource
  fileprivate let file: OutputFile
  private let threads: Int
  private let progress: MoveProgress

  /// Bytes written; the rest of the file is holes.
  public private(set) var written: UInt64 = 0
  /// Pages that the source turned out not to have, though it names them.
  public private(set) var lost: [LostPage] = []

  public struct LostPage: Hashable, Sendable {
    /// Where in the file it would be.
    public let fileOffset: UInt64
    public let reason: MissingReason
  }

  /// - Parameter progress: counts the pages moved up.
  public init(source: any FrameSource, file: OutputFile, threads: Int, progress: MoveProgress) {
    self.source = source
    self.file = file
    self.threads = threads
    self.progress = progress
  }

  /// Moves the pages of one window.
  public mutating func move(_ pieces: [PlacedPiece]) throws(OutputError) {
    let pieces = pieces.sorted { $0.frame < $1.frame }
    let batches = SourceBatch.batches(of: pieces, maximumPages: maximumPiecePages)
    let next = Atomic<Int>(0)
    let results = Mutex<[WorkerResult]>([])
    let work = Work(source: source, descriptor: file.descriptor)
    onThreads(min(threads, batches.count)) { [progress] _ in
      var worker = Worker(work)
      while worker.result.writeError == nil {
        let index = next.add(1, ordering: .relaxed).oldValue
        guard index < batches.count else { break }
        worker.move(pieces[batches[index].pieces])
        progress.add(UInt64(batches[index].pages))
      }
      let done = worker.result
      results.withLock { $0.append(done) }
    }
    for result in results.withLock({ $0 }) {
      written += result.written
      lost += result.lost
      if let errno = result.writeError { throw .cannotWrite(file.path, errno: errno) }
    }
  }
}

/// What all threads share.
private struct Work: Sendable {
  let source: any FrameSource
  let descriptor: Int32
}

/// What one thread did.
private struct WorkerResult: Sendable {
  var written: UInt64 = 0
  var lost: [PageMover.LostPage] = []
  /// The first error of writing (an errno), which ends the move.
  var writeError: Int32?
}

/// One thread's part of the work.
private struct Worker {
  private let descriptor: Int32
  private let reader: any FrameReader
  private let buffer: PageBuffer
  private(set) var result = WorkerResult()

  init(_ work: Work) {
    descriptor = work.descriptor
    reader = work.source.makeReader()
    buffer = PageBuffer(pages: maximumPiecePages)
  }

  mutating func move(_ pieces: ArraySlice<PlacedPiece>) {
    guard let first = pieces.first else { return }
    let pages = pieces.reduce(0) { $0 + $1.pages }
    let room = unsafe UnsafeMutableRawBufferPointer(
      rebasing: buffer.bytes[..<(pages * Int(pageSize))])
    let absences = unsafe reader.read(from: first.frame, into: room)
    var position = 0
    for piece in pieces {
      for index in 0..<piece.pages {
        if let absence = absences[position + index] {
          result.lost.append(
            PageMover.LostPage(
              fileOffset: piece.fileOffset + UInt64(index) << pageShift,
              reason: MissingReason(absence)))
        }
      }
      let part = unsafe UnsafeRawBufferPointer(
        rebasing: room[(position * Int(pageSize))..<((position + piece.pages) * Int(pageSize))])
      unsafe write(part, at: piece.fileOffset)
      position += piece.pages
    }
  }

  /// Writes the pages that are not zero, each run of them at once.
  private mutating func write(_ bytes: UnsafeRawBufferPointer, at start: UInt64) {
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

  private mutating func put(_ bytes: UnsafeRawBufferPointer, at start: UInt64) {
    if let error = unsafe writeAll(bytes, to: descriptor, at: start) {
      result.writeError = error
    } else {
      result.written += UInt64(bytes.count)
    }
  }
}
