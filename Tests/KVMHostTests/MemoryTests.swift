import Guest
import KVMHost
import Memory
import SyntheticDumps
import Testing

/// What a guest's page can be in its VMM's page tables, page cache and dump.
@Suite struct GuestPageTests {
  /// 4 MiB of RAM that large pages fit, of which nothing is mapped.
  private struct LargeGuest {
    static let ram = VirtualAddress(0x5512_4000_0000)
    var host: SyntheticHost
    let process: SyntheticHost.Process

    init(_ options: SyntheticHost.Options = .init(), pages: UInt64 = 1024) {
      host = SyntheticHost(options)
      process = host.addProcess(pid: 1, arguments: ["qemu"])
      _ = host.addMachine(
        process, slots: [.init(id: 0, guestFrame: 0, pages: pages, address: Self.ram)])
    }

    mutating func set(
      _ page: UInt64, _ size: SyntheticPageTables.PageSize = .page4KiB, to entry: UInt64
    ) {
      process.tables.setEntry(
        of: Self.ram + page << pageShift, size, to: entry, in: &host.kernel.machine)
    }

    mutating func map(
      _ page: UInt64, to frame: PageFrameNumber,
      _ size: SyntheticPageTables.PageSize = .page4KiB
    ) {
      set(page, size, to: process.tables.entry(for: frame, size))
    }

    /// 512 frames with a number in each.
    mutating func largeFrame(as use: SyntheticHost.Use) -> PageFrameNumber {
      let first = host.kernel.machine.allocate(512, alignedTo: 512)
      for index in 0..<512 as Range<UInt64> {
        host.kernel.machine.memory[first + index] = SyntheticSource.numberedPage(first + index)
      }
      host.describe(first, count: 512, as: use)
      return first
    }
  }

  private static let swapEntry: UInt64 = (~5 << 14) >> 5

  @Test func `a page of the shared zero page is zero`() throws {
    var guest = LargeGuest()
    guest.map(0, to: guest.host.sharedZeroFrame)
    let page = guest.host.frame(OneGuest.bytes(1))
    guest.map(1, to: page)
    let found = try Analysis(guest.host)
    #expect(try found.content(0) == .zero(.sharedZeroPage))
    #expect(try found.content(1) == .frames(page))
    #expect(try found.content(2) == .zero(.neverTouched))
  }

