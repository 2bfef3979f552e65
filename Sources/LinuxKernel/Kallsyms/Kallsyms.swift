import Memory
import X86

/// The kernel's own symbol table, decoded out of its memory (kernel/kallsyms.c,
/// scripts/kallsyms.c). Symbols of modules are not in it.
///
/// Nothing in memory says which of its encodings a kernel uses. They are told apart by evidence:
/// names must agree with the kernel's own index of them, and symbols must lie where VMCOREINFO
/// says.
public struct Kallsyms: Sendable {
  private let names: SymbolNames
  private let addresses: SymbolAddresses

  /// A kernel has 100,000 to 200,000 symbols, one with everything built in less than a million.
  static let maximumCount = 8_000_000

  /// Finds the tables by the symbols that VMCOREINFO exports since 6.0, else by their structure in
  /// the kernel's image, and holds copies of them: some 20 bytes per symbol.
  public init(_ vmcoreinfo: Vmcoreinfo, in memory: VirtualMemory) throws(KallsymsError) {
    let exported: KallsymsTables
    do throws(KallsymsError) {
      exported = try KallsymsTables(exportedBy: vmcoreinfo)
    } catch {
      var failure = error
      let found = KernelImage(vmcoreinfo, in: memory).flatMap { image in
        KallsymsSearch(in: image).first { tables in
          do throws(KallsymsError) {
            return try Kallsyms(tables, vmcoreinfo, in: memory)
          } catch {
            failure = error
            return nil
          }
        }
      }
      guard let found else { throw failure }
      self = found
      return
    }
    self = try Kallsyms(exported, vmcoreinfo, in: memory)
  }

  private init(
    _ tables: KallsymsTables, _ vmcoreinfo: Vmcoreinfo, in memory: VirtualMemory
  ) throws(KallsymsError) {
    let rawCount: UInt32 =
      try memory.table("kallsyms_num_syms", tables.count, count: 4).load(at: 0) ?? 0
    guard let count = Int(exactly: rawCount), (1...Self.maximumCount).contains(count) else {
      throw .implausibleCount(rawCount, tables.count)
    }
    let tokens = try SymbolTokens(
      table: tables.tokenTable, index: tables.tokenIndex, in: memory)
    let readings = try Self.readNames(at: tables.names, count: count, tokens: tokens, in: memory)
    let forms = try Self.readAddresses(tables.addresses, count: count, in: memory)

    var best: (names: SymbolNames, addresses: SymbolAddresses, agreement: Agreement)?
    for names in readings {
      for (addresses, agreement) in Self.compare(names, forms, with: vmcoreinfo) {
        if agreement.agreed > best?.agreement.agreed ?? -1 {
          best = (names, addresses, agreement)
        }
      }
    }
    // Some lines differ rightly: SYMBOL(mem_section) is not where the symbol mem_section lies.
    guard let best, best.agreement.agreed * 2 > best.agreement.compared else {
      throw .disagreesWithVmcoreinfo(
        agreed: best?.agreement.agreed ?? 0, compared: best?.agreement.compared ?? 0,
        release: vmcoreinfo.release)
    }
    names = best.names
    addresses = best.addresses
  }

  /// Number of symbols.
  public var count: Int { names.count }

  /// The addresses of those of the names that the kernel has. Of several symbols with one name, a
  /// global one goes before local ones, then the lowest address counts. A per-CPU symbol of a
  /// kernel before 6.15 has its offset in each CPU's area as its address.
  ///
  /// One pass over all names, whatever the number of names asked for.
  public func addresses(of names: Set<String>) -> [String: VirtualAddress] {
    let wanted = Array(names)
    var found: [String: (symbol: Int, isGlobal: Bool)] = [:]
    self.names.forEachMatch(of: wanted.map { Array($0.utf8) }) { index, symbol, type in
      let isGlobal = (UInt8(ascii: "A")...UInt8(ascii: "Z")).contains(type)
      if let earlier = found[wanted[index]], earlier.isGlobal || !isGlobal { return }
      found[wanted[index]] = (symbol, isGlobal)
    }
    return found.mapValues { VirtualAddress(addresses[$0.symbol]) }
  }

  /// The address of one symbol. See ``addresses(of:)``, which finds many at the same cost.
  public func address(of name: String) -> VirtualAddress? {
    addresses(of: [name])[name]
  }

