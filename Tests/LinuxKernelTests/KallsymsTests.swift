import LinuxKernel
import Memory
import SyntheticDumps
import Testing
import X86

private typealias Symbol = SymbolTableBuilder.Symbol

struct KallsymsTests {
  /// A small kernel: 600 symbols, the first few per CPU, with names in the kernel's manner.
  private static func kernel(longNames: [String] = []) -> SymbolTableBuilder {
    var generator = SeededGenerator(seed: 7)
    var symbols = [Symbol(name: "_stext", address: 0xffff_ffff_8100_0000)]
    let words = ["kvm", "vcpu", "page", "lock", "sched", "irq", "init", "tcp", "ext4", "read"]
    for index in 1..<600 {
      let name = (0..<Int.random(in: 1...4, using: &generator))
        .map { _ in words.randomElement(using: &generator) ?? "" }.joined(separator: "_")
      symbols.append(
        Symbol(
          name: "\(name)_\(index)", type: "TtDdbR".randomElement(using: &generator) ?? "T",
          address: 0xffff_ffff_8100_0000 + UInt64(index) * 0x40))
    }
    symbols[300].name = "init_uts_ns"
    symbols[400].name = "swapper_pg_dir"
    for (index, name) in longNames.enumerated() { symbols[310 + index * 7].name = name }
    return SymbolTableBuilder(symbols: symbols)
  }

  private static func randomName(_ length: Int, seed: UInt64) -> String {
    var generator = SeededGenerator(seed: seed)
    let letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_$"
    return String((0..<length).map { _ in letters.randomElement(using: &generator) ?? "_" })
  }

  private func memory(_ tables: [String: SymbolTableBuilder.Table]) -> KernelMemory {
    var memory = KernelMemory()
    for table in tables.values { memory.store(table.bytes, at: table.address) }
    return memory
  }

  /// Gives `body` the tables with one of them damaged, each time in another way.
  private func forEachDamage(
    of tables: [String: SymbolTableBuilder.Table], times: Int, seed: UInt64,
    _ body: (KernelMemory) -> Void
  ) {
    let whole = memory(tables)
    var generator = SeededGenerator(seed: seed)
    for _ in 0..<times {
      guard let victim = tables.keys.sorted().randomElement(using: &generator),
        var table = tables[victim]
      else { continue }
      table.bytes.damage(using: &generator)
      var memory = whole
      memory.store(table.bytes, at: table.address)
      body(memory)
    }
  }

  private func open(_ builder: SymbolTableBuilder) throws -> Kallsyms {
    let (tables, text) = builder.build()
    let vmcoreinfo = try #require(Vmcoreinfo(text: text))
    return try Kallsyms(vmcoreinfo, in: memory(tables).virtual)
  }

  private func expectAll(_ builder: SymbolTableBuilder, in kallsyms: Kallsyms) {
    #expect(kallsyms.count == builder.symbols.count)
    let found = kallsyms.addresses(of: Set(builder.symbols.map(\.name)))
    for symbol in builder.symbols {
      #expect(found[symbol.name] == VirtualAddress(symbol.address), "\(symbol.name)")
    }
  }

  // MARK: Encodings

  @Test(arguments: SymbolTableBuilder.Form.allCases, SymbolTableBuilder.Order.allCases)
  func everyFormOfAddressesIsRecognised(
    _ form: SymbolTableBuilder.Form, _ order: SymbolTableBuilder.Order
  ) throws {
    var builder = Self.kernel()
    builder.form = form
    builder.order = order
    expectAll(builder, in: try open(builder))
  }

  @Test(
    arguments: [127, 128, 254],
    [(true, .offsetsFirst), (false, .offsetsFirst), (true, .namesFirst), (false, .namesFirst)]
      as [(Bool, SymbolTableBuilder.Order)])
  func bothEncodingsOfALongNamesLengthAreTold(
    _ length: Int, _ variant: (twoBytes: Bool, order: SymbolTableBuilder.Order)
  ) throws {
    var builder = Self.kernel(
      longNames: [Self.randomName(length, seed: 3), Self.randomName(length, seed: 4)])
    builder.twoByteLengths = variant.twoBytes
    builder.order = variant.order
    expectAll(builder, in: try open(builder))
  }

  @Test func namesOfTheGreatestLengthAreRead() throws {
    expectAll(
      Self.kernel(longNames: [Self.randomName(511, seed: 5)]),
      in: try open(Self.kernel(longNames: [Self.randomName(511, seed: 5)])))
  }

