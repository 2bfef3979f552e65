import LinuxKernel
import Memory
import SyntheticDumps
import Testing

struct BTFTests {
  // MARK: Types

  @Test func membersHaveTheirOffsetsTypesAndNames() throws {
    var builder = BTFBuilder()
    let int = builder.integer("int", signed: true)
    let long = builder.integer("unsigned long", size: 8)
    let list = builder.structure(
      "list_head", size: 16, [("next", 4, 0), ("prev", 4, 64)])
    #expect(builder.pointer(list) == 4)
    _ = builder.structure(
      "task", size: 32, [("pid", int, 0), ("flags", long, 64), ("tasks", list, 128)])
    let btf = try builder.build()

    #expect(btf.typeCount == 5)
    let task = try #require(btf.structure(named: "task"))
    #expect(task.kind == .structure)
    #expect(task.name == "task")
    #expect(task.size == 32)
    #expect(task.members.map(\.name) == ["pid", "flags", "tasks"])
    #expect(task.members.map(\.byteOffset) == [0, 8, 16])
    let pid = try #require(task.member("pid"))
    #expect(pid.type.isSigned)
    #expect(pid.type.size == 4)
    #expect(pid.bitSize == nil)
    let flags = try #require(task.member("flags"))
    #expect(!flags.type.isSigned)
    #expect(flags.type.name == "unsigned long")
    let next = try #require(task.member("tasks")?.type.member("next"))
    #expect(next.type.kind == .pointer)
    #expect(next.type.size == 8)
    #expect(next.type.target?.name == "list_head")
    #expect(next.type.target?.id == list)
    #expect(task.member("nothing") == nil)
    #expect(task.member("") == nil)
    #expect(btf.structure(named: "int") == nil)
    #expect(btf.structure(named: "") == nil)
    #expect(btf.structure(named: "tas") == nil)
    #expect(btf.structure(named: "task ") == nil)
  }

  @Test func anonymousStructuresAndUnionsAreSearched() throws {
    var builder = BTFBuilder()
    let int = builder.integer("int")
    let inner = builder.structure("", size: 8, [("a", int, 0), ("b", int, 32)])
    let qualified = builder.add(10, inner)
    let union = builder.structure("", size: 8, union: true, [("", qualified, 0), ("c", int, 0)])
    _ = builder.structure("outer", size: 16, [("d", int, 0), ("", union, 64)])
    let outer = try #require(try builder.build().structure(named: "outer"))
    #expect(outer.member("b")?.byteOffset == 12)
    #expect(outer.member("c")?.byteOffset == 8)
    #expect(outer.member("d")?.byteOffset == 0)
    #expect(outer.member("e") == nil)
    #expect(outer.members.map(\.name) == ["d", ""])
  }

  @Test func aNamedMembersMembersAreNotItsOwn() throws {
    var builder = BTFBuilder()
    let int = builder.integer("int")
    let inner = builder.structure("inner", size: 4, [("a", int, 0)])
    _ = builder.structure("outer", size: 4, [("i", inner, 0)])
    #expect(try builder.build().structure(named: "outer")?.member("a") == nil)
  }

  @Test func bitFieldsOfBothEncodings() throws {
    var builder = BTFBuilder()
    let int = builder.integer("int")
    // Since 5.0: the size in the upper eight bits of the offset.
    _ = builder.structure(
      "new", size: 8, flag: true,
      [("a", int, 1 << 24 | 33), ("b", int, 31 << 24 | 1), ("c", int, 0)])
    // Before: an integer type of few bits, which may begin inside its bytes.
    let few = builder.integer("int", offset: 2, bits: 3)
    let typedef = builder.typedef("few", few)
    _ = builder.structure("old", size: 8, [("a", typedef, 32), ("b", int, 0)])
    let btf = try builder.build()
    let new = try #require(btf.structure(named: "new"))
    #expect(new.member("a")?.bitOffset == 33)
    #expect(new.member("a")?.bitSize == 1)
    #expect(new.member("a")?.byteOffset == 4)
    #expect(new.member("b")?.bitSize == 31)
    #expect(new.member("c")?.bitSize == nil)
    let old = try #require(btf.structure(named: "old"))
    #expect(old.member("a")?.bitOffset == 34)
    #expect(old.member("a")?.bitSize == 3)
    #expect(old.member("b")?.bitSize == nil)
  }

