import Foundation
import Memory
import SyntheticDumps
import Testing

@testable import LinuxKernel

/// Types out of files that a C compiler made, against what the same compiler says of them.
struct DWARFTests {
  /// Two units, as a module has many: the second defines what the first only names.
  private static let first = """
    typedef unsigned long long u64;
    struct list_head { struct list_head *next, *prev; };
    struct inner { char name[3][5]; short tail; };
    enum mode { OUTSIDE, INSIDE = 7, NEGATIVE = -2 };
    enum { FIRST_FLAG = 1, WIDE_FLAG = 0x1234567890 };
    union either { int number; char bytes[12]; };
    struct elsewhere;
    struct outer {
      int a;
      union { u64 whole; struct { unsigned low, high; }; };
      struct list_head list;
      unsigned b1 : 3, b2 : 9;
      struct inner inner[4];
      struct elsewhere *far;
      const volatile u64 *p;
      _Bool flag;
      signed char negative;
      enum mode mode;
      union either either;
      void (*call)(int);
      u64 flexible[];
    };
    #ifdef MEASURE
    #include <stddef.h>
    #include <stdio.h>
    #define SHOW(member) printf(#member " %zu\\n", offsetof(struct outer, member))
    int main(void) {
      SHOW(a); SHOW(whole); SHOW(low); SHOW(high); SHOW(list); SHOW(inner); SHOW(far); SHOW(p);
      SHOW(flag); SHOW(negative); SHOW(mode); SHOW(either); SHOW(call); SHOW(flexible);
      printf("size %zu\\n", sizeof(struct outer));
    }
    #else
    struct outer *of_outer; enum mode of_mode; int of_flag = FIRST_FLAG;
    static const u64 wide = WIDE_FLAG; const u64 *of_wide = &wide;
    #endif
    """
  private static let second = """
    struct list_head { struct list_head *next, *prev; };
    struct elsewhere { long long before; int x; struct list_head list; };
    struct elsewhere of_elsewhere;
    """
  private static let buildID = "0123456789abcdef0123456789abcdef01234567"

  /// A folder with a relocatable file, as modules are.
  private struct Build {
    let folder = URL.temporaryDirectory.appending(
      path: "dwarf-\(UUID())", directoryHint: .isDirectory
    ).path()
    var module: String { folder + "module.ko" }

    init(_ options: [String] = []) throws {
      try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
      for (name, text) in [("first.c", DWARFTests.first), ("second.c", DWARFTests.second)] {
        try Data(text.utf8).write(to: URL(filePath: folder + name))
        try run("cc", ["-g", "-c", "-o", name + ".o", name] + options)
      }
      try run(
        "ld", ["-r", "--build-id=0x\(buildID)", "-o", "module.ko", "first.c.o", "second.c.o"])
    }

    @discardableResult
    func run(_ program: String, _ arguments: [String]) throws -> String {
      let process = Process()
      process.executableURL = URL(filePath: "/usr/bin/env")
      process.arguments = [program] + arguments
      process.currentDirectoryURL = URL(filePath: folder)
      let output = Pipe()
      process.standardOutput = output
      try process.run()
      let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
      process.waitUntilExit()
      try #require(process.terminationStatus == 0, "\(program) \(arguments)")
      return text
    }

    func remove() { try? FileManager.default.removeItem(atPath: folder) }
  }

  private func types(_ path: String, base: BTF? = nil) throws -> BTF {
    try DebugFile(path).types(base: base)
  }

  @Test(arguments: [[], ["-gdwarf-4"], ["-gdwarf-5"], ["-gz=zlib"]])
  func membersLieWhereTheCompilerPutThem(_ options: [String]) throws {
    let build = try Build(options)
    defer { build.remove() }
    try build.run("cc", ["-DMEASURE", "-o", "measure", "first.c"])
    let outer = try #require(try types(build.module).structure(named: "outer"))
    var compared = 0
    for line in try build.run("./measure", []).split(separator: "\n") {
      let words = line.split(separator: " ")
      let value = try #require(UInt64(words[1]))
      if words[0] == "size" {
        #expect(outer.size == value)
      } else {
        #expect(outer.member(String(words[0]))?.byteOffset == value, "\(line)")
      }
      compared += 1
    }
    #expect(compared == 15)
  }

