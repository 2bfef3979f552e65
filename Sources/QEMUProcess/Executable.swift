import DumpFiles
import Memory

/// The program that a process runs, as it lies in the process's memory.
public struct Executable: Sendable {
  /// The file's path, as the process had it mapped.
  public let path: String
  /// What is to be added to the file's addresses.
  public let base: VirtualAddress
  /// From its first mapping to the end of what lies right behind its last: .data, .bss.
  let image: Range<VirtualAddress>
  /// The build ID of the linker's note, if the core has the page that holds it.
  public let buildID: [UInt8]?

  /// The program that the process was started as.
  init?(startedIn image: ProcessImage) {
    guard let entry = image.core.auxiliary(ProcessCore.Auxiliary.entry) else { return nil }
    self.init(holding: VirtualAddress(entry), in: image)
  }

  /// The program or library in whose code or data an address lies.
  init?(holding address: VirtualAddress, in image: ProcessImage) {
    let core = image.core
    guard let file = core.files.filter({ $0.start <= address }).max(by: { $0.start < $1.start })
    else { return nil }
    path = file.path
    let mappings = core.files.filter { $0.path == file.path }
    guard let first = mappings.min(by: { $0.start < $1.start }), first.fileOffset == 0,
      var end = mappings.map(\.end).max(), first.start < end
    else { return nil }
    let ends = Dictionary(
      core.segments.map { ($0.start, $0.end) }, uniquingKeysWith: { first, _ in first })
    // .bss goes on where the file ends; so may the heap.
    while let next = ends[end], next > end, next.distance(from: first.start) <= Self.sizeLimit {
      end = next
    }
    self.image = first.start..<end
    guard self.image.contains(address) else { return nil }
    let headers = ProgramHeaders(at: first.start, in: image)
    base = headers?.base ?? first.start
    buildID = headers?.buildID(in: image)
  }

  /// No program with its .bss is larger.
  private static let sizeLimit: UInt64 = 1 << 30

  /// The path without what the kernel says of a file that is gone, as after an upgrade.
  public var filePath: String {
    let suffix = " (deleted)"
    return path.hasSuffix(suffix) ? String(path.dropLast(suffix.count)) : path
  }

  /// The last component of the path.
  public var name: String {
    filePath.split(separator: "/").last.map(String.init) ?? filePath
  }
}

/// The headers of a program or library, in its first page.
private struct ProgramHeaders {
  private struct Header {
    let type: UInt32
    let address: UInt64
    let size: UInt64
  }

  private let headers: [Header]
  /// What is to be added to the addresses in the headers.
  let base: VirtualAddress

  private static let load: UInt32 = 1
  private static let dynamic: UInt32 = 2
  private static let note: UInt32 = 4
  private static let size = 56

  init?(at start: VirtualAddress, in image: ProcessImage) {
    guard let header = try? image.read(start, count: 64),
      header.starts(with: [0x7f, 0x45, 0x4c, 0x46]), let offset: UInt64 = header.load(at: 32),
      let count: UInt16 = header.load(at: 56), count <= 256,
      let bytes = try? image.read(start + offset, count: Int(count) * Self.size)
    else { return nil }
    headers = (0..<Int(count)).compactMap { index in
      guard let type: UInt32 = bytes.load(at: index * Self.size),
        let address: UInt64 = bytes.load(at: index * Self.size + 16),
        let size: UInt64 = bytes.load(at: index * Self.size + 40)
      else { return nil }
      return Header(type: type, address: address, size: size)
    }
    guard let first = headers.first(where: { $0.type == Self.load }) else { return nil }
    base = start - (first.address & ~(pageSize - 1))
  }

  /// The description of the note `GNU` of type NT_GNU_BUILD_ID (3).
  func buildID(in image: ProcessImage) -> [UInt8]? {
    for header in headers where header.type == Self.note && header.size <= 1 << 16 {
      guard let bytes = try? image.read(base + header.address, count: Int(header.size)) else {
        continue
      }
      if let id = bytes.buildIDOfNotes { return id }
    }
    return nil
  }

  var dynamicSection: VirtualAddress? {
    headers.first { $0.type == Self.dynamic }.map { base + $0.address }
  }
}

extension [UInt8] {
  /// The build ID in an area of ELF notes.
  fileprivate var buildIDOfNotes: [UInt8]? {
    var position = 0
    while let nameSize: UInt32 = load(at: position),
      let size: UInt32 = load(at: position + 4), let type: UInt32 = load(at: position + 8)
    {
      guard nameSize <= 256, size <= 1 << 16 else { return nil }
      let start = position + 12 + (Int(nameSize) + 3) & ~3
      let end = start + Int(size)
      guard end <= count else { return nil }
      if type == 3, nameSize == 4, self[(position + 12)..<(position + 16)] == [0x47, 0x4e, 0x55, 0]
      {
        return Array(self[start..<end])
      }
      position = (end + 3) & ~3
    }
    return nil
  }
}