  @Test func `structures that are described come before those of the base`() throws {
    var builder = BTFBuilder()
    let int = builder.integer("int")
    _ = builder.structure("known", size: 4, [("a", int, 0)])
    _ = builder.structure("last", size: 8, [("b", int, 32)])
    let base = try builder.build()
    let types = try BTF(
      [
        StructureDescription("inner", size: 16, [.init("word", at: 8, .unsigned(bytes: 4))]),
        StructureDescription(
          "known", size: 400,
          [
            .init("last", at: 8, .structure("last")), .init("inner", at: 16, .pointerTo("inner")),
            .init("many", at: 32, .structures("inner", count: 3)), .init("any", at: 80, .pointer),
          ]),
      ], base: base)
    let known = try #require(types.structure(named: "known"))
    #expect(known.size == 400)
    let last = try #require(known.member("last"))
    #expect(last.byteOffset == 8)
    #expect(last.type.name == "last")
    #expect(last.type.member("b")?.byteOffset == 4)
    let inner = try #require(known.member("inner"))
    #expect(inner.type.kind == .pointer)
    #expect(inner.type.target?.name == "inner")
    let many = try #require(known.member("many"))
    #expect(many.type.elementCount == 3)
    #expect(many.type.target?.member("word")?.type.size == 4)
    #expect(known.member("any")?.type.target?.kind == .void)
    #expect(known.member("a") == nil)
    #expect(types.structure(named: "last")?.size == 8)
    #expect(base.structure(named: "known")?.size == 4)
  }

  @Test func everyQualifierIsLookedThrough() throws {
    var builder = BTFBuilder()
    let base = builder.structure("atomic", size: 4, [])
    var type = builder.typedef("atomic_t", base)
    for kind in [9, 10, 11] as [UInt32] { type = builder.add(kind, type) }
    type = builder.add(18, name: builder.string("rcu"), type)
    _ = builder.structure("holder", size: 4, [("value", type, 0)])
    let value = try #require(try builder.build().structure(named: "holder")?.member("value")?.type)
    #expect(value.kind == .typeTag)
    #expect(value.resolved.kind == .structure)
    #expect(value.resolved.id == base)
    #expect(value.size == 4)
  }

  @Test func arraysHaveElementsAndSizes() throws {
    var builder = BTFBuilder()
    let long = builder.integer("long", size: 8, signed: true)
    let row = builder.array(long, 5)
    let table = builder.array(builder.typedef("row_t", row), 3)
    let flexible = builder.array(long, 0)
    _ = builder.structure("s", size: 120, [("table", table, 0), ("flexible", flexible, 960)])
    let s = try #require(try builder.build().structure(named: "s"))
    let type = try #require(s.member("table")?.type)
    #expect(type.elementCount == 3)
    #expect(type.size == 120)
    #expect(type.target?.name == "row_t")
    #expect(type.target?.elementCount == 5)
    #expect(s.member("flexible")?.type.size == 0)
    #expect(s.member("flexible")?.type.target?.size == 8)
    #expect(s.elementCount == nil)
    #expect(s.target == nil)
  }

  @Test func aSizeBeyondAllNumbersIsNone() throws {
    var builder = BTFBuilder()
    var type = builder.integer("long", size: 8)
    for _ in 0..<3 { type = builder.array(type, 0xffff_ffff) }
    _ = builder.structure("s", size: 8, [("a", type, 0)])
    #expect(try builder.build().structure(named: "s")?.member("a")?.type.size == nil)
  }

  @Test func whatIsOnlyDeclaredIsNoStructure() throws {
    var builder = BTFBuilder()
    let forward = builder.add(7, name: builder.string("file"), 0)
    let pointer = builder.pointer(forward)
    let nothing = builder.pointer(0)
    let prototype = builder.add(13, name: 0, count: 1, 0, [0, pointer])
    _ = builder.structure(
      "s", size: 24,
      [("file", pointer, 0), ("data", nothing, 64), ("call", builder.pointer(prototype), 128)])
    let btf = try builder.build()
    #expect(btf.structure(named: "file") == nil)
    let s = try #require(btf.structure(named: "s"))
    #expect(s.member("file")?.type.target?.kind == .forward)
    #expect(s.member("file")?.type.target?.size == nil)
    #expect(s.member("data")?.type.target?.kind == .void)
    #expect(s.member("data")?.type.target?.size == nil)
    #expect(s.member("call")?.type.target?.kind == .functionPrototype)
  }

