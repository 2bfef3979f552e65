import Memory
import Synchronization
import SystemPackage

/// The format's own part of a dump.
enum Container: Sendable {
  case elf(ELFDump)
  case kdump(KdumpDump)

  /// See ``DumpFile/presence(from:limit:)``; `limit` is not 0.
  func presence(from frame: UInt64, limit: UInt64) -> (absence: Absence?, count: UInt64) {
    switch self {
    case .elf(let dump): dump.map.presence(from: frame, limit: limit)
    case .kdump(let dump): dump.presence(from: frame, limit: limit)
    }
  }

  var damage: DamageLog {
    switch self {
    case .elf(let dump): dump.damage
    case .kdump(let dump): dump.damage
    }
  }
}

/// A dump of a machine's memory, or the core of a process. In a core, a frame's number is that of a
/// page of the process: its virtual address >> 12.
///
/// Memory taken: for a kdump-compressed file two bits per page frame, and one more if it is
/// incomplete; for an ELF file some 100 bytes per program header; for a flattened file up to 16 MiB;
/// the notes, and up to about 8 MiB of pages read through ``page(_:)``.
public final class DumpFile: FrameSource, Sendable {
  /// The file, or the first that was given of a split dump's.
  public let path: FilePath
  public let format: DumpFormat
  /// The file is flattened (makedumpfile -F; QEMU's kdump formats always are).
  public let isFlattened: Bool
  /// How many files of a split dump (makedumpfile --split) this is made of; nil if it is not split.
  public let partCount: Int?
  /// The notes of the ELF file, or of the kdump sub-header's note area. Notes longer than 1 MiB
  /// (device dumps) are left out.
  public let notes: [Note]
  /// What a process's core tells besides memory; nil in a dump of a machine.
  public let process: ProcessCore?
  /// The text of the kernel's VMCOREINFO, if the dump carries it.
  public let vmcoreinfo: [UInt8]?
  /// What makedumpfile was told to leave out; nil where the format does not record it (ELF).
  public let dumpLevel: DumpLevel?
  /// The dump's writer ran out of space and said so, or a file ends before the data it names.
  public let isIncomplete: Bool
  /// How many pages the files name and do not have, as they end before.
  public let lostPages: UInt64
  /// Frames of a split dump whose parts were not given, where it has pages of them.
  public let missingParts: [MissingPart]
  /// makedumpfile overwrote parts of the memory with its option --config or --eppic (erase).
  public let hasErasures: Bool
  /// The frames that the dump speaks of, ascending, coalesced: an ELF file's loads by p_paddr (in a
  /// process's core by p_vaddr), a kdump file's bitmap of RAM. Beyond 65,536 ranges, the last takes in what follows.
  public let frameRanges: [Range<PageFrameNumber>]

  private let container: Container
  private let cache: PageCache

  /// The damaged pages that reading has met so far.
  public var damage: DamageReport { container.damage.report }

  /// The format, and how the dump is stored in it.
  public var formatDescription: String {
    "\(format)" + (isFlattened ? ", flattened" : "")
      + (partCount.map { $0 == 1 ? ", 1 part" : ", \($0) parts" } ?? "")
  }

  /// Opens a dump and reads all of it but the pages.
  ///
  /// - Parameter paths: one file, or files of a split dump in any order; at least one. Of a split
  ///   dump what is there is read, and ``missingParts`` tells what is not.
  public static func open(_ paths: [FilePath]) throws(DumpFileError) -> DumpFile {
    var files: [(file: InputFile, start: [UInt8])] = []
    for path in paths {
      let file = try InputFile.dump(path)
      files.append((file, try file.bytes(at: 0, count: Int(pageSize))))
    }
    return try DumpFile(files)
  }

  /// Opens a dump of one file.
  public static func open(_ path: FilePath) throws(DumpFileError) -> DumpFile {
    try open([path])
  }

