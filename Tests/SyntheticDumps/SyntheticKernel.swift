import Memory

/// An object in a synthetic kernel's memory.
public struct SyntheticObject: Hashable, Sendable {
  public let address: VirtualAddress
  /// The name of its structure.
  public let type: String

  public init(_ address: VirtualAddress, _ type: String) {
    self.address = address
    self.type = type
  }
}

/// A Linux kernel made in code: page tables, an image with symbols, BTF and VMCOREINFO, and a heap
/// of typed objects.
///
/// What a test does not set is filled with 0xa5, so that a reader who looks there is found out.
public struct SyntheticKernel: Sendable {
  public struct Options: Sendable {
    public var release = "6.1.0-synthetic"
    public var levels = 4
    /// The C-bit of a kernel whose memory is encrypted.
    public var encryptionMask: UInt64 = 0
    /// How far KASLR moved the image from its link address.
    public var kaslrOffset: UInt64 = 0x0c20_0000
    /// Where the image lies; a multiple of 2 MiB.
    public var imageAddress = PhysicalAddress(0x0120_0000)
    public var imageSize: UInt64 = 0x20_0000
    /// The end of what the direct map maps.
    public var memorySize: UInt64 = 0x4000_0000
    public var directMap = VirtualAddress(0xffff_9a40_0000_0000)
    /// VMCOREINFO says where the tables of kallsyms lie.
    public var exportsSymbolTables = true
    /// The symbols `__start_BTF` and `__stop_BTF` are in kallsyms.
    public var namesTypes = true
    /// Lines at the end of VMCOREINFO.
    public var moreVmcoreinfo: [String] = []

    public init() {}
  }

  public var options: Options
  public var types: KernelTypes
  public var machine: SyntheticMachine
  public let tables: SyntheticPageTables
  /// The objects that were made, for tests that damage them.
  public private(set) var objects: [(object: SyntheticObject, size: Int)] = []
  private var symbols: [SymbolTableBuilder.Symbol] = []
  private var imageEnd: VirtualAddress
  private var heap: Range<VirtualAddress>?
  private var places: [String: (offset: Int, type: CType)] = [:]

  static let imageBase = VirtualAddress(0xffff_ffff_8000_0000)
  /// What memory has that nobody set.
  public static let filler: UInt8 = 0xa5

  public init(_ types: KernelTypes, _ options: Options = Options(), firstFrame: UInt64 = 0x2000) {
    self.options = options
    self.types = types
    machine = SyntheticMachine(firstFrame: firstFrame)
    let image = Self.imageBase + 0x100_0000 + options.kaslrOffset
    imageEnd = image

    // swapper_pg_dir lies in the image: the allocator would put it elsewhere.
    var tables = SyntheticMachine(firstFrame: options.imageAddress.frame.rawValue)
    self.tables = SyntheticPageTables(
      levels: options.levels, encryptionMask: options.encryptionMask, in: &tables)
    machine.memory = tables.memory
    _ = define("_stext", size: 0, at: image)
    _ = define("swapper_pg_dir", size: Int(pageSize))
    for offset in stride(from: 0, to: options.imageSize, by: 0x20_0000) {
      self.tables.map(
        image + offset, to: (options.imageAddress + offset).frame, .page2MiB, in: &machine)
    }
    for address in stride(from: 0, to: options.memorySize, by: 0x20_0000) {
      self.tables.map(
        options.directMap + address, to: PhysicalAddress(address).frame, .page2MiB, in: &machine)
    }
    let names = define("init_uts_ns", size: 512)
    write([UInt8](repeating: 0, count: 66) + Array(options.release.utf8) + [0], at: names)
  }

  // MARK: Memory

  /// NUMBER(phys_base).
  private var physicalBase: Int64 {
    Int64(bitPattern: options.imageAddress.rawValue &- 0x100_0000 &- options.kaslrOffset)
  }

  public func physical(_ address: VirtualAddress) -> PhysicalAddress? {
    let direct = address.distance(from: options.directMap)
    if direct < options.memorySize { return PhysicalAddress(direct) }
    let offset = address.distance(from: Self.imageBase + 0x100_0000 + options.kaslrOffset)
    return offset < options.imageSize ? options.imageAddress + offset : nil
  }

  public func direct(_ address: PhysicalAddress) -> VirtualAddress {
    options.directMap + address.rawValue
  }

  /// Writes at any address of the kernel; outside of its image and the direct map pages are made,
  /// filled with `byte`.
  public mutating func write(
    _ bytes: [UInt8], at address: VirtualAddress, filledWith byte: UInt8 = filler
  ) {
    if let physical = physical(address) {
      machine.memory.write(bytes, at: physical)
    } else {
      tables.write(bytes, at: address, filledWith: byte, in: &machine)
    }
  }