  @Test func constantsOfEnumerationsHaveTheirSign() throws {
    var builder = BTFBuilder()
    _ = builder.enumeration("e", [("ZERO", 0), ("BIG", -1)])
    _ = builder.enumeration("s", signed: true, [("MINUS", -2)])
    _ = builder.enumeration64("w", [("WIDE", 0x1_2345_6789)])
    _ = builder.enumeration64("v", signed: true, [("WIDE_MINUS", 0xffff_ffff_ffff_fffd)])
    let btf = try builder.build()
    #expect(btf.enumerator(named: "ZERO") == 0)
    #expect(btf.enumerator(named: "BIG") == 0xffff_ffff)
    #expect(btf.enumerator(named: "MINUS") == -2)
    #expect(btf.enumerator(named: "WIDE") == 0x1_2345_6789)
    #expect(btf.enumerator(named: "WIDE_MINUS") == -3)
    #expect(btf.enumerator(named: "e") == nil)
    #expect(btf.enumerator(named: "") == nil)
  }

  @Test func everyKindIsSteppedOver() throws {
    var builder = BTFBuilder()
    let int = builder.integer("int")
    let prototype = builder.add(13, count: 2, int, [builder.string("a"), int, 0, 0])
    let function = builder.add(12, name: builder.string("f"), count: 1, prototype)
    let variable = builder.add(14, name: builder.string("v"), int, [1])
    _ = builder.add(15, name: builder.string(".data"), count: 1, 4, [variable, 0, 4])
    _ = builder.add(16, name: builder.string("double"), 8)
    _ = builder.add(17, name: builder.string("tag"), function, [0xffff_ffff])
    _ = builder.add(18, name: builder.string("user"), int)
    _ = builder.enumeration("e", [("E", 1)])
    _ = builder.enumeration64("w", [("W", 1)])
    _ = builder.add(7, name: builder.string("fwd"), 0)
    _ = builder.structure("last", size: 12, [])
    let btf = try builder.build()
    #expect(btf.typeCount == 12)
    #expect(btf.structure(named: "last")?.size == 12)
    #expect(btf.structure(named: "last")?.id == 12)
  }

  @Test func ofStructuresWithOneNameTheFirstCounts() throws {
    var builder = BTFBuilder()
    _ = builder.structure("slot", size: 4, [])
    _ = builder.structure("slot", size: 8, [])
    #expect(try builder.build().structure(named: "slot")?.size == 4)
  }

  @Test func moreMembersThan16BitsCount() throws {
    var builder = BTFBuilder()
    let int = builder.integer("int")
    let members = (0..<70_000).map { ("", int, $0 * 32) as BTFBuilder.Member }
    _ = builder.structure("huge", size: 280_000, members)
    _ = builder.structure("next", size: 1, [])
    let btf = try builder.build()
    #expect(btf.structure(named: "huge")?.members.last?.byteOffset == 279_996)
    #expect(btf.structure(named: "next")?.size == 1)
  }

  // MARK: Headers

  @Test func aLongerHeaderIsAccepted() throws {
    var builder = BTFBuilder()
    builder.headerExtension = [0, 0, 0, 0, 0, 0, 0, 0, 9, 9, 9, 9]
    _ = builder.structure("s", size: 3, [])
    #expect(try builder.build().structure(named: "s")?.size == 3)
  }

  @Test func aKindOfWhichTheHeaderTellsTheSizeIsSteppedOver() throws {
    var builder = BTFBuilder()
    builder.layouts = Array(repeating: (0, 0), count: 20) + [(4, 8)]
    let unknown = builder.add(20, count: 2, 0, [1, 2, 3, 4, 5])
    _ = builder.structure("s", size: 3, [("x", unknown, 0)])
    let s = try #require(try builder.build().structure(named: "s"))
    #expect(s.size == 3)
    #expect(s.member("x")?.type.kind == .unknown)
    #expect(s.member("x")?.type.size == nil)
    #expect(s.member("x")?.type.members.isEmpty == true)
  }

