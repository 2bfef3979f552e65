import Memory

/// A QEMU made in code: its structures as its versions since 3.1 have them, in a process.
public struct SyntheticQEMU: Sendable {
  /// A RAM block with the MemoryRegion that it belongs to.
  public struct Block: Sendable {
    public var name: String
    public var size: UInt64
    /// The length that is reserved; nil: `size`.
    public var maximum: UInt64?
    public var flags: UInt32 = 0
    public var isDumped = true
    public var file: String?
    /// False for flash: a device that can be read like memory.
    public var isRAM = true
    /// Memory of a device of the host.
    public var isDevice = false
    /// Of a virtio-mem device: which of its blocks of 4 KiB are plugged in.
    public var plugged: [Bool]?
    /// Bytes that the device says are plugged in; nil: as many as there are.
    public var pluggedSize: UInt64?

    public init(_ name: String, size: UInt64) {
      self.name = name
      self.size = size
    }
  }

  /// An element of the flat view.
  public struct Range: Sendable {
    public var start: UInt64
    public var size: UInt64
    /// nil: I/O.
    public var block: Int?
    public var offset: UInt64
    public var isReadOnly = false

    public init(_ start: UInt64, size: UInt64, block: Int?, offset: UInt64 = 0) {
      self.start = start
      self.size = size
      self.block = block
      self.offset = offset
    }
  }

  /// Where MemoryRegion has its members: they move.
  public struct RegionLayout: Sendable {
    public var block: UInt64
    public var size: UInt64

    /// As in QEMU 7.2 and 10.0.
    public static let known = RegionLayout(block: 56, size: 112)
    /// As a later version may have them.
    public static let moved = RegionLayout(block: 80, size: 160)
  }

  public var program = "/usr/bin/qemu-system-x86_64"
  public var arguments = [
    "qemu-system-x86_64", "-name", "guest=web1,debug-threads=on", "-uuid", "u-1",
  ]
  public var blocks: [Block]
  public var ranges: [Range]
  public var regionLayout = RegionLayout.known
  /// True if the program was started through the dynamic loader.
  public var isStartedByLoader = false
  public var buildID: [UInt8] = [1, 2, 3, 4, 5, 6, 7, 8]
  public var hasStack = true
  /// Slots of KVM: the ranges that they are made of; nil without KVM.
  public var slots: [Range]?
  public var seed: UInt64 = 1

  public init(blocks: [Block], ranges: [Range]) {
    self.blocks = blocks
    self.ranges = ranges
  }

  /// A PC of 1 MiB with a ROM, flash, a device's memory, and memory above 4 GiB.
  public static var pc: SyntheticQEMU {
    var flash = Block("system.flash0", size: 0x4000)
    flash.isRAM = false
    var device = Block("", size: 0x2000)
    device.isDevice = true
    var tables = Block("/rom@etc/acpi/tables", size: 0x2000)
    tables.maximum = 0x8000
    var rom = Range(0xfffc_0000, size: 0x4000, block: 1)
    rom.isReadOnly = true
    return SyntheticQEMU(
      blocks: [
        Block("pc.ram", size: 0x10_0000), Block("pc.bios", size: 0x4000), flash, device, tables,
        Block("nvdimm", size: 0x1000),
      ],
      ranges: [
        Range(0, size: 0xa0000, block: 0), Range(0xa0000, size: 0x20000, block: nil),
        Range(0xc0000, size: 0x20000, block: 0, offset: 0xc0000),
        Range(0xe000_0000, size: 0x2000, block: 3), Range(0xfee0_0000, size: 0x1000, block: nil),
        Range(0xff00_0000, size: 0x4000, block: 2), rom,
        Range(0x1_0000_0000, size: 0x20000, block: 0, offset: 0xe0000),
        Range(0x1_8000_0000, size: 0x1000, block: 5),
      ])
  }

  // MARK: Addresses

  public static let base: UInt64 = 0x5555_5555_4000
  static let data = base + 0x2000
  static let bss = base + 0x3000
  public static let ramList = bss + 0x100
  public static let addressSpace = bss + 0x400
  public static let heap: UInt64 = 0x5555_6000_0000
  static let heapSize: UInt64 = 0x1_0000
  static let view = heap + 0x100
  public static let viewCount = view + 32
  public static let flatRanges = heap + 0x200
  public static let slotArray = heap + 0x8000
  static let name = heap + 0x180
  static let stack: UInt64 = 0x7ffc_0000_0000
  static let memory: UInt64 = 0x7f00_0000_0000

