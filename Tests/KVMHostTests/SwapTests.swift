import Guest
import KVMHost
import LinuxKernel
import Memory
import SyntheticDumps
import Testing
import X86

/// Pages that a host has swapped out.
@Suite struct SwapTests {
  /// A host with swap devices, and a guest of 4 MiB of which nothing is mapped.
  private struct SwappingHost {
    static let ram = VirtualAddress(0x5512_4000_0000)
    var host: SyntheticHost
    let process: SyntheticHost.Process
    private(set) var devices: [SyntheticObject] = []

    init(
      pages: [UInt64] = [64], extents: [[SyntheticHost.SwapExtent]] = [],
      change: @escaping @Sendable (inout KernelTypes) -> Void = { _ in }
    ) {
      var options = SyntheticHost.Options()
      options.swapDevices = UInt32(pages.count)
      options.change = { types in
        types.addSwap()
        change(&types)
      }
      host = SyntheticHost(options)
      process = host.addProcess(pid: 1, arguments: ["qemu"])
      _ = host.addMachine(
        process, slots: [.init(id: 0, guestFrame: 0, pages: 1024, address: Self.ram)])
      devices = host.addSwapDevices(pages: pages, extents: extents)
    }

    /// Makes a page of the guest one that was swapped out.
    mutating func swapOut(_ page: UInt64, to offset: UInt64, device: UInt64 = 0) {
      set(page, to: device << 59 | ((~offset << 14) >> 5) & ((1 << 59) - 1) & ~0x1ff)
    }

    mutating func set(_ page: UInt64, to entry: UInt64) {
      process.tables.setEntry(
        of: Self.ram + page << pageShift, .page4KiB, to: entry, in: &host.kernel.machine)
    }

    func found(_ images: [(image: any SwapImage, device: String?)] = []) throws -> Found {
      var host = host
      let text = try #require(Vmcoreinfo(text: Array(host.finish().utf8)))
      let source = SyntheticSource(host.kernel.machine.memory, dumpLevel: [])
      let kvm = try KVMHost(
        try LinuxKernel(text, in: source), in: source, processors: HostProcessors(notes: []),
        swapImages: SwapImages(images))
      let guests = try kvm.guests()
      #expect(guests.failures.isEmpty, "\(guests.failures)")
      return Found(host: kvm, guest: try #require(guests.guests.first))
    }
  }

  private struct Moved: Equatable {
    let bytes: [UInt8]
    let absence: Absence?

    init(_ bytes: [UInt8], _ absence: Absence? = nil) {
      self.bytes = bytes
      self.absence = absence
    }
  }

  private struct Found {
    let host: KVMHost
    let guest: Guest

    func content(_ page: UInt64) -> PageContent? {
      guest.memory.runs(from: GuestPhysicalAddress(page << pageShift), pages: 1).first?.content
    }

    /// As those who look for something in a guest read it.
    func bytes(_ page: UInt64) throws -> [UInt8] {
      try GuestMemory(guest.memory, in: host.memory).page(PageFrameNumber(page))
    }

    /// As those who move pages read it.
    func moved(_ page: UInt64) throws -> Moved {
      guard case .frames(let frame)? = content(page) else {
        Issue.record("page \(page) has no frame")
        return Moved([])
      }
      var bytes = [UInt8](repeating: 0xee, count: Int(pageSize))
      let absences = unsafe bytes.withUnsafeMutableBytes { room in
        unsafe host.memory.makeReader().read(from: frame, into: room)
      }
      return Moved(bytes, try #require(absences.first))
    }

    var survey: MemorySurvey { MemorySurvey(of: guest.memory) }
  }

  /// An image with a swap area in it, of which each page tells its number.
  private struct Image: SwapImage {
    var name = "swap.img"
    let size: UInt64
    /// Where in the image the area begins, in pages.
    var start: UInt64 = 0
    let pages: UInt64
    var uuid: UInt8 = 1

    init(pages: UInt64, start: UInt64 = 0, size: UInt64? = nil, uuid: UInt8 = 1) {
      self.size = size ?? (start + pages) << pageShift
      self.start = start
      self.pages = pages
      self.uuid = uuid
    }

    func page(at offset: UInt64) -> [UInt8]? {
      guard offset < size else { return nil }
      return offset >> pageShift == start ? header : SwapTests.numbered(offset >> pageShift)
    }

    var header: [UInt8] {
      var page = [UInt8](repeating: 0, count: Int(pageSize))
      page[1024] = 1
      for (index, byte) in [UInt8(pages - 1), 0, 0, 0].enumerated() { page[1028 + index] = byte }
      for index in 0..<16 { page[1036 + index] = uuid }
      page.replaceSubrange(4086..., with: Array("SWAPSPACE2".utf8))
      return page
    }
  }