  // MARK: Modules

  private func kernel() -> BTFBuilder {
    var builder = BTFBuilder()
    let int = builder.integer("int", signed: true)
    _ = builder.structure("kvm_vcpu", size: 6552, [("vcpu_id", int, 288)])
    _ = builder.structure("vmcb", size: 8, [])
    _ = builder.enumeration("mode", [("OUTSIDE", 0), ("IN_GUEST_MODE", 1)])
    return builder
  }

  @Test func aModulesTypesContinueThoseOfTheKernel() throws {
    let kernel = kernel()
    let base = try kernel.build()
    var builder = BTFBuilder(base: kernel)
    let svm = builder.structure("vcpu_svm", size: 7248, [("vcpu", 2, 0), ("asid", 1, 52416)])
    _ = builder.structure("list", size: 8, [("owner", builder.pointer(svm), 0)])
    _ = builder.enumeration("local", [("LOCAL", 5)])
    let module = try builder.build(base: base)

    #expect(module.typeCount == 4)
    let type = try #require(module.structure(named: "vcpu_svm"))
    #expect(type.id == 5)
    #expect(type.size == 7248)
    #expect(type.btf === module)
    #expect(type.member("asid")?.type.name == "int")
    let vcpu = try #require(type.member("vcpu")?.type)
    #expect(vcpu.btf === base)
    #expect(vcpu.member("vcpu_id")?.byteOffset == 36)
    #expect(module.structure(named: "list")?.member("owner")?.type.target?.id == svm)
    #expect(module.structure(named: "kvm_vcpu")?.size == 6552)
    #expect(module.enumerator(named: "IN_GUEST_MODE") == 1)
    #expect(module.enumerator(named: "LOCAL") == 5)
    #expect(base.structure(named: "vcpu_svm") == nil)
  }

  @Test func aModulesDefinitionHidesTheKernels() throws {
    let kernel = kernel()
    var builder = BTFBuilder(base: kernel)
    _ = builder.structure("vmcb", size: 4096, [])
    let module = try builder.build(base: try kernel.build())
    #expect(module.structure(named: "vmcb")?.size == 4096)
  }

  @Test func aModuleMayUseTheKernelsNamesAndLayouts() throws {
    var kernel = kernel()
    kernel.layouts = Array(repeating: (0, 0), count: 20) + [(4, 0)]
    let name = kernel.string("shared")
    var builder = BTFBuilder(base: kernel)
    _ = builder.add(20, 0, [1])
    _ = builder.add(4, name: name, 16)
    let module = try builder.build(base: try kernel.build())
    #expect(module.structure(named: "shared")?.size == 16)
  }

  @Test func aModuleWithoutStringsOfItsOwnIsAccepted() throws {
    let kernel = kernel()
    var builder = BTFBuilder(base: kernel)
    _ = builder.pointer(2)
    #expect(try builder.build(base: try kernel.build()).typeCount == 1)
  }

