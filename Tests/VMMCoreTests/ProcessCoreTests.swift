import DumpFiles
import Guest
import KVMHost
import Memory
import SyntheticDumps
import SystemPackage
import Testing
import X86

@testable import LinuxKernel
@testable import Output
@testable import VMMCore

/// The core that is written of a process, as readers of cores see it.
@Suite struct ProcessCoreTests {
  private static let heap: UInt64 = 0x5500_0000_0000
  private static let untouched: UInt64 = 0x6000_0000_0000
  private static let library: UInt64 = 0x7f00_0000_0000
  private static let shared: UInt64 = 0x7f10_0000_0000
  private static let device: UInt64 = 0x7f20_0000_0000
  private static let special: UInt64 = 0x7f30_0000_0000
  private static let vdso: UInt64 = 0x7fff_0000_0000

  /// A process with a mapping of every kind.
  private static func host() -> (host: ProcessHost, filtered: PageFrameNumber) {
    var options = SyntheticHost.Options()
    options.swapDevices = 1
    var one = ProcessHost(options)
    let root = one.host.addMount()
    let code = one.host.addFile(operations: "ext4_aops")
    let libc = one.host.open(
      one.host.addDentry("libc.so", in: root.root), on: root.mount, pages: code)
    let memory = one.host.addFile()
    let memfd = one.host.open(
      one.host.addDentry("memfd:ram", in: nil, naming: "simple_dname"), on: root.mount,
      pages: memory)
    one.host.setMappings(
      of: one.process,
      to: [
        one.host.addMapping(heap, pages: 8),
        one.host.addMapping(untouched, pages: 1 << 28, flags: 0),
        one.host.addMapping(
          library, pages: 4, flags: SyntheticHost.readable | 4, file: libc, filePage: 16),
        one.host.addMapping(shared, pages: 3, file: memfd, filePage: 2),
        one.host.addMapping(device, pages: 2, flags: 3 | SyntheticHost.device, isSpecial: true),
        one.host.addMapping(special, pages: 1, isSpecial: true),
        one.host.addMapping(vdso, pages: 2, flags: 5, isSpecial: true),
      ])
    one.host.setVDSO(of: one.process, at: vdso, page(0xd1) + page(0xd2))
    // The heap: data, never touched, swapped out, data, filtered, filtered, shared zero page, data.
    _ = one.map(heap, page(1))
    one.process.tables.setEntry(
      of: VirtualAddress(heap + 0x2000), to: ~UInt64(7) << 9 & 0x07ff_ffff_ffff_fe00,
      in: &one.host.kernel.machine)
    _ = one.map(heap + 0x3000, page(3))
    let filtered = one.map(heap + 0x4000, page(4))
    one.process.tables.map(
      VirtualAddress(heap + 0x5000), to: filtered, in: &one.host.kernel.machine)
    one.process.tables.map(
      VirtualAddress(heap + 0x6000), to: one.host.sharedZeroFrame, in: &one.host.kernel.machine)
    _ = one.map(heap + 0x7000, page(7))
    // The library: a page that the process changed, one in the page cache, two in the file only.
    _ = one.map(library, page(0x11))
    let cached = one.host.frame(page(0x12), as: .cache(code, index: 17))
    one.host.fill(code, [17: one.host.descriptor(of: cached).address.rawValue])
    // The memfd: a page that nobody maps, one that was never touched, one that was swapped out.
    let kept = one.host.frame(page(0x22), as: .cache(memory, index: 2))
    one.host.fill(memory, [2: one.host.descriptor(of: kept).address.rawValue, 4: 11])
    return (one, filtered)
  }

