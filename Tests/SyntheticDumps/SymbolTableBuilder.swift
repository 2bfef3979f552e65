import Memory

/// Writes the tables of kallsyms as scripts/kallsyms.c does, in the forms of all its versions.
public struct SymbolTableBuilder: Sendable {
  public struct Symbol: Sendable {
    public var name: String
    public var type: Character
    public var address: UInt64

    public init(name: String, type: Character = "T", address: UInt64) {
      self.name = name
      self.type = type
      self.address = address
    }
  }

  /// How addresses are stored: see `kallsyms_sym_address()` of each version.
  public enum Form: Sendable, CaseIterable {
    case absolute, baseRelative, absolutePerCPU, placeRelative
  }

  /// The order of the tables in memory.
  public enum Order: Sendable, CaseIterable {
    /// Offsets first. Until 6.4, without and (6.2) with kallsyms_seqs_of_names.
    case offsetsFirst, offsetsFirstWithSequences
    /// Names first. Since 6.5.
    case namesFirst
  }

  public var symbols: [Symbol]
  public var form = Form.absolutePerCPU
  public var order = Order.namesFirst
  /// Lengths above 127 take two bytes (since 6.1), else all take one.
  public var twoByteLengths = true
  /// The number of symbols and the markers have eight bytes (until 4.19), else four.
  public var hasWideNumbers = false
  /// VMCOREINFO says where the tables lie (since 6.0).
  public var exportsTables = true
  public var release = "6.1.0-test"
  /// Where the tables begin.
  public var start = VirtualAddress(0xffff_ffff_82a0_1000)
  public var base: UInt64 = 0xffff_ffff_8100_0000
  /// What VMCOREINFO says of `SYMBOL()`s; those that are nil as the symbols have it.
  public var exported: [String: UInt64?] = [
    "_stext": nil, "init_uts_ns": nil, "swapper_pg_dir": nil,
  ]

  public struct Table: Sendable {
    public var address: VirtualAddress
    public var bytes: [UInt8]

    public init(address: VirtualAddress, bytes: [UInt8]) {
      self.address = address
      self.bytes = bytes
    }
  }

  public init(symbols: [Symbol]) { self.symbols = symbols }

  /// The tables by the names of their symbols, and the text that names them.
  public func build() -> (tables: [String: Table], vmcoreinfo: [UInt8]) {
    var compression = TokenCompression(
      symbols.map { Array(String($0.type).utf8) + Array($0.name.utf8) })
    compression.run()

    var names: [UInt8] = []
    var markers: [UInt8] = []
    for (index, codes) in compression.names.enumerated() {
      if index % 256 == 0 { markers += number(names.count) }
      if twoByteLengths, codes.count > 0x7f {
        names += [UInt8(codes.count & 0x7f) | 0x80, UInt8(codes.count >> 7)]
      } else {
        names.append(UInt8(codes.count))
      }
      names += codes
    }
    var tokenTable: [UInt8] = []
    var tokenIndex: [UInt8] = []
    for token in compression.tokens {
      tokenIndex.append(littleEndian: UInt16(tokenTable.count))
      tokenTable += token + [0]
    }

    var blobs: [(name: String, bytes: [UInt8])] = [
      ("kallsyms_num_syms", number(symbols.count)), ("kallsyms_names", names),
      ("kallsyms_markers", markers), ("kallsyms_token_table", tokenTable),
      ("kallsyms_token_index", tokenIndex),
    ]
    // Their contents depend on where they lie: filled in below.
    let entrySize = form == .absolute ? 8 : 4
    var addressBlobs = [
      (
        form == .absolute ? "kallsyms_addresses" : "kallsyms_offsets",
        Array(repeating: UInt8(0), count: symbols.count * entrySize)
      )
    ]
    if form == .baseRelative || form == .absolutePerCPU {
      addressBlobs.append(("kallsyms_relative_base", littleEndian(base)))
    }
    let sequences = ("kallsyms_seqs_of_names", Array(repeating: UInt8(0), count: symbols.count * 3))
    switch order {
    case .offsetsFirst: blobs = addressBlobs + blobs
    case .offsetsFirstWithSequences:
      blobs = addressBlobs + blobs
      blobs.insert(sequences, at: blobs.count - 2)
    case .namesFirst: blobs += addressBlobs + [sequences]
    }

    var tables: [String: Table] = [:]
    var position = start
    for (name, bytes) in blobs {
      let padding = [UInt8](repeating: 0, count: -bytes.count & 7)
      tables[name] = Table(address: position, bytes: bytes + padding)
      position = position + UInt64(bytes.count + padding.count)
    }
    if form == .absolute {
      tables["kallsyms_addresses"]?.bytes = symbols.flatMap { littleEndian($0.address) }
    } else if let address = tables["kallsyms_offsets"]?.address {
      tables["kallsyms_offsets"]?.bytes = symbols.enumerated().flatMap { index, symbol in
        littleEndian(offset(of: symbol, index, table: address))
      }
    }

    var lines = "OSRELEASE=\(release)\n"
    for (name, address) in exported {
      guard let value = address ?? symbols.first(where: { $0.name == name })?.address else {
        continue
      }
      lines += "SYMBOL(\(name))=\(String(value, radix: 16))\n"
    }
    for (name, table) in tables
    where exportsTables && !["kallsyms_markers", "kallsyms_seqs_of_names"].contains(name) {
      lines += "SYMBOL(\(name))=\(String(table.address.rawValue, radix: 16))\n"
    }
    return (tables, Array(lines.utf8))
  }