  @Test func aModuleOfAnotherKernelIsRefused() throws {
    let kernel = kernel()
    var builder = BTFBuilder(base: kernel)
    _ = builder.structure("vcpu_svm", size: 8, [("vcpu", 2, 0)])

    // The base has fewer strings and types than the one that the module was built for.
    var small = BTFBuilder()
    _ = small.integer("int")
    #expect(throws: BTFError.nameOutOfRange(id: 2, name: 59, limit: 19)) {
      try builder.build(base: try small.build())
    }
    // It has enough of both, but other ones: a name of the base begins inside another.
    var foreign = kernel
    let name = foreign.string("name")
    var user = BTFBuilder(base: foreign)
    _ = user.add(4, name: name + 1, 8)
    #expect(throws: BTFError.foreignBase(id: 5, name: name + 1)) {
      try user.build(base: try foreign.build())
    }
    // Without any base it is none.
    #expect(throws: BTFError.malformedStrings) { try builder.build() }
  }

  @Test func aReferenceBeyondAllTypesIsRefused() throws {
    let kernel = kernel()
    let base = try kernel.build()
    for reference in [6, 0xffff_ffff] as [UInt32] {
      var builder = BTFBuilder(base: kernel)
      _ = builder.pointer(reference)
      #expect(throws: BTFError.typeOutOfRange(id: 5, reference: reference, limit: 5)) {
        try builder.build(base: base)
      }
    }
  }

  @Test(
    arguments: [
      (2, 0, [], 9), (3, 0, [9, 1, 1], nil), (3, 0, [1, 9, 1], nil), (4, 1, [0, 9, 0], nil),
      (5, 1, [0, 9, 0], nil), (8, 0, [], 9), (12, 0, [], 9), (13, 0, [], 9), (13, 1, [0, 9], nil),
      (14, 0, [0], 9), (15, 1, [9, 0, 0], nil), (17, 0, [0], 9), (18, 0, [], 9),
    ] as [(UInt32, UInt32, [UInt32], UInt32?)])
  func everyKindsReferencesAreChecked(
    _ kind: UInt32, _ count: UInt32, _ rest: [UInt32], _ type: UInt32?
  ) {
    var builder = BTFBuilder()
    _ = builder.add(kind, count: count, type ?? 0, rest)
    #expect(throws: BTFError.typeOutOfRange(id: 1, reference: 9, limit: 1)) {
      try builder.build()
    }
  }

  @Test(
    arguments: [
      (4, 1, [99, 0, 0]), (6, 1, [99, 0]), (13, 1, [99, 0]), (19, 1, [99, 0, 0]),
    ] as [(UInt32, UInt32, [UInt32])])
  func everyKindsNamesAreChecked(_ kind: UInt32, _ count: UInt32, _ rest: [UInt32]) {
    var builder = BTFBuilder()
    _ = builder.add(kind, count: count, 0, rest)
    #expect(throws: BTFError.nameOutOfRange(id: 1, name: 99, limit: 1)) { try builder.build() }
  }

  // MARK: Broken BTF

  @Test func everyTruncationIsRefusedOrFindsNothing() throws {
    let bytes = kernel().bytes
    for count in 0..<bytes.count {
      #expect(throws: BTFError.self, "\(count)") { _ = try BTF(Array(bytes.prefix(count))) }
    }
  }

  @Test func whatIsNotBTFIsNamed() {
    var swapped = kernel()
    swapped.magic = 0x9feb
    #expect(throws: BTFError.notBTF(magic: 0x9feb)) { try swapped.build() }
    var future = kernel()
    future.version = 2
    #expect(throws: BTFError.unknownVersion(2)) { try future.build() }
    #expect(throws: BTFError.truncatedHeader(size: 0)) { try BTF([]) }
  }

  @Test func sectionsBeyondTheBytesAreNamed() {
    for (field, section) in [(4, "header"), (12, "types"), (16, "strings"), (20, "strings")] {
      var bytes = kernel().bytes
      bytes.replaceSubrange(field..<(field + 4), with: [0xff, 0xff, 0xff, 0xff])
      let error = #expect(throws: BTFError.self) { try BTF(bytes) }
      guard case .sectionOutOfBounds(section, _, _, bytes.count) = error else {
        Issue.record("\(field): \(String(describing: error))")
        continue
      }
    }
  }

  @Test func stringsWithoutTheirNULsAreRefused() {
    var end = kernel().bytes
    end[end.count - 1] = 0x41
    #expect(throws: BTFError.malformedStrings) { try BTF(end) }
    let builder = kernel()
    var start = builder.bytes
    start[24 + builder.types.count] = 0x41
    #expect(throws: BTFError.malformedStrings) { try BTF(start) }
  }

  @Test func aTypeThatItsSectionCutsOffIsNamed() {
    var builder = BTFBuilder()
    _ = builder.integer("int")
    _ = builder.add(4, count: 3, 0, [0, 1, 0])
    #expect(throws: BTFError.truncatedType(id: 2, offset: 16)) { try builder.build() }
  }

  @Test(arguments: [0, 20, 127] as [UInt32])
  func anUnknownKindIsNamed(_ kind: UInt32) {
    var builder = BTFBuilder()
    _ = builder.integer("int")
    _ = builder.add(kind, 0)
    #expect(throws: BTFError.unknownKind(UInt8(kind), id: 2)) { try builder.build() }
  }

  @Test func ringsOfTypesHaveAnEnd() throws {
    var builder = BTFBuilder()
    let typedef = builder.typedef("a", 2)
    _ = builder.add(10, typedef)
    let array = builder.array(3, 2)
    _ = builder.structure("s", size: 4, [("ring", typedef, 0), ("nest", array, 0), ("", 4, 0)])
    let s = try #require(try builder.build().structure(named: "s"))
    #expect(s.member("ring")?.type.size == nil)
    #expect(s.member("ring")?.type.target == nil)
    #expect(s.member("nest")?.type.size == nil)
    #expect(s.member("not there") == nil)
  }

  @Test(.timeLimit(.minutes(1)))
  func nestingWithoutEndTakesNoTime() throws {
    // Each structure holds the next one a hundred times, without a name.
    var builder = BTFBuilder()
    for id in 1...30 as ClosedRange<UInt32> {
      let next = id % 30 + 1
      _ = builder.structure(
        id == 1 ? "s" : "", size: 4, Array(repeating: ("", next, 0), count: 100))
    }
    #expect(try builder.build().structure(named: "s")?.member("not there") == nil)
  }

  @Test func everyErrorSaysWhatIsWrongAndWhatToDo() {
    let errors: [BTFError] = [
      .truncatedHeader(size: 3), .notBTF(magic: 1), .unknownVersion(3),
      .sectionOutOfBounds(section: "types", offset: 3, length: 3, size: 3), .malformedStrings,
      .truncatedType(id: 3, offset: 3), .unknownKind(33, id: 3),
      .nameOutOfRange(id: 3, name: 3, limit: 3), .typeOutOfRange(id: 3, reference: 3, limit: 3),
      .foreignBase(id: 3, name: 3),
    ]
    #expect(Set(errors.map(\.name)).count == errors.count)
    #expect(Set(errors.map(\.problem)).count == errors.count)
    for error in errors {
      #expect(error.name.hasPrefix("btf."))
      #expect(error.problem.contains("BTF"))
      #expect(error.advice?.isEmpty == false)
    }
  }

  // MARK: Damage

  private func use(_ btf: BTF) {
    for name in ["s", "kvm_vcpu", "outer", "vcpu_svm", "absent"] {
      guard let type = btf.structure(named: name) else { continue }
      _ = type.size
      for member in type.members {
        _ = (member.byteOffset, member.type.size, member.type.isSigned, member.type.target?.name)
      }
      for member in ["vcpu_id", "a", "c", "absent"] { _ = type.member(member)?.type.resolved.size }
    }
    _ = btf.enumerator(named: "IN_GUEST_MODE")
    _ = btf.enumerator(named: "absent")
  }

  @Test func damageNeverTraps() throws {
    var kernel = kernel()
    let int = kernel.integer("u32", offset: 3, bits: 7)
    let inner = kernel.structure("", size: 8, flag: true, [("a", int, 0), ("c", int, 4 << 24 | 4)])
    let array = kernel.array(kernel.typedef("inner_t", inner), 4)
    _ = kernel.structure(
      "outer", size: 40, [("", inner, 0), ("arr", array, 64), ("p", kernel.pointer(0), 320)])
    _ = kernel.add(13, count: 1, 1, [0, int])
    kernel.layouts = [(0, 0), (4, 0)]
    var module = BTFBuilder(base: kernel)
    _ = module.structure("vcpu_svm", size: 16, [("", inner, 0), ("b", array, 64)])
    _ = module.enumeration64("e", [("E", 1)])

    let base = try kernel.build()
    var generator = SeededGenerator(seed: 21)
    var accepted = 0
    for _ in 0..<4000 {
      var bytes = kernel.bytes
      bytes.damage(using: &generator)
      if let btf = try? BTF(bytes) {
        accepted += 1
        use(btf)
        if let split = try? BTF(module.bytes, base: btf) { use(split) }
      }
      bytes = module.bytes
      bytes.damage(using: &generator)
      if let btf = try? BTF(bytes, base: base) {
        accepted += 1
        use(btf)
      }
    }
    #expect(accepted > 500)
  }
}

extension BTFBuilder {
  func build(base: BTF? = nil) throws(BTFError) -> BTF { try BTF(bytes, base: base) }
}