  @Test func kindsOfTypesAreKept() throws {
    let build = try Build()
    defer { build.remove() }
    let types = try types(build.module)
    let outer = try #require(types.structure(named: "outer"))
    #expect(outer.member("a")?.type.isSigned == true)
    #expect(outer.member("whole")?.type.name == "u64")
    #expect(outer.member("whole")?.type.isSigned == false)
    #expect(outer.member("negative")?.type.isSigned == true)
    #expect(outer.member("flag")?.type.size == 1)
    #expect(outer.member("mode")?.type.isSigned == true)
    #expect(outer.member("mode")?.type.size == 4)
    #expect(outer.member("either")?.type.resolved.kind == .union)
    #expect(outer.member("either")?.type.size == 12)
    #expect(outer.member("call")?.type.target?.kind == .functionPrototype)
    #expect(outer.member("p")?.type.target?.resolved.size == 8)
    #expect(outer.member("flexible")?.type.elementCount == 0)
    let inner = try #require(outer.member("inner")?.type)
    #expect(inner.elementCount == 4)
    let name = try #require(inner.target?.member("name")?.type)
    #expect(name.elementCount == 3)
    #expect(name.target?.elementCount == 5)
    #expect(name.size == 15)
    let first = try #require(outer.member("b1"))
    let second = try #require(outer.member("b2"))
    #expect(first.bitSize == 3)
    #expect(second.bitSize == 9)
    #expect(second.bitOffset == first.bitOffset + 3)
    #expect(outer.member("none") == nil)
    #expect(types.structure(named: "mode") == nil)
  }

  @Test func constantsOfEnumerationsAreKnown() throws {
    let build = try Build()
    defer { build.remove() }
    let types = try types(build.module)
    #expect(types.enumerator(named: "INSIDE") == 7)
    #expect(types.enumerator(named: "NEGATIVE") == -2)
    #expect(types.enumerator(named: "WIDE_FLAG") == 0x12_3456_7890)
    #expect(types.enumerator(named: "NONE") == nil)
  }

  @Test func whatOneUnitOnlyNamesIsWhatAnotherDefines() throws {
    let build = try Build()
    defer { build.remove() }
    let outer = try #require(try types(build.module).structure(named: "outer"))
    let far = try #require(outer.member("far")?.type.target)
    #expect(far.kind == .structure)
    #expect(far.member("x")?.byteOffset == 8)
    // Both units define it: it is there once.
    #expect(far.member("list")?.type.id == outer.member("list")?.type.id)
  }

  @Test func whatTheFileLacksComesFromItsBase() throws {
    let build = try Build()
    defer { build.remove() }
    try build.run("cc", ["-g", "-c", "-o", "base.o", "second.c"])
    let base = try types(build.folder + "base.o")
    let module = try types(build.folder + "first.c.o", base: base)
    #expect(module.structure(named: "elsewhere")?.member("x")?.byteOffset == 8)
    #expect(module.structure(named: "outer")?.member("a")?.byteOffset == 0)
    #expect(base.structure(named: "outer") == nil)
    // What the module only declares the kernel defines.
    let far = try #require(module.structure(named: "outer")?.member("far")?.type.target)
    #expect(far.member("x")?.byteOffset == 8)
  }

  @Test(arguments: [("gzip", "gz"), ("xz", "xz")])
  func compressedFilesAreUnpacked(_ program: String, _ ending: String) throws {
    let build = try Build()
    defer { build.remove() }
    try build.run(program, ["-k", "module.ko"])
    let file = try DebugFile(build.module + "." + ending)
    #expect(file.buildID == Self.buildID)
    #expect(try file.types(base: nil).structure(named: "outer") != nil)
  }

  // MARK: Files that do not fit

  @Test func aFileIsFoundByItsBuildAndByItsPlace() throws {
    let build = try Build()
    defer { build.remove() }
    for place in [
      ".build-id/01/\(Self.buildID.dropFirst(2)).debug",
      "lib/modules/5.10.0-1-amd64/kernel/arch/x86/kvm/kvm-amd.ko",
      "usr/lib/debug/lib/modules/5.10.0-1-amd64/kernel/arch/x86/kvm/kvm-amd.ko.debug",
      "kvm_amd.ko",
    ] {
      let path = build.folder + "root/" + place
      try FileManager.default.createDirectory(
        at: URL(filePath: path).deletingLastPathComponent(), withIntermediateDirectories: true)
      try FileManager.default.copyItem(atPath: build.module, toPath: path)
      let debug = DebugInformation(folders: [build.folder + "none", build.folder + "root"])
      let types = try debug.typesOfModule(
        "kvm_amd", of: "5.10.0-1-amd64", buildID: Self.buildID, base: try Self.empty())
      #expect(types.structure(named: "outer") != nil, "\(place)")
      try FileManager.default.removeItem(atPath: build.folder + "root")
    }
  }