  @Test(arguments: [true, false])
  func whereBothEncodingsCanBeTheMarkersDecide(_ twoBytes: Bool) throws {
    // The last name is the only long one, and there is memory behind the tables for whatever
    // length the wrong encoding makes of it.
    var builder = Self.kernel()
    builder.symbols[599].name = Self.randomName(200, seed: 9)
    builder.twoByteLengths = twoBytes
    let (tables, text) = builder.build()
    var memory = KernelMemory()
    memory.store(Array(repeating: 0x61, count: 64 << 10), at: builder.start)
    for table in tables.values { memory.store(table.bytes, at: table.address) }
    let vmcoreinfo = try #require(Vmcoreinfo(text: text))
    expectAll(builder, in: try Kallsyms(vmcoreinfo, in: memory.virtual))
  }

  @Test(arguments: [true, false])
  func withoutMarkersTheSymbolsThatVmcoreinfoKnowsDecide(_ twoBytes: Bool) throws {
    // The long name comes first, so that what follows it is read from the wrong place.
    var builder = Self.kernel()
    builder.symbols[0].name = Self.randomName(200, seed: 6)
    builder.symbols[1].name = "_stext"
    builder.twoByteLengths = twoBytes
    var (tables, text) = builder.build()
    tables["kallsyms_markers"]?.bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    let vmcoreinfo = try #require(Vmcoreinfo(text: text))
    expectAll(builder, in: try Kallsyms(vmcoreinfo, in: memory(tables).virtual))
  }

  @Test func namesMayEndWithTheLastPageAtHand() throws {
    var (tables, text) = Self.kernel().build()
    let names = try #require(tables["kallsyms_names"])
    // Moved so that the names' last byte is a page's last.
    let end = VirtualAddress(0xffff_ffff_8300_0000)
    let address = end - UInt64(names.bytes.count)
    tables["kallsyms_names"] = .init(address: address, bytes: names.bytes)
    text = Array(
      String(decoding: text, as: UTF8.self).split(separator: "\n").filter {
        !$0.hasPrefix("SYMBOL(kallsyms_names)")
      }.joined(separator: "\n").utf8)
    text += Array("\nSYMBOL(kallsyms_names)=\(String(address.rawValue, radix: 16))\n".utf8)
    let vmcoreinfo = try #require(Vmcoreinfo(text: text))
    expectAll(Self.kernel(), in: try Kallsyms(vmcoreinfo, in: memory(tables).virtual))
  }

  @Test func oneLineOfVmcoreinfoMayMeanSomethingElse() throws {
    // SYMBOL(mem_section) is the value of the pointer mem_section.
    var builder = Self.kernel()
    builder.symbols[350].name = "mem_section"
    builder.exported["mem_section"] = .some(0xffff_8880_1234_0000)
    expectAll(builder, in: try open(builder))
  }

  // MARK: Tables found by their structure

  /// A kernel before 6.0, whose VMCOREINFO names variables behind the tables and none of them.
  private static func older(longNames: [String] = []) -> SymbolTableBuilder {
    var builder = kernel(longNames: longNames)
    builder.exportsTables = false
    builder.twoByteLengths = false
    builder.start = VirtualAddress(0xffff_ffff_8104_0000)
    builder.exported["node_online_map"] = .some(0xffff_ffff_8108_0000)
    return builder
  }

  @Test(arguments: SymbolTableBuilder.Form.allCases, SymbolTableBuilder.Order.allCases)
  func tablesInEveryFormAndOrderAreFound(
    _ form: SymbolTableBuilder.Form, _ order: SymbolTableBuilder.Order
  ) throws {
    // Offsets from their own place came when the order had long changed.
    if form == .placeRelative, order != .namesFirst { return }
    for hasWideNumbers in [false, true] {
      var builder = Self.older()
      builder.form = form
      builder.order = order
      builder.hasWideNumbers = hasWideNumbers
      expectAll(builder, in: try open(builder))
    }
  }

  @Test(arguments: [(200, false), (200, true), (500, true)] as [(Int, Bool)])
  func tablesWithLongNamesAreFound(_ length: Int, _ twoBytes: Bool) throws {
    var builder = Self.older(
      longNames: [Self.randomName(length, seed: 3), Self.randomName(length, seed: 4)])
    builder.twoByteLengths = twoBytes
    expectAll(builder, in: try open(builder))
  }