  @Test func `pages that are swapped out or marked are missing`() throws {
    var options = SyntheticHost.Options()
    options.swapDevices = 2
    var guest = LargeGuest(options)
    guest.set(0, to: Self.swapEntry)
    guest.set(1, to: Self.swapEntry | 1 << 59)
    guest.set(2, to: Self.swapEntry & ~(31 << 59) | 2 << 59)
    guest.set(3, to: Self.swapEntry | 31 << 59)
    guest.set(512, .page2MiB, to: Self.swapEntry | 30 << 59)
    let found = try Analysis(guest.host)
    #expect(try found.content(0) == .missing(.swappedOut, device: 0))
    #expect(try found.content(1) == .missing(.swappedOut, device: 1))
    #expect(try found.content(2) == .missing(.specialEntry))
    #expect(try found.content(3) == .missing(.specialEntry))
    let survey = MemorySurvey(of: try found.guest.memory)
    #expect(survey.missing == [.swappedOut: 2, .specialEntry: 514])
    #expect(
      survey.onDevice == [
        SwapLoss(reason: .swappedOut, device: 0): 1, SwapLoss(reason: .swappedOut, device: 1): 1,
      ])
  }

  @Test(arguments: [0, 1 << 47, 1 << 51] as [UInt64])
  func `pages protected for a while are there, under memory encryption too`(mask: UInt64) throws {
    var options = SyntheticHost.Options()
    options.kernel.encryptionMask = mask
    var guest = LargeGuest(options)
    let frames = (0..<4).map { guest.host.frame(OneGuest.bytes($0)) }
    let inverted = ~UInt64(0xfff) & 0xf_ffff_ffff_ffff & ~mask
    let protected = SyntheticPageTables.global
    // Since 4.19 the frame's number is inverted, but not the C-bit; a page may be without it.
    guest.set(0, to: (frames[0].address.rawValue ^ inverted) | mask | protected)
    guest.set(1, to: (frames[1].address.rawValue ^ inverted) | protected)
    guest.set(2, to: frames[2].address.rawValue | mask | protected)
    guest.set(3, to: frames[3].address.rawValue | protected)
    let large = guest.largeFrame(as: .anonymous)
    guest.set(
      512, .page2MiB,
      to: (large.address.rawValue ^ inverted) | mask | protected | SyntheticPageTables.large)
    let found = try Analysis(guest.host)
    for page in 0..<4 as Range<UInt64> {
      #expect(try found.content(page) == .frames(frames[Int(page)]), "\(page)")
    }
    #expect(try found.content(512) == .frames(large))
    #expect(try found.bytes(1023) == SyntheticSource.numberedPage(large + 511))
  }

  @Test func `a large page that is being split is there`() throws {
    // pmd_mkinvalid: not present, not PROT_NONE, bit 7 set, the frame inverted as in all such.
    var guest = LargeGuest()
    let large = guest.largeFrame(as: .anonymous)
    let inverted = ~UInt64(0xfff) & 0xf_ffff_ffff_ffff
    guest.set(0, .page2MiB, to: (large.address.rawValue ^ inverted) | SyntheticPageTables.large)
    #expect(try Analysis(guest.host).content(5) == .frames(large + 5))
  }

  @Test(arguments: [true, false])
  func `pages of 2 MiB`(isHugetlb: Bool) throws {
    var guest = LargeGuest()
    let frame = guest.largeFrame(as: isHugetlb ? .hugetlb : .anonymous)
    guest.map(512, to: frame, .page2MiB)
    let found = try Analysis(guest.host)
    let runs = try found.guest.memory.runs(from: GuestPhysicalAddress(0), pages: 1024)
    #expect(runs.map(\.pages) == [512, 512])
    #expect(runs.map(\.content) == [.zero(.neverTouched), .frames(frame)])
    #expect(try found.bytes(512 + 77) == SyntheticSource.numberedPage(frame + 77))
  }

  @Test func `pages of 1 GiB`() throws {
    var guest = LargeGuest(pages: 1 << 18)
    let frame = PageFrameNumber(0x8_0000)
    guest.map(0, to: frame, .page1GiB)
    let found = try Analysis(guest.host, numbered: [frame..<frame + 1 << 18])
    let survey = MemorySurvey(of: try found.guest.memory)
    #expect(survey.present == 1 << 18)
    #expect(try found.bytes(0x3_1234) == SyntheticSource.numberedPage(frame + 0x3_1234))
  }

  @Test func `a frame that the dump does not speak of is missing`() throws {
    var guest = LargeGuest()
    guest.map(0, to: PageFrameNumber(0xfff_ffff))
    #expect(try Analysis(guest.host).content(0) == .missing(.notInDump))
  }

  @Test(arguments: [4, 5])
  func `pages behind a missing page table are missing`(levels: Int) throws {
    var options = SyntheticHost.Options()
    options.kernel.levels = levels
    var guest = LargeGuest(options)
    guest.map(3, to: guest.host.frame(OneGuest.bytes(0)))
    guest.map(512, to: guest.host.frame(OneGuest.bytes(0)))
    let table = guest.process.tables.entryPlace(of: LargeGuest.ram, in: &guest.host.kernel.machine)
    let found = try Analysis(guest.host, excluding: [table.frame])
    let survey = MemorySurvey(of: try found.guest.memory)
    #expect(survey.missing == [.pageTableMissing: 512])
    #expect(survey.present == 1)
  }

  // MARK: The page cache

  @Test(arguments: [true, false])
  func `tails of a compound page lead to its head by a pointer or a mask`(isMask: Bool) throws {
    var options = SyntheticHost.Options()
    options.change = Variant.compoundInformation
    // A mask needs descriptors whose size is a power of two.
    options.seed = try #require(
      (1...1000).first { seed in
        var types = KernelTypes.host(seed: seed)
        options.change(&types)
        return (types.size(of: .named("page")).nonzeroBitCount == 1) == isMask
      })
    var guest = LargeGuest(options)
    let file = guest.host.addFile()
    let folio = guest.host.kernel.machine.allocate(4, alignedTo: 4)
    guest.host.describe(folio, count: 4, as: .cache(file, index: 0))
    for page in 0..<4 as Range<UInt64> { guest.map(page, to: folio + page) }
    // Only the head tells that it is page cache, of which this level leaves out zero pages alone.
    let level = DumpLevel(rawValue: 9)
    let found = try Analysis(guest.host, level: level, excluding: [folio + 2])
    #expect(try found.content(2) == .zero(.filteredZeroPage))
  }

  @Test(arguments: [false, true], [0, 3, 200] as [UInt64])
  func `a memfd's page that is not mapped is looked up in the page cache`(
    isNew: Bool, base: UInt64
  ) throws {
    var options = SyntheticHost.Options()
    // page.index was renamed in 6.16, page.flags became a structure in 6.18.
    if isNew { options.change = Variant.pageFlags }
    var guest = LargeGuest(options)
    let file = guest.host.addFile()
    let first = guest.host.frame(OneGuest.bytes(0), as: .cache(file, index: base + 1))
    let second = guest.host.frame(OneGuest.bytes(1), as: .cache(file, index: base + 2))
    let folio = guest.host.kernel.machine.allocate(4, alignedTo: 4)
    guest.host.describe(folio, count: 4, as: .cache(file, index: (base | 63) + 1))
    guest.map(1, to: first)
    var entries: [UInt64: UInt64] = [
      base + 1: guest.host.descriptor(of: first).address.rawValue,
      base + 2: guest.host.descriptor(of: second).address.rawValue,
      // A value entry: shmem's note of where in swap the page is.
      base + 3: 0x1234 << 1 | 1,
    ]
    let start = (base | 63) + 1
    entries[start] = guest.host.descriptor(of: folio).address.rawValue
    for sibling in 1..<4 as Range<UInt64> { entries[start + sibling] = (start & 63) << 2 | 2 }
    guest.host.fill(file, entries)

    let found = try Analysis(guest.host)
    #expect(try found.content(0) == .zero(.neverTouched))
    #expect(try found.content(1) == .frames(first))
    #expect(try found.content(2) == .frames(second))
    #expect(try found.content(3) == .missing(.swappedOut, device: 0))
    #expect(try found.content(4) == .zero(.neverTouched))
    #expect(try found.content(start - base) == .frames(folio))
    #expect(try found.content(start - base + 3) == .frames(folio + 3))
    #expect(try found.content(start - base + 4) == .zero(.neverTouched))
    let survey = MemorySurvey(of: try found.guest.memory)
    #expect(survey.present == 6 && survey.missing == [.swappedOut: 1])
  }

  @Test func `a page of a file on a disk that is not in memory is missing`() throws {
    var guest = LargeGuest()
    let file = guest.host.addFile(operations: "ext4_aops")
    let frame = guest.host.frame(OneGuest.bytes(0), as: .cache(file, index: 0))
    guest.map(0, to: frame)
    guest.host.fill(file, [0: guest.host.descriptor(of: frame).address.rawValue])
    let survey = MemorySurvey(of: try Analysis(guest.host).guest.memory)
    #expect(survey.present == 1)
    #expect(survey.missing == [.inFile: 1023])
  }

  // MARK: Filtered dumps

  private enum Kind: CaseIterable { case anonymous, cache, privateCache, hugetlb, other }

  /// A page left out under a dump level: by its kind, or for being zero.
  @Test(arguments: [0, 1, 3, 8, 9, 16, 17, 21, 23, 31] as [Int32])
  func `a page that was left out is zero only if its kind was not`(rawLevel: Int32) throws {
    let level = DumpLevel(rawValue: rawLevel)
    var guest = LargeGuest()
    let file = guest.host.addFile()
    var excluded: Set<PageFrameNumber> = []
    let uses: [(SyntheticHost.Use, DumpLevel?)] = [
      (.anonymous, .userData), (.cache(file, index: 1), .cache),
      (.privateCache(file, index: 2), .privateCache), (.other, nil),
    ]
    for (page, (use, _)) in uses.enumerated() {
      let frame = guest.host.frame(OneGuest.bytes(0), as: use)
      guest.map(UInt64(page), to: frame)
      excluded.insert(frame)
    }
    let huge = guest.largeFrame(as: .hugetlb)
    guest.map(512, to: huge, .page2MiB)
    // The tail's descriptor leads to the head's.
    excluded.insert(huge + 7)
    let found = try Analysis(guest.host, level: level, excluding: excluded)
    func expected(_ kind: DumpLevel?) -> PageContent {
      guard level.contains(.zeroPages) else { return .missing(.filtered) }
      if level.isDisjoint(with: [.cache, .privateCache, .userData]) {
        return .zero(.filteredZeroPage)
      }
      guard let kind, level.isDisjoint(with: kind) else { return .missing(.filtered) }
      return .zero(.filteredZeroPage)
    }
    for (page, (use, kind)) in uses.enumerated() {
      #expect(try found.content(UInt64(page)) == expected(kind), "\(use)")
    }
    #expect(try found.content(512 + 7) == expected(.userData))
    #expect(try found.content(512 + 8) == .frames(huge + 8))
  }

  @Test(arguments: [0, 255, 256])
  func `an ELF dump's level shows in the runs that it holds`(cachedRun: Int) throws {
    var guest = LargeGuest()
    let file = guest.host.addFile()
    let anonymous = guest.host.kernel.machine.allocate(256)
    let cached = guest.host.kernel.machine.allocate(256)
    var excluded: Set<PageFrameNumber> = []
    for index in 0..<256 as Range<UInt64> {
      guest.host.describe(anonymous + index, as: .anonymous)
      guest.host.describe(cached + index, as: .cache(file, index: index))
      if index >= cachedRun { excluded.insert(cached + index) }
    }
    for (page, use) in [SyntheticHost.Use.anonymous, .cache(file, index: 300)].enumerated() {
      let frame = guest.host.frame(OneGuest.bytes(0), as: use)
      guest.map(UInt64(page), to: frame)
      excluded.insert(frame)
    }
    let found = try Analysis(guest.host, level: nil, excluding: excluded)
    #expect(try found.content(0) == .zero(.filteredZeroPage))
    #expect(
      try found.content(1)
        == (cachedRun < 256 ? .missing(.filtered) : .zero(.filteredZeroPage)))
  }

  // MARK: Size

  @Test func `a large guest costs as much as it has page tables`() throws {
    var guest = LargeGuest(pages: 1 << 27)
    for index in 0..<40 as Range<UInt64> {
      guest.map(index << 21 + 77, to: guest.host.frame(OneGuest.bytes(index)))
    }
    let found = try Analysis(guest.host)
    let survey = MemorySurvey(of: try found.guest.memory)
    #expect(survey.present == 40)
    #expect(survey.pages == 1 << 27)
    let kernels = GuestKernels(of: try found.guest, in: found.source, threads: 2)
    #expect(kernels.kernels.isEmpty)
    #expect(found.source.pagesRead < 50_000)
  }

  @Test func `a large memfd with few pages is as cheap`() throws {
    var guest = LargeGuest(pages: 1 << 27)
    let file = guest.host.addFile()
    let frame = guest.host.frame(OneGuest.bytes(0), as: .cache(file, index: 0))
    guest.map(0, to: frame)
    let other = guest.host.frame(OneGuest.bytes(0), as: .cache(file, index: 1 << 26))
    guest.host.fill(
      file,
      [
        0: guest.host.descriptor(of: frame).address.rawValue,
        1 << 26: guest.host.descriptor(of: other).address.rawValue,
      ])
    let found = try Analysis(guest.host)
    #expect(MemorySurvey(of: try found.guest.memory).present == 2)
    #expect(try found.content(1 << 26) == .frames(other))
    #expect(found.source.pagesRead < 200_000)
  }
}
