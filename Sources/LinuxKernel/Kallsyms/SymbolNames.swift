import Memory
import X86

/// How `kallsyms_names` tells the number of a name's codes.
enum NameLengthEncoding: Hashable, Sendable {
  /// One byte. Before 6.1.
  case oneByte
  /// ULEB128 of up to two bytes. Since 6.1 (73bbb94466fd). The same as ``oneByte`` while no name
  /// has more than 127 codes.
  case twoBytes
}

/// The bytes of `kallsyms_names`, read as far as somebody asked: nothing tells their number.
struct NameBytes {
  let address: VirtualAddress
  private let memory: VirtualMemory
  private(set) var bytes: [UInt8] = []

  init(_ address: VirtualAddress, in memory: VirtualMemory) {
    self.address = address
    self.memory = memory
  }

  /// Reads until there are `count` bytes: in large pieces, in pages where memory has gaps.
  mutating func extend(to count: Int) throws(KallsymsError) {
    while bytes.count < count {
      let position = address + UInt64(bytes.count)
      let rest = Int(pageSize) - position.pageOffset
      do throws(MemoryError) {
        bytes += try memory.read(position, count: rest + 15 * Int(pageSize))
      } catch {
        bytes += try memory.table("kallsyms_names", position, count: rest)
      }
    }
  }
}

/// The compressed names of all symbols, in the order of their addresses (`kallsyms_names`).
///
/// A name is the number of its codes and the codes, each of which stands for a token. The first
/// byte that they expand to is the symbol's type as nm(1) prints it.
struct SymbolNames: Sendable {
  let tokens: SymbolTokens
  let count: Int
  /// True if some length has bit 7 set, so that the two encodings read it differently.
  let isAmbiguous: Bool
  private let encoding: NameLengthEncoding
  private let bytes: [UInt8]
  /// Where every 256th name begins: what the kernel keeps in `kallsyms_markers`.
  let marks: [UInt32]

  /// Names of a distribution's kernel take 2 to 3 MB, of one with everything built in below 20.
  static let maximumSize = 64 << 20
  /// Longer than KSYM_NAME_LEN ever was. What is longer is cut.
  private static let maximumNameLength = 2048

  /// Walks over `count` names.
  init(
    _ source: inout NameBytes, count: Int, encoding: NameLengthEncoding, tokens: SymbolTokens
  ) throws(KallsymsError) {
    var marks: [UInt32] = []
    var isAmbiguous = false
    var position = 0
    for symbol in 0..<count {
      let start = position
      if symbol & 255 == 0 { marks.append(UInt32(truncatingIfNeeded: start)) }
      // A second byte is always there: of the length, or the first code.
      try source.extend(to: start + 2)
      var length = Int(source.bytes[start])
      var isValid = length > 0
      position += 1
      if length & 0x80 != 0 {
        isAmbiguous = true
        if encoding == .twoBytes {
          // The second byte continues no further, and is not there if one byte is enough.
          let high = Int(source.bytes[start + 1])
          isValid = (1...0x7f).contains(high)
          length = length & 0x7f | high << 7
          position += 1
        }
      }
      position += length
      guard isValid, position <= Self.maximumSize else {
        throw .malformedName(symbol: symbol, source.address + UInt64(start))
      }
      try source.extend(to: position)
    }
    self.tokens = tokens
    self.count = count
    self.isAmbiguous = isAmbiguous
    self.encoding = encoding
    self.marks = marks
    bytes = Array(source.bytes[..<position])
  }

  /// Size in bytes of all names.
  var size: Int { bytes.count }

  /// True if `kallsyms_markers` is where it should be if these are the names. It follows them at the
  /// next multiple of eight, and says where every 256th name begins (scripts/kallsyms.c; 32 bits each
  /// since 4.20, 80ffbaa5b1bd, before 64).
  func agreeWithMarkers(at address: VirtualAddress, in memory: VirtualMemory) -> Bool {
    let end = address.rawValue &+ UInt64(size)
    let markers = VirtualAddress((end &+ 7) & ~7)
    return [4, 8].contains { width in
      guard
        let bytes = try? memory.table("kallsyms_markers", markers, count: marks.count * width)
      else { return false }
      return marks.enumerated().allSatisfy { index, mark in
        bytes.load(UInt32.self, at: index * width) == mark
          && (width == 4 || bytes.load(UInt32.self, at: index * width + 4) == 0)
      }
    }
  }

