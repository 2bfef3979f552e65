import Guest
import Memory
import Synchronization

/// The pages of an address space in ascending order, for outputs that cannot seek, and for those in
/// which a page has no place before the pages in front of it have theirs.
///
/// Pages lie scattered over the source. Window by window, they are read in the order of the source
/// by all threads and brought into the form in which they are stored, while one thread hands the
/// window before, in order, to the output. What is kept is two windows.
public struct OrderedPages<Location: Address, Encoder: PageEncoder>: Sendable {
  private let map: PageMap<Location>
  private let source: any FrameSource
  private let threads: Int
  private let progress: MoveProgress
  private let makeEncoder: @Sendable () -> Encoder

  /// 8 MiB: two windows and what the threads need stay well below 64 MiB.
  private static var windowPages: Int { 2048 }

  /// - Parameters:
  ///   - threads: how many read and encode.
  ///   - progress: counts the pages read up.
  ///   - makeEncoder: makes a thread's own.
  public init(
    of map: PageMap<Location>, in source: any FrameSource, threads: Int, progress: MoveProgress,
    makeEncoder: @escaping @Sendable () -> Encoder
  ) {
    self.map = map
    self.source = source
    self.threads = max(1, threads)
    self.progress = progress
    self.makeEncoder = makeEncoder
  }

  /// Hands all pages to `body`, on the caller's thread. A window is in `body`'s hands until that
  /// returns.
  public func forEachWindow<Failure: Error>(
    _ body: (PageWindow<Location>) throws(Failure) -> Void
  ) throws(Failure) {
    let workers = (0..<threads).map { _ in
      Worker(reader: source.makeReader(), encoder: makeEncoder())
    }
    var next = PageWindow<Location>(capacity: Self.windowPages)
    var filled = PageWindow<Location>(capacity: Self.windowPages)
    var hasFilled = false
    try map.forEachWindow(of: UInt64(Self.windowPages)) { _, runs throws(Failure) in
      next.prepare(runs)
      try fill(next, runs, workers) { () throws(Failure) in
        if hasFilled { try body(filled) }
      }
      swap(&next, &filled)
      hasFilled = true
    }
    if hasFilled { try body(filled) }
  }

  /// Fills a window; the caller's thread does `first` before it takes part.
  private func fill<Failure: Error>(
    _ window: PageWindow<Location>, _ runs: [PageRun<Location>], _ workers: [Worker<Encoder>],
    _ first: () throws(Failure) -> Void
  ) throws(Failure) {
    let pieces = runs.flatMap { $0.pieces(of: batchPages) }
    let wanted = pieces.reduce(0) { $0 + UInt64($1.pages) }
    progress.add(runs.reduce(0) { $0 + $1.pages } - wanted)
    let sweep = Mutex(SourceSweep(pieces, batchPages: batchPages))
    let work: @Sendable (Worker<Encoder>) -> Void = { [progress] worker in
      var batch = SourceBatch<FramePiece<Location>>()
      while sweep.withLock({ $0.next(into: &batch) }) {
        worker.read(batch, into: window)
        progress.add(batch.wanted)
      }
    }
    let others: @Sendable (Int) -> Void = { work(workers[$0 + 1]) }
    try alongside(threads: min(threads - 1, pieces.count), others) { () throws(Failure) in
      try first()
      work(workers[0])
    }
  }
}

/// Pages that are read at once: a window is enough work for many threads.
private let batchPages = 64

/// Brings pages into the form in which an output stores them: one thread's.
public protocol PageEncoder: AnyObject, SendableMetatype {
  /// Puts the stored form of a page that is not all zero into `room`, which is as large as the page.
  /// Returns how many bytes it has, and what the output knows its form by.
  func encode(
    _ page: UnsafeRawBufferPointer, into room: UnsafeMutableRawBufferPointer
  ) -> (size: Int, flags: UInt32)
}

/// Stores pages as they are.
public final class PlainPages: PageEncoder, Sendable {
  public init() {}

  public func encode(
    _ page: UnsafeRawBufferPointer, into room: UnsafeMutableRawBufferPointer
  ) -> (size: Int, flags: UInt32) {
    unsafe room.copyMemory(from: page)
    return (page.count, 0)
  }
}

/// Consecutive pages of an address space, in the form in which an output stores them.
@safe public final class PageWindow<Location: Address>: @unchecked Sendable {
  // Sendable: while threads fill it, each writes pages of its own, and nobody looks at it.