  public static func block(_ index: Int) -> UInt64 { heap + 0x1000 + 0x200 * UInt64(index) }
  public static func region(_ index: Int) -> UInt64 { heap + 0x4000 + 0x200 * UInt64(index) }
  /// Room for one more.
  public static let spareRegion = heap + 0xf000
  static func ioRegion(_ index: Int) -> UInt64 { heap + 0xa000 + 0x200 * UInt64(index) }

  public func host(_ block: Int) -> UInt64 {
    blocks[..<block].reduce(Self.memory) { $0 + ($1.maximum ?? $1.size) + 0x10_0000 }
  }

  // MARK: The process

  public var core: SyntheticCore {
    var core = SyntheticCore()
    core.command = String((program.split(separator: "/").last ?? "").prefix(15))
    core.argumentStart = arguments.joined(separator: " ")
    addProgram(to: &core)
    core.mappings.append(SyntheticCore.Mapping(Self.heap, size: Self.heapSize))
    core.write([UInt8](repeating: 0, count: Int(Self.heapSize)), at: Self.heap)
    var generator = SeededGenerator(seed: seed)
    for (index, block) in blocks.enumerated() {
      let host = host(index)
      core.mappings.append(
        SyntheticCore.Mapping(
          host, size: block.size, file: block.file, isDumped: block.isDumped))
      if block.isDumped {
        for offset in stride(from: 0, to: block.size, by: Int(pageSize)) {
          core.write(SyntheticMemory.randomPage(using: &generator), at: host + offset)
        }
      }
      add(block, index, at: host, to: &core)
    }
    core.store(Self.block(0), at: Self.ramList + 56)
    addView(to: &core)
    addSlots(to: &core)
    if hasStack {
      core.addStack(arguments, environment: ["HOME=/", "LANG=C"], at: Self.stack)
    }
    return core
  }

  /// The program's file: its first page is in the core too, the second with the exported symbols is
  /// not, as it was never written to.
  public var programFile: SyntheticFile {
    var file = SyntheticFile()
    file.write([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1], at: 0)
    file.store(UInt64(64), at: 32)
    file.store(UInt16(3), at: 56)
    // PT_LOAD, PT_DYNAMIC, PT_NOTE: type, offset and address, size.
    for (index, header) in [(1, 0, 0x3000), (2, 0x2000, 0x100), (4, 0x200, 0x100)].enumerated() {
      let place = 64 + 56 * UInt64(index)
      file.store(UInt32(header.0), at: place)
      for offset: UInt64 in [8, 16] { file.store(UInt64(header.1), at: place + offset) }
      for offset: UInt64 in [32, 40] { file.store(UInt64(header.2), at: place + offset) }
    }
    file.write(SyntheticNote(name: "GNU", type: 3, description: buildID).bytes, at: 0x200)
    addSymbols(to: &file)
    return file
  }

  private static let symbols = [
    ("address_space_memory", addressSpace), ("main", base + 0x1100), ("ram_list", ramList),
  ]

  /// DT_GNU_HASH with one bucket, symbols and their names, in the second page.
  private func addSymbols(to file: inout SyntheticFile) {
    var names: [UInt8] = [0]
    for (index, word) in [1, 1, 1, 0].enumerated() {
      file.store(UInt32(word), at: 0x1000 + 4 * UInt64(index))
    }
    file.store(UInt32(1), at: 0x1018)
    for (index, symbol) in Self.symbols.enumerated() {
      let hash = symbol.0.utf8.reduce(UInt32(5381)) { $0 &* 33 &+ UInt32($1) }
      let isLast = index == Self.symbols.count - 1
      file.store(hash & ~1 | (isLast ? 1 : 0), at: 0x101c + 4 * UInt64(index))
      let place = 0x1100 + 24 * UInt64(index + 1)
      file.store(UInt32(names.count), at: place)
      file.store(UInt16(1), at: place + 6)
      file.store(symbol.1 - Self.base, at: place + 8)
      names += Array(symbol.0.utf8) + [0]
    }
    file.write(names, at: 0x1200)
    file.resize(to: 0x2000)
  }