  private func offset(of symbol: Symbol, _ index: Int, table: VirtualAddress) -> UInt32 {
    let value =
      switch form {
      case .absolute, .baseRelative: symbol.address &- base
      case .absolutePerCPU:
        symbol.address < 1 << 31 ? symbol.address : base &- symbol.address &- 1
      case .placeRelative: symbol.address &- table.rawValue &- UInt64(index * 4)
      }
    return UInt32(truncatingIfNeeded: value)
  }

  /// A number of the table of names.
  private func number(_ value: Int) -> [UInt8] {
    hasWideNumbers ? littleEndian(UInt64(value)) : littleEndian(UInt32(value))
  }

  private func littleEndian<Integer: FixedWidthInteger>(_ value: Integer) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.append(littleEndian: value)
    return bytes
  }
}

/// Table compression: the most frequent pair of codes gets a code of its own, again and again, as
/// often as makes names differ from their codes everywhere.
private struct TokenCompression {
  var names: [[UInt8]]
  var tokens: [[UInt8]] = Array(repeating: [], count: 256)

  init(_ names: [[UInt8]]) {
    self.names = names
    for byte in Set(names.joined()) { tokens[Int(byte)] = [byte] }
  }

  mutating func run() {
    for code in (216...255).reversed() {
      var profit: [UInt16: Int] = [:]
      for name in names.prefix(100) {
        for (left, right) in zip(name, name.dropFirst()) {
          profit[UInt16(left) << 8 | UInt16(right), default: 0] += 1
        }
      }
      guard let best = profit.max(by: { ($0.value, $0.key) < ($1.value, $1.key) }), best.value > 3
      else { return }
      let pair = (UInt8(best.key >> 8), UInt8(best.key & 0xff))
      tokens[code] = tokens[Int(pair.0)] + tokens[Int(pair.1)]
      names = names.map { Self.replace(pair, by: UInt8(code), in: $0) }
    }
  }

  private static func replace(_ pair: (UInt8, UInt8), by code: UInt8, in name: [UInt8]) -> [UInt8] {
    guard name.contains(pair.0) else { return name }
    var result: [UInt8] = []
    var index = 0
    while index < name.count {
      if index + 1 < name.count, name[index] == pair.0, name[index + 1] == pair.1 {
        result.append(code)
        index += 2
      } else {
        result.append(name[index])
        index += 1
      }
    }
    return result
  }
}
