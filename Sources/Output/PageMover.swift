import CShim
import Glibc
import Guest
import Memory
import Synchronization
import SystemPackage

/// Moves pages from the source into files, those of all guests in one pass.
///
/// Pages of a guest lie scattered over the source. What is to be moved is listed first, then sorted
/// by its place in the source; threads take it in that order, read, skip pages of zeros, and write
/// each run of data where it belongs. What is kept is the list, which is moved whenever it is full:
/// on hosts whose memory is so fragmented that not all fits, some passes are made.
public struct PageMover {
  private let source: any FrameSource
  private let targets: Targets
  private let threads: Int
  private let progress: MoveProgress
  private let pieceLimit: Int
  private var pieces: [MovedPiece] = []
  private var results: [Result]

  /// What was moved into one file.
  public struct Result: Sendable {
    /// Bytes written; the rest of the file is holes.
    public fileprivate(set) var written: UInt64 = 0
    /// Pages that the source turned out not to have, though it names them.
    public fileprivate(set) var lost: [LostPages] = []
  }

  public struct LostPages: Hashable, Sendable {
    /// Where in the file they would be.
    public let fileOffset: UInt64
    public fileprivate(set) var pages: UInt64
    public let reason: MissingReason

    public init(fileOffset: UInt64, pages: UInt64, reason: MissingReason) {
      self.fileOffset = fileOffset
      self.pages = pages
      self.reason = reason
    }
  }

  /// - Parameters:
  ///   - files: of their final size, all else holes.
  ///   - progress: counts the pages moved up.
  public init(
    source: any FrameSource, to files: [OutputFile], threads: Int, progress: MoveProgress
  ) {
    self.source = source
    self.threads = threads
    self.progress = progress
    targets = Targets(files)
    results = Array(repeating: Result(), count: files.count)
    let frames = source.frameRanges.reduce(0) { $0 &+ $1.upperBound.distance(from: $1.lowerBound) }
    pieceLimit = Self.pieceLimit(frames: frames)
  }

  /// 12 MiB for the list, and 6 bits for every 8 pages of the source.
  private static func pieceLimit(frames: UInt64) -> Int {
    1 << 19 + Int(clamping: frames >> 8)
  }

  /// Adds runs to what is to be moved into a file, given by its index, to where `extents` say. Pages
  /// that are not in the source or have no place count as done.
  public mutating func add<Extent: PlacedExtent>(
    _ runs: [PageRun<Extent.Location>], in extents: [Extent], to file: Int
  ) {
    var rest = runs.reduce(0) { $0 + $1.pages }
    for piece in extents.pieces(of: runs) {
      pieces.append(MovedPiece(piece, target: UInt32(file)))
      rest -= UInt64(piece.pages)
    }
    progress.add(rest)
    if pieces.count >= pieceLimit { move() }
  }

  /// Moves what is left, and says for each file what was moved into it, or why it has failed.
  public consuming func finish() -> [Swift.Result<Result, OutputError>] {
    move()
    return results.indices.map { index in
      if let error = targets.error(of: index) { .failure(error) } else { .success(results[index]) }
    }
  }

  private mutating func move() {
    let threads = min(threads, pieces.count)
    // Smaller reads are hardly slower; so many threads together have the memory of a few.
    let batchPages = threads > 16 ? maximumPiecePages / 4 : maximumPiecePages
    let sweep = Mutex(SourceSweep(pieces, batchPages: batchPages))
    pieces.removeAll()
    let results = Mutex(self.results)
    onThreads(threads) { [source, targets, progress] _ in
      var worker = Worker(source, targets, batchPages: batchPages)
      var batch = SourceBatch<MovedPiece>()
      while !targets.haveAllFailed, sweep.withLock({ $0.next(into: &batch) }) {
        worker.move(batch)
        progress.add(batch.wanted)
      }
      let done = worker.results
      results.withLock { results in
        for (index, result) in done {
          results[Int(index)].written += result.written
          results[Int(index)].lost += result.lost
        }
      }
    }
    self.results = results.withLock { $0 }
  }
}

/// Pages to be moved, and where to.
private struct MovedPiece: SourcePiece {
  let frame: PageFrameNumber
  let fileOffset: UInt64
  private let pageCount: UInt32
  let target: UInt32

  init(_ piece: PlacedPiece, target: UInt32) {
    frame = piece.frame
    fileOffset = piece.fileOffset
    pageCount = piece.pages
    self.target = target
  }

  var pages: Int { Int(pageCount) }
}

extension SourceBatch<MovedPiece>.Part {
  fileprivate var fileOffset: UInt64 { piece.fileOffset + skipped << pageShift }
}

extension PageMover.Result {
  /// Notes those pages of one piece that are absent. Whole disks can be unreadable: what lies
  /// together is noted as one, but not beyond the piece, as the file goes on with other memory.
  fileprivate mutating func lose(_ absences: ArraySlice<Absence?>, from start: UInt64) {
    var last: PageMover.LostPages?
    for (index, absence) in absences.enumerated() {
      let reason = absence.map(MissingReason.init)
      if let pages = last, pages.reason == reason {
        last?.pages += 1
        continue
      }
      if let pages = last { lost.append(pages) }
      last = reason.map {
        PageMover.LostPages(
          fileOffset: start + UInt64(index) << pageShift, pages: 1, reason: $0)
      }
    }
    if let last { lost.append(last) }
  }
}

