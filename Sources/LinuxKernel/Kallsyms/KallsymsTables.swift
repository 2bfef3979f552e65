import Memory
import X86

/// Where the tables of kallsyms lie.
struct KallsymsTables: Sendable {
  /// `kallsyms_num_syms`.
  let count: VirtualAddress
  let names: VirtualAddress
  let tokenTable: VirtualAddress
  let tokenIndex: VirtualAddress
  /// Where the addresses may be.
  let addresses: [Addresses]

  enum Addresses: Sendable {
    /// `kallsyms_addresses`.
    case absolute(VirtualAddress)
    /// `kallsyms_offsets`, and `kallsyms_relative_base` where there is one.
    case offsets(VirtualAddress, base: VirtualAddress?)
  }
}

extension KallsymsTables {
  /// The tables by the symbols that VMCOREINFO exports since 6.0 (5fd8fea935a1, f09bddbd8661).
  init(exportedBy vmcoreinfo: Vmcoreinfo) throws(KallsymsError) {
    func address(_ table: String) throws(KallsymsError) -> VirtualAddress {
      guard let address = vmcoreinfo.symbol(table) else {
        throw .notFound(table: table, release: vmcoreinfo.release)
      }
      return address
    }
    count = try address("kallsyms_num_syms")
    names = try address("kallsyms_names")
    tokenTable = try address("kallsyms_token_table")
    tokenIndex = try address("kallsyms_token_index")
    if let table = vmcoreinfo.symbol("kallsyms_addresses") {
      addresses = [.absolute(table)]
    } else {
      addresses = [
        .offsets(
          try address("kallsyms_offsets"), base: vmcoreinfo.symbol("kallsyms_relative_base"))
      ]
    }
  }
}

/// Finds the tables of kallsyms in the kernel's image by their structure, for kernels that do not
/// export where they lie.
///
/// scripts/kallsyms.c writes them one after another, each at a multiple of eight. Whatever comes
/// first, two pieces stay together in all versions:
///
/// * `kallsyms_num_syms`, `kallsyms_names`, `kallsyms_markers`;
/// * `kallsyms_token_table`, `kallsyms_token_index`, somewhere behind them.
///
/// The addresses (with `kallsyms_relative_base` behind them) come directly before the first piece
/// until 6.4, and directly behind the second since 6.5 (404bad70fcf7).
struct KallsymsSearch {
  private let image: KernelImage
  private var memory: VirtualMemory { image.memory }

  /// Fewer would not be a kernel's.
  private static let minimumCount = 256

  init(in image: KernelImage) { self.image = image }

  /// What `body` makes of the first tables that it takes.
  func first<Result>(_ body: (KallsymsTables) -> Result?) -> Result? {
    var result: Result?
    forEachTokenIndex { index in
      result = tokenTable(before: index).flatMap { tables(before: $0, index) }.flatMap(body)
      return result == nil
    }
    return result
  }

  // MARK: Tokens

  /// Calls `body` with each place that looks like `kallsyms_token_index`, until it returns false.
  private func forEachTokenIndex(_ body: (VirtualAddress) -> Bool) {
    let size = SymbolTokens.count * 2
    image.forEachPiece(overlap: size - 8) { bytes, address in
      for position in stride(from: 0, through: bytes.count - size, by: 8)
      where Self.isTokenIndex(bytes, at: position) {
        guard body(address + UInt64(position)) else { return false }
      }
      return true
    }
  }

  /// True of 256 ascending numbers of two bytes from 0 on, no two further apart than a token is
  /// long.
  private static func isTokenIndex(_ bytes: [UInt8], at position: Int) -> Bool {
    // The first four at once: elsewhere they hardly ever ascend from zero.
    guard let word: UInt64 = bytes.load(at: position), word & 0xffff == 0, word >> 16 != 0,
      word >> 16 & 0xffff < word >> 32 & 0xffff, word >> 32 & 0xffff < word >> 48
    else { return false }
    var previous: UInt16 = 0
    for token in 1..<SymbolTokens.count {
      guard let start: UInt16 = bytes.load(at: position + token * 2), start > previous,
        Int(start - previous) <= SymbolTokens.maximumLength + 1
      else { return false }
      previous = start
    }
    return true
  }