  public mutating func store<Integer: FixedWidthInteger>(
    _ value: Integer, at address: VirtualAddress
  ) {
    var bytes: [UInt8] = []
    bytes.append(littleEndian: value)
    write(bytes, at: address)
  }

  /// Room in the kernel's heap.
  public mutating func allocate(_ size: Int, filledWith byte: UInt8 = filler) -> VirtualAddress {
    let rounded = (UInt64(size) + 63) & ~63
    if let heap, heap.upperBound.distance(from: heap.lowerBound) >= rounded {
      self.heap = heap.lowerBound + rounded..<heap.upperBound
      write([UInt8](repeating: byte, count: size), at: heap.lowerBound)
      return heap.lowerBound
    }
    let pages = max(4, (size + 4095) / 4096)
    let start = direct(machine.allocate(pages, filledWith: byte).address)
    heap = start + rounded..<start + UInt64(pages) * pageSize
    return start
  }

  /// Room for a string, and the string in it.
  public mutating func string(_ text: String) -> VirtualAddress {
    let bytes = Array(text.utf8) + [0]
    let address = allocate(bytes.count)
    write(bytes, at: address)
    return address
  }

  // MARK: Symbols

  /// Room in the kernel's image under a name.
  public mutating func define(
    _ symbol: String, size: Int, at place: VirtualAddress? = nil, alignedTo alignment: UInt64 = 64
  ) -> VirtualAddress {
    let next = (imageEnd.rawValue + alignment - 1) / alignment * alignment
    let address = place ?? VirtualAddress(next)
    symbols.append(.init(name: symbol, type: size == 0 ? "T" : "D", address: address.rawValue))
    imageEnd = VirtualAddress((address.rawValue + UInt64(size) + 63) & ~63)
    write([UInt8](repeating: 0, count: size), at: address)
    return address
  }

  /// An object of the kernel's image.
  public mutating func define(_ symbol: String, type: String) -> SyntheticObject {
    let size = types.size(of: .named(type))
    let object = SyntheticObject(define(symbol, size: size), type)
    objects.append((object, size))
    return object
  }

  public func address(of symbol: String) -> VirtualAddress? {
    symbols.first { $0.name == symbol }.map { VirtualAddress($0.address) }
  }

  // MARK: Objects

  /// A new object in the heap.
  public mutating func make(_ type: String) -> SyntheticObject {
    let size = types.size(of: .named(type))
    let object = SyntheticObject(allocate(size), type)
    objects.append((object, size))
    return object
  }

  public func has(_ object: SyntheticObject, _ member: String) -> Bool {
    types.has(object.type, member)
  }

  private mutating func place(
    of path: String, in object: SyntheticObject
  ) -> (address: VirtualAddress, type: CType) {
    let key = "\(object.type) \(path)"
    let place = places[key] ?? types.place(of: path, in: object.type)
    places[key] = place
    return (object.address + UInt64(place.offset), place.type)
  }

  /// Where a member lies.
  public mutating func address(_ object: SyntheticObject, _ path: String) -> VirtualAddress {
    place(of: path, in: object).address
  }

  /// A member that is itself a structure.
  public mutating func member(_ object: SyntheticObject, _ path: String) -> SyntheticObject {
    guard case (let address, .named(let type)) = place(of: path, in: object) else {
      preconditionFailure("\(object.type).\(path) is no structure")
    }
    return SyntheticObject(address, type)
  }