  @Test func `every page is there, or its absence explained`() throws {
    let (one, filtered) = Self.host()
    let (process, source) = try one.found(level: .userData, excluding: [filtered])
    #expect(process.findings.isEmpty, "\(process.findings)")
    let (core, summary) = try writeCore(of: process, in: source)
    #expect(summary.lost.isEmpty && summary.unmarkedPages == 0)
    let truth: [(UInt64, [UInt8])] = [
      (Self.heap, page(1)), (Self.heap + 0x1000, page(0)), (Self.heap + 0x3000, page(3)),
      (Self.heap + 0x6000, page(0)), (Self.heap + 0x7000, page(7)), (Self.untouched, page(0)),
      (Self.untouched + 0x80_0000_0000, page(0)), (Self.library, page(0x11)),
      (Self.library + 0x1000, page(0x12)), (Self.shared, page(0x22)),
      (Self.shared + 0x1000, page(0)), (Self.vdso, page(0xd1)), (Self.vdso + 0x1000, page(0xd2)),
    ]
    for (address, bytes) in truth { #expect(try core.page(at: address) == bytes) }
    let found = try #require(core.process)
    let gaps: [(UInt64, SegmentGap?)] = [
      (Self.heap, nil), (Self.heap + 0x1000, nil), (Self.heap + 0x2000, .missing(.swappedOut)),
      (Self.heap + 0x4000, .missing(.filtered)), (Self.heap + 0x5000, .missing(.filtered)),
      (Self.heap + 0x6000, nil), (Self.untouched, .zero), (Self.library + 0x1000, nil),
      (Self.library + 0x2000, .missing(.inFile)), (Self.shared + 0x2000, .missing(.swappedOut)),
      (Self.device, .unsaid), (Self.special, .missing(.specialEntry)), (Self.vdso, nil),
    ]
    for (address, gap) in gaps {
      #expect(found.segment(at: VirtualAddress(address))?.gap == gap, "\(hexadecimal(address))")
    }
    for address in [Self.heap + 0x2000, Self.device, Self.special] {
      #expect(throws: MemoryError.self) { try core.page(at: address) }
    }
  }

  @Test func `the segments are the mappings, whole`() throws {
    let (one, filtered) = Self.host()
    let (process, source) = try one.found(level: .userData, excluding: [filtered])
    let core = try #require(try writeCore(of: process, in: source).core.process)
    for mapping in process.process.mappings {
      var position = mapping.start
      while position < mapping.end {
        let segment = try #require(core.segment(at: position))
        #expect(segment.start == position)
        #expect(segment.isWritable == mapping.flags.contains(.writable))
        position = segment.end
      }
      #expect(position == mapping.end)
    }
  }

  @Test func `notes tell what Linux tells`() throws {
    let (one, _) = Self.host()
    let (process, source) = try one.found()
    let own = Note(name: "KVMINFO", type: 7, description: [1, 2, 3])
    let dump = try writeCore(of: process, in: source, adding: [own]).core
    #expect(dump.notes.map(\.type) == [1, 3, 6, 0x4649_4c45, 1, 1, 7])
    #expect(dump.notes.last == own)
    let core = try #require(dump.process)
    #expect(core.pid == 4711)
    #expect(core.command == "qemu-system-x86" || core.command == "thread 4711")
    #expect(core.argumentStart == "qemu-system-x86_64 -name web1 ")
    #expect(core.auxiliaryVector.map(\.type) == [3, 33])
    #expect(core.auxiliary(33) == 0x7ffd_0000)
    #expect(core.threads.map(\.id) == ProcessHost.threads)
    #expect(core.threads.allSatisfy { $0.signal == 0 })
    for (thread, true_) in zip(core.threads, process.process.threads) {
      #expect(thread.registers == true_.registers?.values)
      #expect(
        thread.registers[UserRegister.fsBase.rawValue]
          == SyntheticHost.register("fsbase", of: thread.id))
    }
    #expect(core.files.map(\.path) == ["/libc.so", "/memfd:ram (deleted)"])
    #expect(core.files.map(\.fileOffset) == [16 << 12, 2 << 12])
    #expect(core.files.map(\.start.rawValue) == [Self.library, Self.shared])
  }

  // MARK: Many segments

  /// A process of `count` mappings of one page, every third of which has bytes.
  private static func process(
    mappings count: Int
  ) -> (process: UserProcess, memory: PageMap<VirtualAddress>) {
    let mappings = (0..<count).map { index in
      ProcessMapping(
        start: VirtualAddress(start(index)), end: VirtualAddress(start(index) + pageSize),
        flags: [.readable, .writable], filePage: 0, backing: .anonymous)
    }
    let process = UserProcess(
      id: 1, identity: ProcessIdentity(command: "qemu", arguments: []),
      tables: PageTables(root: PhysicalAddress(0), levels: 4), mappings: mappings, threads: [],
      auxiliaryVector: [0, 0], credentials: .init(), failures: [])
    return (
      process,
      PageMap(
        regions: mappings.map {
          PageRegion(start: $0.start, size: $0.size, isReadOnly: false, origin: "")
        }, backing: EveryThird())
    )
  }

  private static func start(_ index: Int) -> UInt64 { 0x10_0000 + UInt64(index) * 0x2000 }

  /// Pages with bytes, that were swapped out, and that are zero, in turn.
  private struct EveryThird: MemoryBacking {
    func runs(from start: VirtualAddress, pages: UInt64) -> [PageRun<VirtualAddress>] {
      (0..<pages).map { index in
        let address = start + index << pageShift
        let content: PageContent =
          switch address.rawValue >> 13 % 3 {
          case 0: .frames(PageFrameNumber(address.rawValue >> 13 % 50))
          case 1: .missing(.swappedOut)
          default: .zero(.neverTouched)
          }
        return PageRun(start: address, pages: 1, content: content)
      }
    }
  }