  private func addProgram(to core: inout SyntheticCore) {
    let file = program
    core.write(Array(programFile.bytes.prefix(0x1000)), at: Self.base)
    // DT_STRTAB and DT_SYMTAB as the loader leaves them, DT_GNU_HASH as it found it.
    for (index, entry) in [
      (5, Self.base + 0x1200), (6, Self.base + 0x1100), (0x6fff_fef5, 0x1000),
    ].enumerated() {
      core.store(UInt64(entry.0), at: Self.data + 16 * UInt64(index))
      core.store(UInt64(entry.1), at: Self.data + 16 * UInt64(index) + 8)
    }
    core.mappings += [
      SyntheticCore.Mapping(Self.base, size: 0x1000, file: file),
      SyntheticCore.Mapping(
        Self.base + 0x1000, size: 0x1000, file: file, fileOffset: 0x1000, isDumped: false),
      SyntheticCore.Mapping(Self.data, size: 0x1000, file: file, fileOffset: 0x2000),
      SyntheticCore.Mapping(Self.bss, size: 0x1000),
    ]
    let loader: UInt64 = 0x7fff_0000_0000
    if isStartedByLoader {
      core.mappings.append(
        SyntheticCore.Mapping(loader, size: 0x1000, file: "/lib64/ld-linux-x86-64.so.2"))
    }
    core.auxiliaryVector = [
      (33, 0x7ffe_0000_0000), (6, 4096), (3, Self.base + 64), (5, 2),
      (9, isStartedByLoader ? loader + 0x100 : Self.base + 0x1100),
    ]
    if slots != nil {
      core.mappings.append(
        SyntheticCore.Mapping(
          0x7ffb_0000_0000, size: 0x3000, file: "anon_inode:kvm-vcpu:0", isDumped: false))
    }
  }

  private func add(_ block: Block, _ index: Int, at host: UInt64, to core: inout SyntheticCore) {
    let address = Self.block(index)
    core.store(Self.region(index), at: address + 16)
    core.store(host, at: address + 24)
    core.store(UInt64(index) << 32, at: address + 40)
    core.store(block.size, at: address + 48)
    core.store(block.maximum ?? block.size, at: address + 56)
    core.store(block.flags, at: address + 72)
    core.write(Array(block.name.utf8) + [0], at: address + 76)
    core.store(index + 1 < blocks.count ? Self.block(index + 1) : 0, at: address + 336)
    core.store(index == 0 ? Self.ramList + 56 : Self.block(index - 1) + 336, at: address + 344)
    let region = Self.region(index)
    core.store(UInt8(1), at: region + 40)
    core.store(UInt8(block.isRAM ? 1 : 0), at: region + 41)
    core.store(address, at: region + regionLayout.block)
    core.store(block.size, at: region + regionLayout.size)
    core.store(UInt8(1), at: region + regionLayout.size + 40)
    core.store(UInt8(block.isDevice ? 1 : 0), at: region + regionLayout.size + 41)
    if let plugged = block.plugged { addDevice(of: index, plugged, to: &core) }
  }

  /// A VirtIOMEM object, which the block's region points to.
  private func addDevice(of block: Int, _ plugged: [Bool], to core: inout SyntheticCore) {
    let object = Self.heap + 0xd000
    let bitmap = Self.heap + 0xe000
    core.store(object, at: Self.region(block) + 0x100)
    core.store(UInt32(plugged.count), at: object + 560)
    core.store(bitmap, at: object + 568)
    let start = ranges.first { $0.block == block }?.start ?? 0
    let size = blocks[block].pluggedSize ?? UInt64(plugged.count { $0 }) * pageSize
    for (index, word) in [start, blocks[block].size, size, size, pageSize].enumerated() {
      core.store(word, at: object + 592 + 8 * UInt64(index))
    }
    for (bit, isPlugged) in plugged.enumerated() where isPlugged {
      let byte = bitmap + UInt64(bit / 8)
      let old = core.memory.bytes(at: PhysicalAddress(byte), count: 1)[0]
      core.store(old | 1 << UInt8(bit % 8), at: byte)
    }
  }

  private func addView(to core: inout SyntheticCore) {
    core.write(Array("memory\0".utf8), at: Self.name)
    core.store(Self.name, at: Self.addressSpace + 16)
    core.store(Self.region(0), at: Self.addressSpace + 24)
    core.store(Self.view, at: Self.addressSpace + 32)
    core.store(UInt32(1), at: Self.view + 16)
    core.store(Self.flatRanges, at: Self.view + 24)
    core.store(UInt32(ranges.count), at: Self.viewCount)
    for (index, range) in ranges.enumerated() {
      let address = Self.flatRanges + 64 * UInt64(index)
      core.store(range.block.map(Self.region) ?? Self.ioRegion(index), at: address)
      core.store(range.offset, at: address + 8)
      core.store(range.start, at: address + 16)
      core.store(range.size, at: address + 32)
      core.store(UInt8(range.isReadOnly ? 1 : 0), at: address + 50)
    }
  }

  private func addSlots(to core: inout SyntheticCore) {
    for (number, slot) in (slots ?? []).enumerated() {
      let address = Self.slotArray + 56 * UInt64(number)
      core.store(slot.start, at: address)
      core.store(slot.size, at: address + 8)
      core.store(host(slot.block ?? 0) + slot.offset, at: address + 16)
      core.store(UInt32(number), at: address + 24)
      core.store(UInt32(slot.isReadOnly ? 2 : 0), at: address + 28)
    }
  }
}