  /// Stores as many bytes as the member has.
  public mutating func set(_ object: SyntheticObject, _ path: String, _ value: UInt64) {
    let (address, type) = place(of: path, in: object)
    let size = types.size(of: type)
    precondition((1...8).contains(size), "\(object.type).\(path) is no scalar")
    write((0..<size).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) }, at: address)
  }

  public mutating func set(_ object: SyntheticObject, _ path: String, _ target: VirtualAddress) {
    set(object, path, target.rawValue)
  }

  /// Stores in a member that some kernels do not have.
  public mutating func setIfPresent(_ object: SyntheticObject, _ path: String, _ value: UInt64) {
    guard let first = path.split(whereSeparator: { ".[".contains($0) }).first,
      has(object, String(first))
    else { return }
    set(object, path, value)
  }

  public mutating func clear(_ object: SyntheticObject, _ path: String) {
    let (address, type) = place(of: path, in: object)
    write([UInt8](repeating: 0, count: types.size(of: type)), at: address)
  }

  public mutating func set(_ object: SyntheticObject, _ path: String, text: String) {
    let (address, type) = place(of: path, in: object)
    let bytes = Array(text.utf8).prefix(types.size(of: type) - 1) + [0]
    write(Array(bytes), at: address)
  }

  public mutating func load(_ object: SyntheticObject, _ path: String) -> UInt64 {
    let address = address(object, path)
    let physical =
      physical(address)
      ?? tables.frame(of: address, filledWith: Self.filler, in: &machine).address
      + UInt64(address.pageOffset)
    return machine.memory.load(UInt64.self, at: physical)
  }

  // MARK: Lists

  /// Makes a `list_head` empty.
  public mutating func initializeList(_ head: SyntheticObject) {
    set(head, "next", head.address)
    set(head, "prev", head.address)
  }

  /// Adds a `list_head` at the end of a list.
  public mutating func append(_ node: SyntheticObject, to head: SyntheticObject) {
    let last = SyntheticObject(VirtualAddress(load(head, "prev")), "list_head")
    set(node, "next", head.address)
    set(node, "prev", last.address)
    set(last, "next", node.address)
    set(head, "prev", node.address)
  }

  /// Adds an `hlist_node` at the start of an `hlist_head`'s list.
  public mutating func prepend(_ node: SyntheticObject, to head: SyntheticObject) {
    set(node, "next", load(head, "first"))
    set(head, "first", node.address)
  }

  // MARK: XArrays

  /// The raw entry of a tree with these raw entries (lib/xarray.c): a single one at index 0 is the
  /// head itself.
  public mutating func xarray(_ entries: [UInt64: UInt64]) -> UInt64 {
    guard let last = entries.keys.max() else { return 0 }
    if last == 0 { return entries[0] ?? 0 }
    var shift: UInt64 = 0
    while last >> shift > 63 { shift += 6 }
    return xarrayNode(entries, shift: shift)
  }

  private mutating func xarrayNode(_ entries: [UInt64: UInt64], shift: UInt64) -> UInt64 {
    let node = make("xa_node")
    set(node, "shift", shift)
    for slot in 0..<64 as Range<UInt64> {
      let entry: UInt64
      if shift == 0 {
        entry = entries.first { $0.key & 63 == slot }?.value ?? 0
      } else {
        let below = entries.filter { $0.key >> shift & 63 == slot }
        entry = below.isEmpty ? 0 : xarrayNode(below, shift: shift - 6)
      }
      set(node, "slots[\(slot)]", entry)
    }
    return node.address.rawValue | 2
  }

  // MARK: Completion

  /// Writes BTF of the kernel into its image.
  mutating func writeTypes(_ bytes: [UInt8]) {
    let names =
      options.namesTypes ? ["__start_BTF", "__stop_BTF"] : ["__start_rodata", "__end_rodata"]
    let start = define(names[0], size: bytes.count)
    write(bytes, at: start)
    _ = define(names[1], size: 8, at: start + UInt64(bytes.count))
  }

  /// Writes the kernel's symbol table, and returns the text of VMCOREINFO.
  public mutating func finish() -> String {
    if !options.exportsSymbolTables {
      // As many as make a kernel's table.
      symbols += (0..<400).map { index in
        .init(
          name: "function_\(index)", type: "t",
          address: (Self.imageBase + 0x100_0000 + options.kaslrOffset).rawValue + 8 * UInt64(index))
      }
    }
    var builder = SymbolTableBuilder(symbols: symbols.sorted { $0.address < $1.address })
    builder.release = options.release
    builder.start = VirtualAddress((imageEnd.rawValue + 4095) & ~4095)
    builder.base = Self.imageBase.rawValue + options.kaslrOffset
    builder.exportsTables = options.exportsSymbolTables
    if !options.exportsSymbolTables { builder.order = .offsetsFirst }
    let (tables, text) = builder.build()
    for table in tables.values {
      let end = table.address.distance(from: Self.imageBase) + UInt64(table.bytes.count)
      precondition(end < 0x100_0000 + options.kaslrOffset + options.imageSize, "image too small")
      write(table.bytes, at: table.address)
      // Readers ask for whole pages.
      imageEnd = max(imageEnd, table.address + UInt64(table.bytes.count))
    }
    write([UInt8](repeating: 0, count: Int(pageSize)), at: imageEnd)
    var lines = [
      // A variable, behind all read-only data.
      "SYMBOL(node_online_map)=\(String(imageEnd.rawValue, radix: 16))",
      "PAGESIZE=4096", "NUMBER(phys_base)=\(physicalBase)",
      "NUMBER(pgtable_l5_enabled)=\(options.levels == 5 ? 1 : 0)",
      "NUMBER(sme_mask)=\(options.encryptionMask)",
      "KERNELOFFSET=\(String(options.kaslrOffset, radix: 16))",
    ]
    lines += options.moreVmcoreinfo
    return String(decoding: text, as: UTF8.self) + lines.map { $0 + "\n" }.joined()
  }
}