  private static func numbered() -> SyntheticSource {
    var source = SyntheticSource(SyntheticMemory())
    source.numbered = [PageFrameNumber(0)..<PageFrameNumber(50)]
    return source
  }

  @Test(arguments: [100, 65_533, 65_534, 66_000])
  func `any number of segments can be counted`(count: Int) throws {
    let (process, memory) = Self.process(mappings: count)
    let path = try TemporaryFile()
    _ = try ProcessCoreWriter(process, memory: memory, in: Self.numbered()).write(
      to: try OutputFile(FilePath(path.path), force: true), threads: 1, progress: MoveProgress())
    let dump = try DumpFile.open([FilePath(path.path)])
    let segments = try #require(dump.process).segments
    #expect(segments.map(\.start.rawValue) == (0..<count).map(Self.start))
    #expect(!dump.isIncomplete)
    for index in [0, 1, 2, count / 2, count - 3, count - 2, count - 1] {
      let number = Self.start(index) >> 13
      switch number % 3 {
      case 0:
        #expect(segments[index].gap == nil)
        #expect(
          try dump.page(at: Self.start(index))
            == SyntheticSource.numberedPage(PageFrameNumber(number % 50)))
      case 1: #expect(segments[index].gap == .missing(.swappedOut))
      default: #expect(segments[index].gap == .zero)
      }
    }
  }

  /// Runs of 1, 2, … missing pages with a page between.
  private struct Scattered: MemoryBacking {
    func runs(from start: VirtualAddress, pages: UInt64) -> [PageRun<VirtualAddress>] {
      var builder = PageRunBuilder<VirtualAddress>()
      for index in 0..<pages {
        let number = (start.rawValue >> 12) + index
        let isThere = [0, 2, 5, 9, 14, 20, 27, 35, 44].contains(number % 45)
        builder.append(
          PageRun(
            start: start + index << pageShift, pages: 1,
            content: isThere ? .frames(PageFrameNumber(number)) : .missing(.filtered)))
      }
      return builder.runs
    }
  }

  @Test func `of too many gaps the longest are marked, and the others counted`() {
    let pages: UInt64 = 45 * 40
    let mapping = ProcessMapping(
      start: VirtualAddress(0), end: VirtualAddress(pages << pageShift), flags: .readable,
      filePage: 0, backing: .anonymous)
    let memory = PageMap(
      regions: [
        PageRegion(start: mapping.start, size: mapping.size, isReadOnly: true, origin: "")
      ], backing: Scattered())
    let whole = ProcessCoreLayout([mapping], memory, noteSize: 0)
    #expect(whole.unmarkedPages == 0)
    // Eight gaps and eight pieces of bytes in each 45 pages; the last page and the next first join.
    #expect(whole.segments.count == 40 * 16 + 1)
    let bounded = ProcessCoreLayout([mapping], memory, noteSize: 0, maximumSegments: 200)
    #expect(bounded.segments.count <= 200)
    #expect(bounded.survey == whole.survey)
    let marked = bounded.segments.filter { $0.gap == .missing(.filtered) }
    #expect(!marked.isEmpty)
    #expect(
      marked.reduce(0) { $0 + $1.size >> pageShift } + bounded.unmarkedPages
        == whole.survey.missingPages)
    let shortest = marked.map(\.size).min() ?? 0
    for segment in whole.segments where segment.gap != nil && segment.size >= shortest {
      #expect(marked.contains { $0.start == segment.start && $0.size == segment.size })
    }
    var position = mapping.start
    for segment in bounded.segments {
      #expect(segment.start == position)
      position = segment.start + segment.size
    }
    #expect(position == mapping.end)
  }

  // MARK: Damage

  /// A dump some of whose pages turn out to be damaged when they are read.
  private struct DamagedSource: FrameSource {
    let whole: SyntheticSource
    let damaged: Set<PageFrameNumber>

    var dumpLevel: DumpLevel? { whole.dumpLevel }
    var frameRanges: [Range<PageFrameNumber>] { whole.frameRanges }
    func page(_ frame: PageFrameNumber) throws(MemoryError) -> [UInt8] { try whole.page(frame) }
    func presence(
      from frame: PageFrameNumber, limit: UInt64
    ) -> (absence: Absence?, count: UInt64) { whole.presence(from: frame, limit: limit) }
    func makeReader() -> Reader { Reader(whole.makeReader(), damaged) }

    final class Reader: FrameReader {
      private let whole: SyntheticSource.Reader
      private let damaged: Set<PageFrameNumber>

      init(_ whole: SyntheticSource.Reader, _ damaged: Set<PageFrameNumber>) {
        self.whole = whole
        self.damaged = damaged
      }

      func read(
        from frame: PageFrameNumber, into buffer: UnsafeMutableRawBufferPointer
      ) -> [Absence?] {
        unsafe whole.read(from: frame, into: buffer).enumerated().map { index, absence in
          damaged.contains(frame + UInt64(index)) ? .corrupt : absence
        }
      }
    }
  }

  /// A mapping whose pages are frames of their own number.
  private struct InOrder: MemoryBacking {
    func runs(from start: VirtualAddress, pages: UInt64) -> [PageRun<VirtualAddress>] {
      [
        PageRun(
          start: start, pages: pages, content: .frames(PageFrameNumber(start.rawValue >> 12)))
      ]
    }
  }

  @Test func `pages that turn out to be damaged are cut out of their segments`() throws {
    var process = Self.process(mappings: 0).process
    let mappings = [(0, 20), (20, 30), (40, 45)].map { first, end in
      ProcessMapping(
        start: VirtualAddress(UInt64(first) << 12), end: VirtualAddress(UInt64(end) << 12),
        flags: .readable, filePage: 0, backing: .anonymous)
    }
    process = UserProcess(
      id: 1, identity: process.identity, tables: process.tables, mappings: mappings,
      threads: [], auxiliaryVector: [], credentials: .init(), failures: [])
    let memory = PageMap(
      regions: mappings.map {
        PageRegion(start: $0.start, size: $0.size, isReadOnly: true, origin: "")
      }, backing: InOrder())
    let damaged: Set<UInt64> = [0, 7, 8, 19, 20, 40, 41, 42, 43, 44]
    let source = DamagedSource(
      whole: Self.numbered(), damaged: Set(damaged.map { PageFrameNumber($0) }))
    let path = try TemporaryFile()
    let summary = try ProcessCoreWriter(process, memory: memory, in: source).write(
      to: try OutputFile(FilePath(path.path), force: true), threads: 2, progress: MoveProgress())
    #expect(summary.lost == [.corrupt: 10])
    #expect(summary.unmarkedPages == 0)
    let dump = try DumpFile.open([FilePath(path.path)])
    let core = try #require(dump.process)
    for mapping in mappings {
      for number in mapping.start.rawValue >> 12..<mapping.end.rawValue >> 12 {
        let gap = core.segment(at: VirtualAddress(number << 12))?.gap
        if damaged.contains(number) {
          #expect(gap == .missing(.corrupt), "page \(number)")
        } else {
          #expect(gap == nil, "page \(number)")
          #expect(
            try dump.page(at: number << 12)
              == SyntheticSource.numberedPage(PageFrameNumber(number)))
        }
      }
    }
    // One for each run of damaged pages and of others, never over two mappings.
    #expect(
      core.segments.map { $0.start.rawValue >> 12 } == [0, 1, 7, 9, 19, 20, 21, 40])
  }

  @Test func `more damaged runs than there is room for are counted`() {
    let mapping = ProcessMapping(
      start: VirtualAddress(0), end: VirtualAddress(4000 << pageShift), flags: .readable,
      filePage: 0, backing: .anonymous)
    let memory = PageMap(
      regions: [
        PageRegion(start: mapping.start, size: mapping.size, isReadOnly: true, origin: "")
      ], backing: InOrder())
    var layout = ProcessCoreLayout([mapping], memory, noteSize: 100)
    let start = layout.segments[0].fileOffset
    layout.cut(
      (0..<1000).map { index in
        PageMover.LostPages(
          fileOffset: start + (UInt64(index) * 4 + 1) << pageShift, pages: 1, reason: .truncated)
      })
    let marked = layout.segments.filter { $0.gap == .missing(.truncated) }
    #expect(marked.count + Int(layout.unmarkedPages) == 1000)
    #expect(marked.count == 512)
    #expect(layout.segments.reduce(0) { $0 + $1.size } == mapping.size)
    // Program headers end where notes begin.
    #expect(
      ELFCoreHeader.size + ELFCoreHeader.programHeaderSize * UInt64(layout.programHeaderCount)
        <= layout.noteOffset)
  }

  // MARK: Codes

  @Test func `reasons survive the way through program headers`() {
    let gaps: [SegmentGap] = [.unsaid, .zero] + MissingReason.allCases.map { .missing($0) }
    var seen: Set<UInt32> = []
    for gap in gaps {
      #expect(gap.flags & ~0x0ff0_0000 == 0)
      #expect(seen.insert(gap.flags).inserted)
      #expect(SegmentGap(flags: gap.flags | 7) == gap)
    }
    // What other writers may mean by other bits, or later versions by other numbers.
    #expect(SegmentGap(flags: 0xf000_0007) == .unsaid)
    #expect(SegmentGap(flags: 0x0ff0_0007) == .unsaid)
  }
}
