import Memory
import X86

/// The up to 256 strings that the names of kallsyms are made of (`kallsyms_token_table`,
/// `kallsyms_token_index`; scripts/kallsyms.c).
struct SymbolTokens: Sendable {
  /// The tokens one after another, each with a NUL behind it.
  let table: [UInt8]
  /// Where each token begins in ``table``; one more entry for the end of the last.
  let starts: [Int]

  static let count = 256
  /// A name has at most 511 bytes (KSYM_NAME_LEN since 6.1, b8a94bfb3395), a token no more.
  static let maximumLength = 512

  init(
    table tableAddress: VirtualAddress, index indexAddress: VirtualAddress,
    in memory: VirtualMemory
  ) throws(KallsymsError) {
    let index = try memory.table(
      "kallsyms_token_index", indexAddress, count: Self.count * 2)
    var starts: [Int] = []
    for token in 0..<Self.count {
      // A load of two bytes in a table read whole cannot fail.
      let start = Int(index.load(UInt16.self, at: token * 2) ?? 0)
      let previous = starts.last ?? -1
      guard start > previous, start - previous <= Self.maximumLength + 1, token > 0 || start == 0
      else { throw .malformedToken(index: token, indexAddress + UInt64(token * 2)) }
      starts.append(start)
    }
    // The last token ends at its NUL, maybe with the last page at hand.
    var table = try memory.table(
      "kallsyms_token_table", tableAddress, count: starts[Self.count - 1])
    while true {
      let position = tableAddress + UInt64(table.count)
      let rest = Int(pageSize) - position.pageOffset
      let piece = try memory.table("kallsyms_token_table", position, count: rest)
      if let nul = piece.firstIndex(of: 0) {
        table += piece[...nul]
        break
      }
      table += piece
      guard table.count <= starts[Self.count - 1] + Self.maximumLength else { break }
    }
    starts.append(table.count)
    for token in 0..<Self.count {
      let bytes = table[starts[token]..<starts[token + 1]]
      guard bytes.count <= Self.maximumLength + 1,
        bytes.firstIndex(of: 0) == bytes.index(before: bytes.endIndex)
      else { throw .malformedToken(index: token, indexAddress + UInt64(token * 2)) }
    }
    self.table = table
    self.starts = starts
  }

  /// The bytes that a code of a name stands for.
  subscript(code: UInt8) -> ArraySlice<UInt8> {
    table[starts[Int(code)]..<(starts[Int(code) + 1] - 1)]
  }
}

extension VirtualMemory {
  /// Reads a table of kallsyms in pieces, so that no more is allocated than memory has.
  func table(
    _ name: String, _ address: VirtualAddress, count: Int
  ) throws(KallsymsError) -> [UInt8] {
    var bytes: [UInt8] = []
    while bytes.count < count {
      let position = address + UInt64(bytes.count)
      do throws(MemoryError) {
        bytes += try read(position, count: min(count - bytes.count, 64 << 10))
      } catch {
        throw .unreadable(table: name, position, error)
      }
    }
    return bytes
  }
}