  /// The symbol that covers `address`: its name, the distance from its start, and its size up to
  /// the next symbol. Nil below the first and beyond the last symbol, where modules and the rest of
  /// the address space lie; of the last one only its start is known. Where several symbols share an
  /// address it is the first in the kernel's order, as in the kernel's own backtraces.
  public func symbol(
    at address: VirtualAddress
  ) -> (name: String, offset: UInt64, size: UInt64?)? {
    let next = addresses.firstAbove(address.rawValue)
    guard next > 0 else { return nil }
    let start = addresses[next - 1]
    let symbol = start == 0 ? 0 : min(addresses.firstAbove(start - 1), next - 1)
    let offset = address.rawValue &- start
    guard !addresses.isPerCPUOffset(symbol), next < count || offset == 0 else { return nil }
    return (names.name(of: symbol), offset, next < count ? addresses[next] &- start : nil)
  }
}

// MARK: - Telling the encodings apart

extension Kallsyms {
  /// How many of the symbols that both know lie where VMCOREINFO says.
  private struct Agreement {
    var agreed = 0
    var compared = 0
  }

  /// The names in every encoding that can be: one, unless a length has bit 7 set and nothing else
  /// decides.
  private static func readNames(
    at address: VirtualAddress, count: Int, tokens: SymbolTokens, in memory: VirtualMemory
  ) throws(KallsymsError) -> [SymbolNames] {
    var source = NameBytes(address, in: memory)
    var readings: [SymbolNames] = []
    var failure: KallsymsError?
    for encoding in [NameLengthEncoding.twoBytes, .oneByte] {
      do throws(KallsymsError) {
        let names = try SymbolNames(&source, count: count, encoding: encoding, tokens: tokens)
        readings.append(names)
        if !names.isAmbiguous { break }
      } catch {
        failure = failure ?? error
      }
    }
    if readings.isEmpty, let failure { throw failure }
    if readings.count > 1,
      let proven = readings.first(where: { $0.agreeWithMarkers(at: address, in: memory) })
    {
      return [proven]
    }
    return readings
  }

  /// The addresses in every form that can be. A table that is not at hand is an error unless there
  /// is another.
  private static func readAddresses(
    _ tables: [KallsymsTables.Addresses], count: Int, in memory: VirtualMemory
  ) throws(KallsymsError) -> [SymbolAddresses] {
    var forms: [SymbolAddresses] = []
    var failure: KallsymsError?
    for table in tables {
      do throws(KallsymsError) {
        forms += try readAddresses(table, count: count, in: memory)
      } catch {
        failure = failure ?? error
      }
    }
    if forms.isEmpty, let failure { throw failure }
    return forms
  }

  private static func readAddresses(
    _ addresses: KallsymsTables.Addresses, count: Int, in memory: VirtualMemory
  ) throws(KallsymsError) -> [SymbolAddresses] {
    switch addresses {
    case .absolute(let table):
      let bytes = try memory.table(
        "kallsyms_addresses", table, count: count * SymbolAddresses.absoluteEntrySize)
      return [SymbolAddresses(.absolute, count: count, bytes: bytes)]
    case .offsets(let table, let baseAddress):
      var forms = [SymbolAddressForm.placeRelative(table: table)]
      if let baseAddress {
        let bytes = try memory.table("kallsyms_relative_base", baseAddress, count: 8)
        let base: UInt64 = bytes.load(at: 0) ?? 0
        forms += [.absolutePerCPU(base: base), .baseRelative(base: base)]
      }
      let bytes = try memory.table(
        "kallsyms_offsets", table, count: count * SymbolAddresses.offsetEntrySize)
      return forms.map { SymbolAddresses($0, count: count, bytes: bytes) }
    }
  }

  private static let maximumCompared = 256

  private static func compare(
    _ names: SymbolNames, _ forms: [SymbolAddresses], with vmcoreinfo: Vmcoreinfo
  ) -> [(SymbolAddresses, Agreement)] {
    // There are some twenty. Of a forged text with thousands a part will do.
    let wanted = Array(vmcoreinfo.symbolNames.sorted().prefix(Self.maximumCompared))
    let truth = wanted.map { vmcoreinfo.symbol($0)?.rawValue }
    var seen = Set<Int>()
    var agreed = forms.map { _ in Set<Int>() }
    names.forEachMatch(of: wanted.map { Array($0.utf8) }) { index, symbol, _ in
      seen.insert(index)
      for (form, addresses) in forms.enumerated() where addresses[symbol] == truth[index] {
        agreed[form].insert(index)
      }
    }
    return zip(forms, agreed).map { addresses, agreed in
      (addresses, Agreement(agreed: agreed.count, compared: seen.count))
    }
  }
}