  private init(_ files: [(file: InputFile, start: [UInt8])]) throws(DumpFileError) {
    for (file, start) in files {
      switch FileSignature(start) {
      case .elf where files.count > 1: throw .notAPart(file.path)
      case .other(let kind): throw .notADump(file.path, kind)
      case .elf, .kdump, .diskdump: break
      }
    }
    let (file, start) = files[0]
    let isMarkedIncomplete: Bool
    if case .elf = FileSignature(start) {
      let dump = try ELFDump(file, start: start)
      container = .elf(dump)
      format = dump.isLive ? .kcore : dump.process == nil ? .elf : .processCore
      partCount = nil
      process = dump.process
      notes = dump.notes
      vmcoreinfo = dump.notes.vmcoreinfo
      dumpLevel = nil
      isMarkedIncomplete = dump.isMarkedIncomplete
      lostPages = dump.map.lostPages
      missingParts = []
      hasErasures = dump.notes.contains { $0.name == "ERASEINFO" }
      frameRanges = dump.map.frameRanges
    } else {
      let dump = try KdumpDump(files)
      container = .kdump(dump)
      format = dump.format
      partCount = dump.isSplit ? dump.parts.count : nil
      process = nil
      notes = dump.notes
      vmcoreinfo = dump.vmcoreinfo
      dumpLevel = dump.dumpLevel
      isMarkedIncomplete = dump.isMarkedIncomplete
      lostPages = dump.lostPages
      missingParts = dump.missingParts
      hasErasures = dump.hasErasures
      frameRanges = dump.frameRanges
    }
    isIncomplete =
      isMarkedIncomplete || lostPages > 0 || files.contains { $0.file.flattenedCut != nil }
    path = file.path
    isFlattened = files.contains { $0.file.isFlattened }
    cache = PageCache(container)
  }

  /// The 4096 bytes of a frame, out of a cache that all threads share.
  public func page(_ frame: PageFrameNumber) throws(MemoryError) -> [UInt8] {
    switch cache.page(frame) {
    case .success(let page): return page
    case .failure(let absence): throw .absent(frame.address, absence.reason)
    }
  }

  /// Whether the bytes of `frame` are at hand, and for how many frames from there on (at most
  /// `limit`) the same holds.
  ///
  /// Answers from the dump's index without reading: a page that counts as present here can still
  /// turn out truncated or corrupt when it is read. A `limit` of 0 counts as 1.
  public func presence(
    from frame: PageFrameNumber, limit: UInt64
  ) -> (absence: Absence?, count: UInt64) {
    container.presence(from: frame.rawValue, limit: max(limit, 1))
  }

  /// See ``FrameSource/fileExtent(from:limit:)``.
  public func fileExtent(from frame: PageFrameNumber, limit: UInt64) -> FileExtent? {
    guard case .elf(let dump) = container else { return nil }
    return dump.fileExtent(from: frame.rawValue, limit: limit)
  }

  /// A reader for one thread.
  public func makeReader() -> PageReader {
    PageReader(container)
  }
}

/// Pages read last, in shards so that threads seldom wait for each other. Each shard reads with a
/// reader of its own, so that no page is read twice at once.
private final class PageCache: Sendable {
  struct Missing: Error {
    let reason: Absence
  }

  private struct Entry {
    var frame: UInt64?
    var page: [UInt8] = []
  }

  private struct State {
    let reader: PageReader
    /// Sets of `ways`, each with the page used last in front.
    var entries: [Entry]
  }

  private final class Shard: Sendable {
    let state: Mutex<State>

    init(_ container: Container) {
      state = Mutex(
        State(
          reader: PageReader(container),
          entries: Array(repeating: Entry(), count: PageCache.setCount * PageCache.ways)))
    }
  }

  /// 16 × 32 × 4 pages are 8 MiB.
  private static let shardCount = 16
  private static let setCount = 32
  private static let ways = 4

  private let container: Container
  private let shards: [Shard]

  init(_ container: Container) {
    self.container = container
    shards = (0..<Self.shardCount).map { _ in Shard(container) }
  }

  func page(_ frame: PageFrameNumber) -> Result<[UInt8], Missing> {
    // Fibonacci hashing: page tables lie at regular distances.
    let hash = Int((frame.rawValue &* 0x9e37_79b9_7f4a_7c15) >> 48)
    let front = hash / Self.shardCount % Self.setCount * Self.ways
    return shards[hash % Self.shardCount].state.withLock { state in
      for entry in front..<front + Self.ways where state.entries[entry].frame == frame.rawValue {
        Self.moveToFront(front, entry, &state.entries)
        return .success(state.entries[front].page)
      }
      var absence = container.presence(from: frame.rawValue, limit: 1).absence
      if let absence { return .failure(Missing(reason: absence)) }
      let page = unsafe [UInt8](unsafeUninitializedCapacity: Int(pageSize)) { buffer, count in
        let room = UnsafeMutableRawBufferPointer(buffer)
        absence = unsafe state.reader.read(from: frame, into: room).first ?? .corrupt
        count = Int(pageSize)
      }
      if let absence { return .failure(Missing(reason: absence)) }
      Self.moveToFront(front, front + Self.ways - 1, &state.entries)
      state.entries[front] = Entry(frame: frame.rawValue, page: page)
      return .success(page)
    }
  }

  private static func moveToFront(_ front: Int, _ entry: Int, _ entries: inout [Entry]) {
    var position = entry
    while position > front {
      entries.swapAt(position, position - 1)
      position -= 1
    }
  }
}