  /// A page that is like no other, and can be compressed.
  private static func numbered(_ number: UInt64) -> [UInt8] {
    (0..<Int(pageSize)).map { UInt8(truncatingIfNeeded: $0 % 37 + Int(number)) }
  }

  // MARK: Images

  @Test func `pages of a whole device are read from its image`() throws {
    var host = SwappingHost()
    host.swapOut(0, to: 5)
    host.swapOut(1, to: 6)
    host.swapOut(2, to: 63)
    let found = try host.found([(Image(pages: 64), nil)])
    #expect(try found.bytes(0) == Self.numbered(5))
    #expect(try found.moved(1) == Moved(Self.numbered(6)))
    #expect(try found.bytes(2) == Self.numbered(63))
    #expect(found.survey.swapped == [.image: 3] && found.survey.present == 3)
    #expect(found.survey.missing.isEmpty)
  }

  @Test func `what an image ends before is missing, with its device`() throws {
    var host = SwappingHost()
    host.swapOut(0, to: 5)
    host.swapOut(1, to: 40)
    let found = try host.found([(Image(pages: 64, size: 40 << pageShift), nil)])
    #expect(try found.bytes(0) == Self.numbered(5))
    #expect(found.content(1) == .missing(.swappedOut, device: 0))
    #expect(found.survey.onDevice == [SwapLoss(reason: .swappedOut, device: 0): 1])
  }

  @Test func `pages of a swap file are where its extents say`() throws {
    let extents: [SyntheticHost.SwapExtent] = [(0, 10, 100), (10, 20, 300), (30, 34, 200)]
    var host = SwappingHost(extents: [extents])
    for (page, offset) in [9, 10, 29, 30, 63].enumerated() {
      host.swapOut(UInt64(page), to: UInt64(offset))
    }
    let disk = try host.found([(Image(pages: 64, start: 100, size: 1000 << pageShift), nil)])
    for (page, block) in [109, 300, 319, 200, 233].enumerated() {
      #expect(try disk.bytes(UInt64(page)) == Self.numbered(UInt64(block)))
    }
    // The file itself has them one behind the other.
    let file = try host.found([(Image(pages: 64), nil)])
    for (page, offset) in [9, 10, 29, 30, 63].enumerated() {
      #expect(try file.bytes(UInt64(page)) == Self.numbered(UInt64(offset)))
    }
  }

  @Test func `an image that fits no device is refused`() throws {
    let found = try SwappingHost().found([(Image(pages: 65), nil)])
    #expect(
      throws: SwapImageError.fitsNone(
        image: "swap.img", devices: ["swap device 0 (64 pages)"])
    ) { try found.host.swap.imagedDevices() }
  }

  @Test func `an image that fits two devices needs to be told which`() throws {
    var host = SwappingHost(pages: [64, 64])
    host.swapOut(0, to: 5, device: 1)
    let ambiguous = try host.found([(Image(pages: 64), nil)])
    #expect(
      throws: SwapImageError.fitsSeveral(
        image: "swap.img", devices: ["swap device 0", "swap device 1"])
    ) { try ambiguous.host.swap.imagedDevices() }
    #expect(ambiguous.content(0) == .missing(.swappedOut, device: 1))

    // The page cache has the second's header, with the image's UUID.
    let pages = host.host.addFile(operations: "ext4_aops")
    let header = host.host.frame(Image(pages: 64).header, as: .cache(pages, index: 0))
    host.host.fill(pages, [0: host.host.descriptor(of: header).address.rawValue])
    let file = host.host.kernel.make("file")
    host.host.kernel.set(file, "f_mapping", pages.address)
    host.host.kernel.set(host.devices[1], "swap_file", file.address)
    let found = try host.found([(Image(pages: 64), nil)])
    let answers = try found.host.swap.imagedDevices()
    #expect(answers.map(\.device) == ["swap device 1"])
    #expect(try found.bytes(0) == Self.numbered(5))
    // Another UUID is another device, however large.
    let other = try host.found([(Image(pages: 64, uuid: 2), nil)])
    #expect(try other.host.swap.imagedDevices().map(\.device) == ["swap device 0"])
  }

  // MARK: The kernel's own memory

  @Test func `a page in the swap cache is there, whatever the image has`() throws {
    var host = SwappingHost()
    host.swapOut(0, to: 5)
    host.swapOut(1, to: 6)
    let frame = host.host.frame(Self.numbered(1000))
    host.host.putIntoSwapCache(frame, SwapEntry(device: 0, offset: 5))
    let found = try host.found([(Image(pages: 64), nil)])
    #expect(found.content(0) == .frames(frame))
    #expect(try found.bytes(1) == Self.numbered(6))
  }