/// The files that pages are moved into. One that cannot be written is given up, and the others go on.
private final class Targets: Sendable {
  private let files: [(path: FilePath, descriptor: Int32)]
  /// The errors (errno) that ended the writing of files.
  private let errors = Mutex<[Int: Int32]>([:])
  private let failures = Atomic<Int>(0)
  /// No attempt to clone has failed.
  private let canClone = Atomic<Bool>(true)

  init(_ files: [OutputFile]) {
    self.files = files.map { ($0.path, $0.descriptor) }
  }

  func error(of index: Int) -> OutputError? {
    errors.withLock { $0[index] }.map { .cannotWrite(files[index].path, errno: $0) }
  }

  func hasFailed(_ index: Int) -> Bool {
    failures.load(ordering: .acquiring) > 0 && errors.withLock { $0[index] != nil }
  }

  var haveAllFailed: Bool { failures.load(ordering: .acquiring) == files.count }

  var mayClone: Bool { canClone.load(ordering: .relaxed) }

  /// Returns false if the file cannot share the extent.
  func clone(_ extent: FileExtent, to index: Int, at offset: UInt64) -> Bool {
    let error = shim_clone_range(
      extent.descriptor, extent.offset, extent.pages << pageShift, files[index].descriptor, offset)
    if error != 0 { canClone.store(false, ordering: .relaxed) }
    return error == 0
  }

  /// Returns false if the file is given up.
  func write(_ bytes: UnsafeRawBufferPointer, to index: Int, at offset: UInt64) -> Bool {
    while true {
      let seen = failures.load(ordering: .acquiring)
      if seen > 0, hasFailed(index) { return false }
      guard let error = unsafe writeAll(bytes, to: files[index].descriptor, at: offset) else {
        return true
      }
      let hasRoomAgain = errors.withLock { errors in
        guard errors[index] == nil else { return false }
        // Of files that fill a disk together one goes, which makes room for the others.
        if error == ENOSPC || error == EDQUOT, errors.count > seen { return true }
        errors[index] = error
        failures.store(errors.count, ordering: .releasing)
        ftruncate(files[index].descriptor, 0)
        return false
      }
      guard hasRoomAgain else { return false }
    }
  }
}

/// One thread's part of the work.
private struct Worker {
  private let source: any FrameSource
  private let reader: any FrameReader
  private let targets: Targets
  private let buffer: PageBuffer
  /// By the index of the file.
  private(set) var results: [UInt32: PageMover.Result] = [:]

  init(_ source: any FrameSource, _ targets: Targets, batchPages: Int) {
    buffer = PageBuffer(pages: batchPages)
    self.source = source
    reader = source.makeReader()
    self.targets = targets
  }

  mutating func move(_ batch: SourceBatch<MovedPiece>) {
    let parts = batch.parts.filter { !targets.hasFailed(Int($0.piece.target)) && !clone($0, batch) }
    guard !parts.isEmpty else { return }
    let (bytes, absences) = unsafe buffer.read(batch, by: reader)
    for part in parts {
      let pages = part.position..<(part.position + part.pages)
      let start = part.fileOffset
      results[part.piece.target, default: .init()].lose(absences[pages], from: start)
      unsafe write(bytes.pages(pages), to: part.piece.target, at: start)
    }
  }

  /// Lets the file share the source's own blocks, if both are on a file system that can (XFS,
  /// btrfs): it takes no time and no space. Returns false if the pages are to be copied.
  private mutating func clone(
    _ part: SourceBatch<MovedPiece>.Part, _ batch: SourceBatch<MovedPiece>
  ) -> Bool {
    guard targets.mayClone, part.pages >= Self.clonedPages,
      let extent = source.fileExtent(
        from: batch.first + UInt64(part.position), limit: UInt64(part.pages)),
      extent.pages == UInt64(part.pages), extent.offset.isMultiple(of: pageSize),
      targets.clone(extent, to: Int(part.piece.target), at: part.fileOffset)
    else { return false }
    results[part.piece.target, default: .init()].written += extent.pages << pageShift
    return true
  }

  /// Fewer pages are copied as fast.
  private static var clonedPages: Int { 16 }

  /// Writes the pages that are not zero, each run of them at once.
  private mutating func write(
    _ bytes: UnsafeRawBufferPointer, to target: UInt32, at start: UInt64
  ) {
    let count = bytes.count >> Int(pageShift)
    var index = 0
    while index < count {
      if unsafe isAllZero(bytes.page(index)) {
        index += 1
        continue
      }
      var end = index + 1
      while end < count, unsafe !isAllZero(bytes.page(end)) { end += 1 }
      let run = unsafe bytes.pages(index..<end)
      guard unsafe targets.write(run, to: Int(target), at: start + UInt64(index) << pageShift)
      else { return }
      results[target, default: .init()].written += UInt64(run.count)
      index = end
    }
  }
}