  /// Where the codes of the name at `position` are. Positions were checked by init.
  private func codes(at position: Int) -> Range<Int> {
    let length = Int(bytes[position])
    guard length & 0x80 != 0, encoding == .twoBytes else {
      return (position + 1)..<(position + 1 + length)
    }
    return (position + 2)..<(position + 2 + (length & 0x7f | Int(bytes[position + 1]) << 7))
  }

  /// The name of a symbol, without its type.
  func name(of symbol: Int) -> String {
    guard symbol >= 0, symbol < count else { return "" }
    var position = Int(marks[symbol >> 8])
    for _ in 0..<(symbol & 255) { position = codes(at: position).upperBound }
    return String(decoding: expand(codes(at: position)).dropFirst(), as: UTF8.self)
  }

  private func expand(_ codes: Range<Int>) -> [UInt8] {
    var name: [UInt8] = []
    for code in bytes[codes] where name.count <= Self.maximumNameLength { name += tokens[code] }
    return name
  }

  /// Calls `body` for each symbol that has one of the wanted names, in the order of addresses,
  /// with the index of the name in `wanted`, the number of the symbol and its type.
  ///
  /// Names are told apart by a hash that is computed from hashes of the tokens, so that only those
  /// that match are expanded.
  func forEachMatch(of wanted: [[UInt8]], _ body: (Int, Int, UInt8) -> Void) {
    let hashes = TokenHashes(tokens)
    let table = NameTable(wanted)
    var position = 0
    for symbol in 0..<count {
      let codes = codes(at: position)
      position = codes.upperBound
      let hash = hashes.hash(bytes, codes)
      if let name = table.index(of: hash, name: expand(codes).dropFirst()) {
        body(name, symbol, tokens[bytes[codes.lowerBound]].first ?? 0)
      }
    }
  }
}

/// Finds a name by its hash.
private struct NameTable {
  private let names: [[UInt8]]
  private var indices: [UInt64: [Int]] = [:]

  init(_ names: [[UInt8]]) {
    self.names = names
    for (index, name) in names.enumerated() {
      indices[TokenHashes.hash(name), default: []].append(index)
    }
  }

  /// The index of a name with this hash; `name` is asked for only if there is one.
  func index(of hash: UInt64, name: @autoclosure () -> ArraySlice<UInt8>) -> Int? {
    guard let indices = indices[hash] else { return nil }
    let name = name()
    return indices.first { names[$0].elementsEqual(name) }
  }
}

/// A polynomial hash over bytes. That of a name is made of those of its tokens.
private struct TokenHashes {
  /// Of each token: its hash, and the multiplier to the power of its length.
  private var tokens: [(hash: UInt64, power: UInt64)] = []
  /// Of each token without its first byte, which at the start of a name is the type.
  private var tails: [UInt64] = []

  private static let multiplier: UInt64 = 0x9e37_79b9_7f4a_7c15

  init(_ tokens: SymbolTokens) {
    for code in 0..<SymbolTokens.count {
      let token = tokens[UInt8(truncatingIfNeeded: code)]
      let power = token.reduce(UInt64(1)) { power, _ in power &* Self.multiplier }
      self.tokens.append((Self.hash(token), power))
      tails.append(Self.hash(token.dropFirst()))
    }
  }

  static func hash(_ bytes: some Sequence<UInt8>) -> UInt64 {
    bytes.reduce(0) { hash, byte in hash &* multiplier &+ UInt64(byte) &+ 1 }
  }

  func hash(_ bytes: [UInt8], _ codes: Range<Int>) -> UInt64 {
    var hash = tails[Int(bytes[codes.lowerBound])]
    for position in (codes.lowerBound + 1)..<codes.upperBound {
      let token = tokens[Int(bytes[position])]
      hash = hash &* token.power &+ token.hash
    }
    return hash
  }
}