  @Test func `a page in the swap cache that is still to be read is not there`() throws {
    var host = SwappingHost()
    host.swapOut(0, to: 5)
    let frame = host.host.frame(Self.numbered(1000))
    host.host.putIntoSwapCache(frame, SwapEntry(device: 0, offset: 5), isUpToDate: false)
    #expect(try host.found().content(0) == .missing(.swappedOut, device: 0))
  }

  @Test func `a page that the kernel noted as zero is zero, whatever the image has`() throws {
    var host = SwappingHost()
    host.swapOut(0, to: 5)
    host.swapOut(1, to: 6)
    let map = host.host.kernel.allocate(8)
    host.host.kernel.store(UInt64(1) << 5, at: map)
    host.host.kernel.set(host.devices[0], "zeromap", map)
    let found = try host.found([(Image(pages: 64), nil)])
    #expect(found.content(0) == .zero(.swappedZeroPage))
    #expect(try found.bytes(1) == Self.numbered(6))
  }

  // MARK: zram

  /// A page that compresses to half its size.
  private static let mixed: [UInt8] = {
    var generator = SeededGenerator(seed: 1)
    let random = (0..<2000).map { _ in UInt8.random(in: 0...255, using: &generator) }
    return random + numbered(0)[2000...]
  }()
  private static let lzo = Compression.lzo.compressed(mixed) ?? []

  /// The first object of a pool, and one that lies in two pages.
  @Test(arguments: [0, 1] as [UInt64])
  func `a page in zram is decompressed`(index: UInt64) throws {
    var host = SwappingHost(extents: [[(0, 64, 0)]])
    let pool = host.host.addPool(objectSize: 2720)
    var object = Self.lzo
    // The object that crosses the pages has data on both sides.
    object += [UInt8](repeating: 0xdd, count: 2700 - object.count)
    let handle = host.host.store(object, in: pool, index: index).handle
    host.host.makeZRAM(
      host.devices[0], compressor: "lzo-rle", pool: pool,
      entries: [5: (handle, UInt64(Self.lzo.count)), 6: (handle, UInt64(Self.lzo.count + 1))])
    host.swapOut(0, to: 5)
    host.swapOut(1, to: 6)
    let found = try host.found()
    #expect(try found.bytes(0) == Self.mixed)
    #expect(try found.moved(0) == Moved(Self.mixed))
    #expect(found.survey.swapped == [.zram: 2])
    // One that does not decompress is lost, and zeros take its room.
    #expect(try found.moved(1) == Moved([UInt8](repeating: 0, count: 4096), .corrupt))
    #expect(throws: MemoryError.self) { try found.bytes(1) }
    #expect(found.host.swap.name(ofDevice: 0) == "swap device 0 (zram, lzo-rle)")
  }