  @Test func tablesAreFoundWhereverTheyLie() throws {
    // The image is read in pieces of 256 KiB from its start on: each table crosses the end of one,
    // at another place each time.
    let end = VirtualAddress(0xffff_ffff_8100_0000 + 2 * 256 << 10)
    let (tables, _) = Self.older().build()
    for (name, table) in tables {
      for part in [8, table.bytes.count / 16 * 8, table.bytes.count - 8] where part > 0 {
        var builder = Self.older()
        builder.exported["node_online_map"] = .some(0xffff_ffff_8110_0000)
        let offset = table.address.distance(from: builder.start)
        builder.start = end - UInt64(part) - offset
        #expect(builder.build().tables[name]?.address == end - UInt64(part))
        expectAll(builder, in: try open(builder))
      }
    }
  }

  @Test func whatOnlyLooksLikeAnIndexOfTokensIsPassed() throws {
    let builder = Self.older()
    let (tables, text) = builder.build()
    var memory = memory(tables)
    var index: [UInt8] = []
    for token in 0..<256 as Range<UInt16> { index.append(littleEndian: token * 3) }
    memory.store(index, at: VirtualAddress(0xffff_ffff_8100_1000))
    // Another with a fitting table, but without names.
    let table = try #require(tables["kallsyms_token_table"])
    memory.store(table.bytes, at: VirtualAddress(0xffff_ffff_8100_2000))
    memory.store(
      try #require(tables["kallsyms_token_index"]).bytes,
      at: VirtualAddress(0xffff_ffff_8100_2000) + UInt64(table.bytes.count))
    let vmcoreinfo = try #require(Vmcoreinfo(text: text))
    expectAll(builder, in: try Kallsyms(vmcoreinfo, in: memory.virtual))
  }