  private static func empty() throws -> BTF {
    // A header, no types, one empty string.
    try BTF([0x9f, 0xeb, 1, 0, 24, 0, 0, 0] + [UInt8](repeating: 0, count: 12) + [1, 0, 0, 0, 0])
  }

  @Test func aFileOfAnotherBuildIsRefusedByName() throws {
    let build = try Build()
    defer { build.remove() }
    let other = String(Self.buildID.reversed())
    #expect(
      throws: DebugFileError.mismatch(
        path: build.module, owner: "kernel 5.4.0", found: Self.buildID, wanted: other)
    ) {
      _ = try DebugInformation(vmlinux: build.module).typesOfKernel("5.4.0", buildID: other)
    }
    // Even where the dump's own types do.
    let given = DebugInformation(vmlinux: build.module)
    try given.checkGivenKernel("5.4.0", buildID: Self.buildID)
    #expect(throws: DebugFileError.self) { try given.checkGivenKernel("5.4.0", buildID: other) }
    #expect(throws: DebugFileError.self) {
      try DebugInformation(vmlinux: "/nonexistent").checkGivenKernel("5.4.0", buildID: other)
    }
    try FileManager.default.moveItem(atPath: build.module, toPath: build.folder + "kvm.ko")
    #expect(
      throws: DebugFileError.mismatch(
        path: build.folder + "/kvm.ko", owner: "module kvm", found: Self.buildID, wanted: other)
    ) {
      _ = try DebugInformation(folders: [build.folder]).typesOfModule(
        "kvm", of: "5.4.0", buildID: other, base: try Self.empty())
    }
  }

  @Test func whatIsMissingIsNamedWithThePackageThatHasIt() throws {
    let debug = DebugInformation(folders: ["/nonexistent"])
    for (release, package) in [
      ("5.10.0-32-amd64", "linux-image-5.10.0-32-amd64-dbg"),
      ("4.18.0-147.el8.x86_64", "kernel-debuginfo-4.18.0-147.el8.x86_64"),
      ("5.4.0-26-generic", "linux-image-unsigned-5.4.0-26-generic-dbgsym"),
    ] {
      let error = #expect(throws: DebugFileError.self) {
        _ = try debug.typesOfKernel(release, buildID: Self.buildID)
      }
      #expect(error?.problem.contains(Self.buildID) == true)
      #expect(error?.problem.contains("/nonexistent") == true)
      #expect(error?.advice?.contains(package) == true)
    }
    #expect(throws: DebugFileError.unknownBuild(owner: "kernel 5.4.0")) {
      _ = try debug.typesOfKernel("5.4.0", buildID: nil)
    }
  }

  @Test func filesWithoutDebugInformationAreRefused() throws {
    let build = try Build()
    defer { build.remove() }
    try build.run("strip", ["--strip-debug", "module.ko"])
    #expect(throws: DebugFileError.noDWARF(path: build.module)) {
      _ = try types(build.module)
    }
    #expect(throws: DebugFileError.self) { _ = try types(build.folder + "first.c") }
    #expect(throws: DebugFileError.self) { _ = try types(build.folder + "none") }
  }

  @Test func damagedFilesNeverTrap() throws {
    let build = try Build()
    defer { build.remove() }
    let whole = try Data(contentsOf: URL(filePath: build.module))
    var generator = SeededGenerator(seed: 17)
    var opened = 0
    for _ in 0..<200 {
      var damaged = whole
      for _ in 0..<Int.random(in: 1...40, using: &generator) {
        damaged[Int.random(in: 0..<damaged.count, using: &generator)] = .random(
          in: 0...255, using: &generator)
      }
      try damaged.write(to: URL(filePath: build.folder + "damaged.ko"))
      if (try? types(build.folder + "damaged.ko")) != nil { opened += 1 }
    }
    #expect(opened > 0)
  }
}