  @Test func `pages in zram that are not compressed`() throws {
    var host = SwappingHost()
    let pool = host.host.addPool(objectSize: pageSize)
    let handle = host.host.store(Self.numbered(9), in: pool).handle
    let same = SyntheticHost.zramFlag("ZRAM_SAME")
    host.host.makeZRAM(
      host.devices[0], compressor: "lzo", pool: pool,
      entries: [
        5: (handle, 4096 | SyntheticHost.zramFlag("ZRAM_HUGE")), 6: (0, same),
        7: (0x1122_3344_5566_7788, same), 8: (0, 0), 9: (3, SyntheticHost.zramFlag("ZRAM_WB")),
      ])
    for offset in 5...9 as ClosedRange<UInt64> { host.swapOut(offset, to: offset) }
    let found = try host.found()
    #expect(try found.bytes(5) == Self.numbered(9))
    #expect(found.content(6) == .zero(.swappedZeroPage))
    #expect(
      try found.moved(7).bytes
        == (0..<512).flatMap { _ in
          [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11] as [UInt8]
        })
    #expect(found.content(8) == .zero(.swappedZeroPage))
    // zram wrote it to its backing device.
    #expect(found.content(9) == .missing(.swappedOut, device: 0))
  }

  @Test func `pages in zram that cannot be read are missing with the reason`() throws {
    var host = SwappingHost(pages: [64, 64])
    let pool = host.host.addPool(objectSize: 2720)
    let (handle, place) = host.host.store(Self.lzo, in: pool)
    let (other, _) = host.host.store(Self.lzo, in: pool)
    let size = UInt64(Self.lzo.count)
    host.host.makeZRAM(
      host.devices[0], compressor: "842", pool: pool, entries: [5: (other, size)])
    host.host.makeZRAM(
      host.devices[1], compressor: "lzo", pool: pool,
      entries: [5: (handle, size), 6: (0xffff_0000_0000_0008, size), 7: (other, 3000)])
    // Not the object of this handle.
    host.host.kernel.machine.memory.write([1, 2, 3], at: place)
    host.swapOut(0, to: 5)
    for offset in 5...7 as ClosedRange<UInt64> { host.swapOut(offset, to: offset, device: 1) }
    let found = try host.found([])
    #expect(found.content(0) == .missing(.swapUnsupported, device: 0))
    #expect(found.content(5) == .missing(.swapUnreadable, device: 1))
    #expect(found.content(6) == .missing(.swapUnreadable, device: 1))
    #expect(found.content(7) == .missing(.swapUnreadable, device: 1))
  }

  // MARK: zswap

  @Test func `pages in zswap are decompressed, and come before those of the device`() throws {
    var host = SwappingHost()
    let pool = host.host.addPool(objectSize: 2720)
    let handle = host.host.store(Self.lzo, in: pool).handle
    let size = UInt64(Self.lzo.count)
    host.host.addZSwap(
      device: 0, allocator: "zsmalloc", compressor: "lzo", pool: pool.object.address.rawValue,
      [
        .init(offset: 3, length: 0, value: 0), .init(offset: 5, length: size, value: handle),
        .init(offset: 8, length: 0, value: 0xffff_ffff_ffff_ffff),
      ])
    for offset in [3, 5, 8, 9] as [UInt64] { host.swapOut(offset, to: offset) }
    let found = try host.found([(Image(pages: 64), nil)])
    #expect(found.content(3) == .zero(.swappedZeroPage))
    #expect(try found.moved(5) == Moved(Self.mixed))
    #expect(try found.bytes(8) == [UInt8](repeating: 0xff, count: 4096))
    #expect(try found.bytes(9) == Self.numbered(9))
    #expect(found.survey.swapped == [.zswap: 2, .image: 1])
  }

  @Test(arguments: [("zbud", "lzo", true), ("zbud", "842", false), ("zfuture", "lzo", false)])
  func `zswap's pools of other kinds`(
    allocator: String, compressor: String, isKnown: Bool
  ) throws {
    var host = SwappingHost()
    let object = host.host.kernel.allocate(Self.lzo.count)
    host.host.kernel.write(Self.lzo, at: object)
    host.host.addZSwap(
      device: 0, allocator: allocator, compressor: compressor, pool: 0,
      [.init(offset: 5, length: UInt64(Self.lzo.count), value: object.rawValue)])
    host.swapOut(0, to: 5)
    let found = try host.found()
    if isKnown {
      #expect(try found.bytes(0) == Self.mixed)
    } else {
      #expect(found.content(0) == .missing(.swapUnsupported, device: 0))
    }
  }

  // MARK: Entries that name a frame

  /// An entry of a type that is no device, with a frame's number in place of the offset.
  private func special(_ frame: PageFrameNumber) -> UInt64 {
    30 << 59 | ((~frame.rawValue << 14) >> 5) & ((1 << 59) - 1) & ~0x1ff
  }

  @Test func `a page on its way to another frame is still in the old one`() throws {
    var host = SwappingHost()
    let frame = host.host.frame(Self.numbered(3))
    host.set(0, to: special(frame))
    // With the bits of an old and dirty page above the frame's number.
    host.set(1, to: special(PageFrameNumber(frame.rawValue | 3 << 40)))
    // A marker, which has a small number there.
    host.set(2, to: special(PageFrameNumber(4)))
    let found = try host.found()
    #expect(found.content(0) == .frames(frame))
    #expect(found.content(1) == .frames(frame))
    #expect(found.content(2) == .missing(.specialEntry))
  }

  @Test func `a page whose memory has failed is missing for that reason`() throws {
    var host = SwappingHost()
    let frame = host.host.frame(Self.numbered(3))
    host.host.poison(frame)
    host.set(0, to: special(frame))
    #expect(try host.found().content(0) == .missing(.poisoned))
  }

  // MARK: Files

  /// A BIOS's shadow, of which the VMM maps nothing itself: a slot of its own into the memfd.
  @Test func `a slot of which nothing is mapped is found by the VMM's mappings`() throws {
    var host = SwappingHost()
    let file = host.host.addFile()
    let frame = host.host.frame(Self.numbered(8), as: .cache(file, index: 0x203))
    host.host.fill(
      file,
      [
        0x203: host.host.descriptor(of: frame).address.rawValue,
        0x204: SwapEntry(device: 0, offset: 6).value << 1 | 1,
      ])
    let root = host.host.addMount()
    let name = host.host.addDentry("memfd:ram", in: root.root)
    let open = host.host.open(name, on: root.mount, pages: file)
    let area = host.host.addMapping(
      SwappingHost.ram.rawValue - 0x200 << pageShift, pages: 0x600, file: open)
    host.host.setMappings(of: host.process, to: [area])
    let found = try host.found([(Image(pages: 64), nil)])
    #expect(found.content(2) == .zero(.neverTouched))
    #expect(found.content(3) == .frames(frame))
    #expect(try found.bytes(4) == Self.numbered(6))
  }
}