  @Test func foundTablesThatDisagreeWithVmcoreinfoAreNotUsed() throws {
    var builder = Self.older()
    builder.exported["init_uts_ns"] = .some(0xffff_ffff_8100_4b08)
    builder.exported["swapper_pg_dir"] = .some(0xffff_ffff_8100_6408)
    #expect(
      try error(builder)
        == .disagreesWithVmcoreinfo(agreed: 1, compared: 3, release: "6.1.0-test"))
  }

  @Test(arguments: [true, false])
  func searchingDamagedTablesNeverTraps(_ namesFirst: Bool) throws {
    var builder = Self.older(longNames: [Self.randomName(200, seed: 8)])
    builder.symbols.removeSubrange(401...)
    if namesFirst { builder.order = .namesFirst }
    let (tables, text) = builder.build()
    let vmcoreinfo = try #require(Vmcoreinfo(text: text))
    var opened = 0
    forEachDamage(of: tables, times: 400, seed: namesFirst ? 11 : 12) { memory in
      if (try? Kallsyms(vmcoreinfo, in: memory.virtual)) != nil { opened += 1 }
    }
    #expect(opened > 20)
    #expect(opened < 400)
  }

  // MARK: Look-ups

  @Test func unknownNamesAreNotFound() throws {
    let kallsyms = try open(Self.kernel())
    #expect(kallsyms.address(of: "_stex") == nil)
    #expect(kallsyms.address(of: "_stextt") == nil)
    #expect(kallsyms.address(of: "T_stext") == nil)
    #expect(kallsyms.address(of: "") == nil)
    #expect(kallsyms.addresses(of: []).isEmpty)
  }

  @Test func aGlobalSymbolGoesBeforeLocalOnesAndTheFirstBeforeOthers() throws {
    var builder = Self.kernel()
    for (index, type) in [(100, "t"), (110, "D"), (120, "d")] as [(Int, Character)] {
      builder.symbols[index].name = "modules"
      builder.symbols[index].type = type
    }
    for index in [200, 210] {
      builder.symbols[index].name = "cleanup"
      builder.symbols[index].type = "t"
    }
    let kallsyms = try open(builder)
    #expect(kallsyms.address(of: "modules")?.rawValue == builder.symbols[110].address)
    #expect(kallsyms.address(of: "cleanup")?.rawValue == builder.symbols[200].address)
  }

  @Test func aPerCPUSymbolHasItsOffsetAndCoversNoAddress() throws {
    var builder = Self.kernel()
    builder.symbols.insert(Symbol(name: "current_task", type: "D", address: 0x1fbc0), at: 0)
    let kallsyms = try open(builder)
    #expect(kallsyms.address(of: "current_task") == VirtualAddress(0x1fbc0))
    #expect(kallsyms.symbol(at: VirtualAddress(0x1fbc0)) == nil)
    #expect(kallsyms.symbol(at: VirtualAddress(0xffff_8880_0000_0000)) == nil)
    #expect(kallsyms.address(of: "_stext")?.rawValue == 0xffff_ffff_8100_0000)
  }

  @Test(arguments: SymbolTableBuilder.Form.allCases)
  func anAddressIsCoveredByTheSymbolBelowIt(_ form: SymbolTableBuilder.Form) throws {
    var builder = Self.kernel()
    builder.form = form
    builder.symbols[500].address = builder.symbols[499].address
    let kallsyms = try open(builder)
    for index in [0, 1, 255, 256, 257, 299, 499, 598] {
      let symbol = builder.symbols[index]
      for offset in [0, 1, 0x3f] as [UInt64] {
        let found = try #require(kallsyms.symbol(at: VirtualAddress(symbol.address + offset)))
        #expect(found.name == symbol.name)
        #expect(found.offset == offset)
        #expect(found.size == (index == 499 ? 0x80 : 0x40))
      }
    }
    let last = try #require(builder.symbols.last)
    #expect(kallsyms.symbol(at: VirtualAddress(last.address))?.name == last.name)
    #expect(kallsyms.symbol(at: VirtualAddress(last.address))?.size == .some(nil))
    #expect(kallsyms.symbol(at: VirtualAddress(last.address + 1)) == nil)
    #expect(kallsyms.symbol(at: VirtualAddress(.max)) == nil)
    #expect(kallsyms.symbol(at: VirtualAddress(builder.base - 1)) == nil)
    #expect(kallsyms.symbol(at: VirtualAddress(0)) == nil)
  }

  // MARK: Broken tables

  private func error(
    _ builder: SymbolTableBuilder = kernel(),
    _ breakIt: (inout [String: SymbolTableBuilder.Table]) -> Void = { _ in }
  ) throws -> KallsymsError? {
    var (tables, text) = builder.build()
    let vmcoreinfo = try #require(Vmcoreinfo(text: text))
    breakIt(&tables)
    return #expect(throws: KallsymsError.self) {
      _ = try Kallsyms(vmcoreinfo, in: memory(tables).virtual)
    }
  }

  @Test(arguments: [
    "kallsyms_names", "kallsyms_num_syms", "kallsyms_token_table", "kallsyms_token_index",
    "kallsyms_offsets",
  ])
  func aTableThatIsNeitherExportedNorFoundIsNamed(_ table: String) throws {
    var (tables, text) = Self.kernel().build()
    let lines = String(decoding: text, as: UTF8.self).split(separator: "\n")
    let without = lines.filter { !$0.hasPrefix("SYMBOL(\(table))") }.joined(separator: "\n")
    let vmcoreinfo = try #require(Vmcoreinfo(text: Array(without.utf8)))
    tables["kallsyms_token_index"]?.bytes[20] ^= 0xff
    #expect(throws: KallsymsError.notFound(table: table, release: "6.1.0-test")) {
      _ = try Kallsyms(vmcoreinfo, in: memory(tables).virtual)
    }
  }

  @Test(arguments: [
    "kallsyms_names", "kallsyms_num_syms", "kallsyms_token_table", "kallsyms_token_index",
    "kallsyms_offsets", "kallsyms_relative_base",
  ])
  func aTableThatIsNotInTheDumpIsNamed(_ name: String) throws {
    // Each table in pages of its own.
    var (tables, text) = Self.kernel().build()
    var lines = String(decoding: text, as: UTF8.self).split(separator: "\n")
      .filter { !$0.contains("kallsyms") }.map(String.init)
    for (index, table) in tables.keys.enumerated() {
      let address = VirtualAddress(0xffff_ffff_9000_0000 + UInt64(index) << 20)
      tables[table]?.address = address
      lines.append("SYMBOL(\(table))=\(String(address.rawValue, radix: 16))")
    }
    let vmcoreinfo = try #require(
      Vmcoreinfo(text: Array(lines.joined(separator: "\n").utf8)))
    var memory = memory(tables)
    #expect(throws: Never.self) { _ = try Kallsyms(vmcoreinfo, in: memory.virtual) }
    let address = try #require(tables[name]?.address)
    memory.removePage(of: address)
    let error = #expect(throws: KallsymsError.self) {
      _ = try Kallsyms(vmcoreinfo, in: memory.virtual)
    }
    guard case .unreadable(name, address, .absent(_, .notInDump)) = error else {
      Issue.record("\(String(describing: error))")
      return
    }
  }

  @Test(arguments: [0, 8_000_001, 0xffff_ffff] as [UInt32])
  func anImpossibleNumberOfSymbolsIsRefused(_ count: UInt32) throws {
    let error = try error { tables in
      tables["kallsyms_num_syms"]?.bytes = []
      tables["kallsyms_num_syms"]?.bytes.append(littleEndian: count)
    }
    guard case .implausibleCount(count, _) = error else {
      Issue.record("\(String(describing: error))")
      return
    }
  }

  @Test func anIndexOfTokensThatDoesNotAscendIsRefused() throws {
    let error = try error {
      $0["kallsyms_token_index"]?.bytes.replaceSubrange(20..<22, with: [0, 0])
    }
    guard case .malformedToken(index: 10, _) = error else {
      Issue.record("\(String(describing: error))")
      return
    }
  }

  @Test func aTokenWithoutItsNULIsRefused() throws {
    let error = try error { tables in
      guard let nul = tables["kallsyms_token_table"]?.bytes.firstIndex(of: 0) else { return }
      tables["kallsyms_token_table"]?.bytes[nul] = 0x41
    }
    guard case .malformedToken(index: 0, _) = error else {
      Issue.record("\(String(describing: error))")
      return
    }
  }

  @Test func aNameWithoutCodesIsRefused() throws {
    let error = try error { $0["kallsyms_names"]?.bytes[0] = 0 }
    guard case .malformedName(symbol: 0, _) = error else {
      Issue.record("\(String(describing: error))")
      return
    }
  }

  @Test func aCountBeyondTheNamesIsRefused() throws {
    #expect(
      try error { tables in
        tables["kallsyms_num_syms"]?.bytes = []
        tables["kallsyms_num_syms"]?.bytes.append(littleEndian: UInt32(7_999_999))
      } != nil)
  }

  @Test func symbolsElsewhereThanVmcoreinfoSaysAreRefusedAndCounted() throws {
    var builder = Self.kernel()
    builder.exported = [
      "_stext": 0xffff_ffff_a100_0000, "init_uts_ns": 0xffff_ffff_a100_4b00, "swapper_pg_dir": nil,
    ]
    #expect(
      try error(builder)
        == .disagreesWithVmcoreinfo(agreed: 1, compared: 3, release: "6.1.0-test"))
  }

  @Test func withNothingToCompareNoFormIsBelieved() throws {
    var builder = Self.kernel()
    builder.exported = [:]
    #expect(
      try error(builder)
        == .disagreesWithVmcoreinfo(agreed: 0, compared: 0, release: "6.1.0-test"))
  }

  @Test func everyErrorSaysWhatWhereAndWhatToDo() {
    let errors: [KallsymsError] = [
      .notFound(table: "kallsyms_names", release: "5.10.0"),
      .unreadable(
        table: "kallsyms_names", VirtualAddress(0x1000), .absent(PhysicalAddress(0), .excluded)),
      .implausibleCount(0, VirtualAddress(0x1000)),
      .malformedToken(index: 3, VirtualAddress(0x1000)),
      .malformedName(symbol: 3, VirtualAddress(0x1000)),
      .disagreesWithVmcoreinfo(agreed: 1, compared: 3, release: "6.1.0"),
    ]
    #expect(Set(errors.map(\.name)).count == errors.count)
    for error in errors {
      #expect(error.name.hasPrefix("kallsyms."))
      #expect(error.advice?.isEmpty == false)
      #expect(error.problem.contains("0x1000") || error.problem.contains("kernel"))
    }
  }

  // MARK: Damage

  @Test(arguments: [true, false])
  func damageNeverTraps(_ twoBytes: Bool) throws {
    var builder = Self.kernel(longNames: [Self.randomName(200, seed: 8)])
    builder.symbols.removeSubrange(401...)
    builder.twoByteLengths = twoBytes
    let (tables, text) = builder.build()
    let vmcoreinfo = try #require(Vmcoreinfo(text: text))
    let names = ["_stext", "init_uts_ns", builder.symbols[310].name]
    var opened = 0
    forEachDamage(of: tables, times: 1500, seed: twoBytes ? 11 : 12) { memory in
      guard let kallsyms = try? Kallsyms(vmcoreinfo, in: memory.virtual) else { return }
      opened += 1
      _ = kallsyms.addresses(of: Set(names))
      for address in [0, builder.base, builder.base + 0x1234, .max] {
        _ = kallsyms.symbol(at: VirtualAddress(address))
      }
    }
    #expect(opened > 100)
  }
}