extension ProgramFile {
  /// The build ID of the file's first PT_NOTE that has one.
  var buildID: [UInt8]? {
    let header = bytes(at: 0, count: 64)
    guard let table: UInt64 = header.load(at: 32), let count: UInt16 = header.load(at: 56),
      count <= 256
    else { return nil }
    let headers = bytes(at: table, count: Int(count) * 56)
    for index in 0..<Int(count) {
      guard headers.load(UInt32.self, at: index * 56) == 4,
        let offset: UInt64 = headers.load(at: index * 56 + 8),
        let size: UInt64 = headers.load(at: index * 56 + 32), size <= 1 << 16
      else { continue }
      if let id = bytes(at: offset, count: Int(size)).buildIDOfNotes { return id }
    }
    return nil
  }
}

/// The symbols that a program exports to its modules, through the dynamic section that the loader
/// used. Source: System V ABI, "Dynamic Linking"; DT_GNU_HASH as glibc's elf/dl-lookup.c has it.
public struct ExportedSymbols: Sendable {
  private let image: ProcessImage
  private let base: VirtualAddress
  private let symbols: VirtualAddress
  private let strings: VirtualAddress
  private let buckets: VirtualAddress
  private let bucketCount: UInt32
  private let chains: VirtualAddress
  private let firstIndex: UInt32

  private enum Tag {
    static let strings: UInt64 = 5
    static let symbols: UInt64 = 6
    static let hash: UInt64 = 0x6fff_fef5
  }

  /// A chain of more symbols is damage.
  private static let chainLimit: UInt32 = 1 << 12

  /// Nil if there is no dynamic section with such symbols.
  init?(of executable: Executable, in image: ProcessImage) {
    guard let headers = ProgramHeaders(at: executable.image.lowerBound, in: image),
      let dynamic = headers.dynamicSection,
      let entries = try? image.read(dynamic, count: 64 * 16)
    else { return nil }
    base = headers.base
    var values: [UInt64: UInt64] = [:]
    for offset in stride(from: 0, to: entries.count, by: 16) {
      guard let tag: UInt64 = entries.load(at: offset),
        let value: UInt64 = entries.load(at: offset + 8), tag != 0
      else { break }
      values[tag] = value
    }
    let base = base
    // The loader adds the base to what it finds in a dynamic section that it may write to.
    func address(_ tag: UInt64) -> VirtualAddress? {
      values[tag].map {
        $0 < base.rawValue ? base + $0 : VirtualAddress($0)
      }
    }
    guard let symbols = address(Tag.symbols), let strings = address(Tag.strings),
      let hash = address(Tag.hash), let header = try? image.read(hash, count: 16),
      let count: UInt32 = header.load(at: 0), let first: UInt32 = header.load(at: 4),
      let filterWords: UInt32 = header.load(at: 8), count > 0
    else { return nil }
    self.image = image
    self.symbols = symbols
    self.strings = strings
    bucketCount = count
    firstIndex = first
    buckets = hash + 16 + 8 * UInt64(filterWords)
    chains = buckets + 4 * UInt64(count)
  }

  /// Where an exported object or function is.
  public func address(of name: String) -> VirtualAddress? {
    var hash: UInt32 = 5381
    for byte in name.utf8 { hash = hash &* 33 &+ UInt32(byte) }
    let bucket = buckets + 4 * UInt64(hash % bucketCount)
    guard var index: UInt32 = try? image.load(bucket), index >= firstIndex else { return nil }
    for _ in 0..<Self.chainLimit {
      guard let link: UInt32 = try? image.load(chains + 4 * UInt64(index - firstIndex)) else {
        return nil
      }
      if link | 1 == hash | 1, let address = address(ofSymbol: index, if: name) { return address }
      if link & 1 != 0 || index == .max { return nil }
      index += 1
    }
    return nil
  }

  /// An Elf64_Sym: st_name, st_shndx at 6, st_value at 8.
  private func address(ofSymbol index: UInt32, if name: String) -> VirtualAddress? {
    guard let symbol = try? image.read(symbols + 24 * UInt64(index), count: 24),
      let nameOffset: UInt32 = symbol.load(at: 0), let section: UInt16 = symbol.load(at: 6),
      let value: UInt64 = symbol.load(at: 8), section != 0,
      image.string(strings + UInt64(nameOffset), limit: name.utf8.count + 1) == name
    else { return nil }
    return base + value
  }
}