  public enum Page: Hashable, Sendable {
    case zero
    /// Known not to be in the source.
    case missing(MissingReason)
    /// The source names the page, and could not deliver it.
    case lost(MissingReason)
    /// What its encoder made of it.
    case stored(size: Int, flags: UInt32)
  }

  public private(set) var start = Location(0)
  private let contents: UnsafeMutableBufferPointer<Page>
  private let bytes: PageBuffer
  /// Pages whose room may hold anything but zeros.
  private let used: UnsafeMutableBufferPointer<Bool>
  public private(set) var count = 0

  init(capacity: Int) {
    bytes = PageBuffer(pages: capacity)
    unsafe contents = .allocate(capacity: capacity)
    unsafe contents.initialize(repeating: .zero)
    unsafe used = .allocate(capacity: capacity)
    unsafe used.initialize(repeating: true)
  }

  deinit {
    unsafe contents.deallocate()
    unsafe used.deallocate()
  }

  /// What is known of a page, counted from the window's first.
  public subscript(index: Int) -> Page { unsafe contents[index] }

  /// The stored form of a page that has one.
  public func stored(_ index: Int, size: Int) -> UnsafeRawBufferPointer {
    unsafe UnsafeRawBufferPointer(UnsafeMutableRawBufferPointer(rebasing: room(index)[..<size]))
  }

  /// The bytes of consecutive pages, stored as they are; those that are not stored are zeros.
  public func plainBytes(_ range: Range<Int>) -> UnsafeRawBufferPointer {
    for index in range {
      if case .stored = self[index] { continue }
      guard unsafe used[index] else { continue }
      unsafe room(index).initializeMemory(as: UInt8.self, repeating: 0)
      unsafe used[index] = false
    }
    return unsafe UnsafeRawBufferPointer(
      rebasing: bytes.bytes[
        (range.lowerBound * Int(pageSize))..<(range.upperBound * Int(pageSize))])
  }

  /// The pages that were lost.
  public var lost: [PageRun<Location>] {
    var builder = PageRunBuilder<Location>()
    for index in 0..<count {
      guard case .lost(let reason) = self[index] else { continue }
      let page = start + UInt64(index) << pageShift
      builder.append(PageRun(start: page, pages: 1, content: .missing(reason)))
    }
    return builder.runs
  }

  /// Begins anew with pages that are zero, missing, or yet to be filled.
  func prepare(_ runs: [PageRun<Location>]) {
    start = runs.first?.start ?? Location(0)
    count = 0
    for run in runs {
      let page: Page =
        if let reason = run.content.missingReason { .missing(reason) } else { .zero }
      let end = unsafe min(contents.count, count + Int(clamping: run.pages))
      for index in count..<end { unsafe contents[index] = page }
      count = end
    }
  }

  /// For the thread that has read the page.
  func fill(
    _ address: Location, _ page: UnsafeRawBufferPointer, _ absence: Absence?,
    _ encoder: some PageEncoder
  ) {
    guard let index = Int(exactly: address.distance(from: start) >> pageShift), index < count
    else { return }
    if let absence {
      unsafe contents[index] = .lost(MissingReason(absence))
    } else if unsafe !isAllZero(page) {
      let (size, flags) = unsafe encoder.encode(page, into: room(index))
      unsafe contents[index] = .stored(size: size, flags: flags)
      unsafe used[index] = true
    }
  }

  private func room(_ index: Int) -> UnsafeMutableRawBufferPointer {
    let offset = index * Int(pageSize)
    return unsafe UnsafeMutableRawBufferPointer(
      rebasing: bytes.bytes[offset..<(offset + Int(pageSize))])
  }
}

/// What a thread reads and encodes with.
private final class Worker<Encoder: PageEncoder>: @unchecked Sendable {
  // Sendable: one thread has it at a time.
  private let reader: any FrameReader
  private let encoder: Encoder
  private let buffer = PageBuffer(pages: batchPages)

  init(reader: any FrameReader, encoder: Encoder) {
    self.reader = reader
    self.encoder = encoder
  }

  func read<Location: Address>(
    _ batch: SourceBatch<FramePiece<Location>>, into window: PageWindow<Location>
  ) {
    let (bytes, absences) = unsafe buffer.read(batch, by: reader)
    for part in batch.parts {
      for index in 0..<part.pages {
        let page = part.position + index
        unsafe window.fill(
          part.piece.start + (part.skipped + UInt64(index)) << pageShift, bytes.page(page),
          absences[page], encoder)
      }
    }
  }
}