  /// The table that this index belongs to: it ends where the index begins, up to the alignment, and
  /// has NULs just where the index says.
  private func tokenTable(before index: VirtualAddress) -> VirtualAddress? {
    guard let bytes = try? memory.read(index, count: SymbolTokens.count * 2),
      Self.isTokenIndex(bytes, at: 0)
    else { return nil }
    let starts = (0..<SymbolTokens.count).map { Int(bytes.load(UInt16.self, at: $0 * 2) ?? 0) }
    let last = starts[SymbolTokens.count - 1]
    for size in stride(from: (last + 8) & ~7, through: last + SymbolTokens.maximumLength + 8, by: 8)
    {
      guard let table = try? memory.read(index - UInt64(size), count: size) else { return nil }
      if starts.dropFirst().allSatisfy({ table[$0 - 1] == 0 }),
        zip(starts, starts.dropFirst()).allSatisfy({ !table[$0..<($1 - 1)].contains(0) }),
        let end = table[last...].firstIndex(of: 0), size - end <= 8
      {
        return index - UInt64(size)
      }
    }
    return nil
  }

  // MARK: Names

  /// The tables, if there are names that use these tokens.
  private func tables(
    before tokenTable: VirtualAddress, _ tokenIndex: VirtualAddress
  ) -> KallsymsTables? {
    guard let tokens = try? SymbolTokens(table: tokenTable, index: tokenIndex, in: memory) else {
      return nil
    }
    let lowest = max(image.range.lowerBound, tokenTable - UInt64(SymbolNames.maximumSize))
    var end = tokenTable
    while end > lowest {
      // Page by page, as a longer piece may begin where nothing is mapped.
      let page = end.isPageAligned ? pageSize : UInt64(end.pageOffset)
      let size = Int(min(page, end.distance(from: lowest)))
      let start = end - UInt64(size)
      // With the first names behind the last place.
      let bytes = memory.available(start, count: size + Int(pageSize))
      for position in stride(from: size - 8, through: 0, by: -8) {
        let place = start + UInt64(position)
        guard let count = Self.count(bytes, at: position, tokens),
          isFollowedByNames(place, count: count, tokens, before: tokenTable)
        else { continue }
        return KallsymsTables(
          count: place, names: place + 8, tokenTable: tokenTable, tokenIndex: tokenIndex,
          addresses: Self.addresses(count, before: place, behind: tokenIndex))
      }
      end = start
    }
    return nil
  }

  /// The number at a place that can be `kallsyms_num_syms`, with the first of the names behind it.
  private static func count(
    _ bytes: [UInt8], at position: Int, _ tokens: SymbolTokens
  ) -> Int? {
    // Of four bytes and padding, before 4.20 (80ffbaa5b1bd) of eight.
    guard let word: UInt64 = bytes.load(at: position), let count = Int(exactly: word),
      (minimumCount...Kallsyms.maximumCount).contains(count)
    else { return nil }
    var name = position + 8
    for _ in 0..<16 {
      // The first names are those of the lowest addresses, and short.
      guard name + 1 < bytes.count, (1...0x7f).contains(bytes[name]),
        tokens.isType(bytes[name + 1])
      else { return nil }
      name += 1 + Int(bytes[name])
    }
    return count
  }

  private func isFollowedByNames(
    _ place: VirtualAddress, count: Int, _ tokens: SymbolTokens, before limit: VirtualAddress
  ) -> Bool {
    var source = NameBytes(place + 8, in: memory)
    return [NameLengthEncoding.twoBytes, .oneByte].contains { encoding in
      guard
        let names = try? SymbolNames(&source, count: count, encoding: encoding, tokens: tokens)
      else { return false }
      return place + 8 + UInt64(names.size) <= limit
        && names.agreeWithMarkers(at: place + 8, in: memory)
    }
  }

  // MARK: Addresses

  private static func addresses(
    _ count: Int, before names: VirtualAddress, behind tokenIndex: VirtualAddress
  ) -> [KallsymsTables.Addresses] {
    let offsets = UInt64((count * SymbolAddresses.offsetEntrySize + 7) & ~7)
    let absolute = UInt64(count * SymbolAddresses.absoluteEntrySize)
    let behind = tokenIndex + UInt64(SymbolTokens.count * 2)
    return [
      .offsets(names - 8 - offsets, base: names - 8),
      .offsets(behind, base: behind + offsets),
      .absolute(names - absolute),
      .absolute(behind),
    ]
  }
}

extension SymbolTokens {
  /// True if the token begins with a letter that nm(1) has for a symbol's type.
  fileprivate func isType(_ code: UInt8) -> Bool {
    guard let letter = self[code].first else { return false }
    return "AaBbCcDdGgRrSsTtUuVvWwNn?-".utf8.contains(letter)
  }
}
