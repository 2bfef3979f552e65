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
}

/// A dump of a machine's memory, or the core of a process. In a core, a frame's number is that of a
/// page of the process: its virtual address >> 12.
///
/// Memory taken: for a kdump-compressed file two bits per page frame, for an ELF file some 100 bytes
/// per program header, the notes, and up to about 8 MiB of pages read through ``page(_:)``.
public final class DumpFile: FrameSource, Sendable {
  public let path: FilePath
  public let format: DumpFormat
  /// The notes of the ELF file, or of the kdump sub-header's note area. Notes longer than 1 MiB
  /// (device dumps) are left out.
  public let notes: [Note]
  /// What a process's core tells besides memory; nil in a dump of a machine.
  public let process: ProcessCore?
  /// The text of the kernel's VMCOREINFO, if the dump carries it.
  public let vmcoreinfo: [UInt8]?
  /// What makedumpfile was told to leave out; nil where the format does not record it (ELF).
  public let dumpLevel: DumpLevel?
  /// The dump's writer ran out of space and said so, or the file ends before the data it names.
  public let isIncomplete: Bool
  /// makedumpfile overwrote parts of the memory with its option --config or --eppic (erase).
  public let hasErasures: Bool
  /// The frames that the dump speaks of, ascending, coalesced: an ELF file's loads by p_paddr (in a
  /// process's core by p_vaddr), a kdump file's bitmap of RAM. Beyond 65,536 ranges, the last takes in what follows.
  public let frameRanges: [Range<PageFrameNumber>]

  private let file: InputFile
  private let container: Container
  private let cache: PageCache

  /// Opens a dump and reads all of it but the pages.
  public static func open(_ path: FilePath) throws(DumpFileError) -> DumpFile {
    try DumpFile(InputFile(path))
  }

  private init(_ file: InputFile) throws(DumpFileError) {
    let start = try file.bytes(at: 0, count: Int(pageSize))
    switch FileSignature(start) {
    case .elf:
      let dump = try ELFDump(file, start: start)
      container = .elf(dump)
      format = dump.process == nil ? .elf : .processCore
      process = dump.process
      notes = dump.notes
      vmcoreinfo = dump.notes.vmcoreinfo
      dumpLevel = nil
      isIncomplete = dump.isIncomplete
      hasErasures = dump.notes.contains { $0.name == "ERASEINFO" }
      frameRanges = dump.map.frameRanges
    case .kdump, .diskdump:
      let dump = try KdumpDump(
        file, start: start, isDiskdump: !start.starts(with: KdumpLayout.signature))
      container = .kdump(dump)
      format = dump.format
      process = nil
      notes = dump.notes
      vmcoreinfo = dump.vmcoreinfo
      dumpLevel = dump.dumpLevel
      isIncomplete = dump.isIncomplete
      hasErasures = dump.hasErasures
      frameRanges = dump.frameRanges
    case .other(let kind):
      throw .notADump(file.path, kind)
    }
    path = file.path
    self.file = file
    cache = PageCache(file, container)
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

  /// A reader for one thread.
  public func makeReader() -> PageReader {
    PageReader(file, container)
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

    init(_ file: InputFile, _ container: Container) {
      state = Mutex(
        State(
          reader: PageReader(file, container),
          entries: Array(repeating: Entry(), count: PageCache.setCount * PageCache.ways)))
    }
  }

  /// 16 × 32 × 4 pages are 8 MiB.
  private static let shardCount = 16
  private static let setCount = 32
  private static let ways = 4

  private let container: Container
  private let shards: [Shard]

  init(_ file: InputFile, _ container: Container) {
    self.container = container
    shards = (0..<Self.shardCount).map { _ in Shard(file, container) }
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
