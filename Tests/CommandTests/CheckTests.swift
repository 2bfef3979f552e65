import Foundation
import Memory
import SyntheticDumps
import Testing

/// A guest's vmcore made in code, which keeps every rule of its readers.
struct SyntheticVmcore {
  var memory = SyntheticMemory()
  var processors: [SyntheticNote] = [.processStatus(cpu: 0), .processStatus(cpu: 1)]
  var states: [SyntheticNote] = [Self.state, Self.state]
  var others: [SyntheticNote] = [.vmcoreinfo("OSRELEASE=6.1.0\n")]
  var provenance: SyntheticNote? = SyntheticNote(
    name: "VMCORESPLIT", type: 0x5653_504c, description: Array(provenanceText.utf8))
  var options = SyntheticELF()

  init() {
    for frame in [0, 1, 2, 0x100, 0x101] as [UInt64] {
      memory[PageFrameNumber(frame)] = [UInt8](
        repeating: UInt8(truncatingIfNeeded: frame), count: 4096)
    }
  }

  var file: SyntheticFile {
    var options = options
    options.notes = processors + states + others + [provenance].compactMap(\.self)
    return memory.elf(options)
  }

  /// QEMU's note: version 1, its size, and registers.
  private static var state: SyntheticNote {
    var bytes: [UInt8] = []
    bytes.append(littleEndian: UInt32(1))
    bytes.append(littleEndian: UInt32(440))
    return SyntheticNote(
      name: "QEMU", type: 0, description: bytes + [UInt8](repeating: 0, count: 432))
  }

  /// As the manual documents it, with spaces behind.
  private static let provenanceText = """
    {"guest":{"backend":"KVM (AMD SVM)","findings":[],"kernels":[],"memory":{"bytes":20480,\
    "missing":{},"missingRuns":[],"pages":5,"present":5,"regions":[],"unlistedRuns":0,"zero":{}},\
    "name":"web1","pid":42,"processors":[]},"source":{"format":"ELF vmcore","path":"/crash/vmcore"},\
    "tool":"vmcore-split","version":"0.1.0"}        
    """
}

/// A vmcore that breaks rules.
struct BrokenVmcore: CustomTestStringConvertible, Sendable {
  let testDescription: String
  /// What the names of the rules that it breaks begin with.
  let rules: [String]
  let file: SyntheticFile

  init(_ description: String, breaks rules: String..., change: (inout SyntheticVmcore) -> Void) {
    testDescription = description
    self.rules = rules
    var vmcore = SyntheticVmcore()
    change(&vmcore)
    file = vmcore.file
  }

  init(
    _ description: String, breaks rules: String..., changeFile: (inout SyntheticFile) -> Void
  ) {
    testDescription = description
    self.rules = rules
    var file = SyntheticVmcore().file
    changeFile(&file)
    self.file = file
  }

  /// Where the file has the second and third program header: those of the loads.
  private static let firstLoad: UInt64 = 64 + 56
  private static let secondLoad: UInt64 = firstLoad + 56

  static let all: [BrokenVmcore] = [
    BrokenVmcore(
      "other machine", breaks: "64-bit little-endian ELF core",
      changeFile: { file in
        file.store(UInt16(183), at: 18)
      }),
    BrokenVmcore("section headers first", breaks: "program headers at offset 64") { vmcore in
      vmcore.options.style = .qemu
    },
    BrokenVmcore(
      "note behind the loads", breaks: "the first program header is the only PT_NOTE",
      changeFile: { file in
        file.store(UInt32(4), at: secondLoad)
      }),
    BrokenVmcore(
      "aligned load", breaks: "the first load has p_align 0",
      changeFile: { file in
        file.store(UInt64(4096), at: firstLoad + 48)
        // Memory is not compared here: any offset in the file will do.
        file.store(UInt64(4096), at: firstLoad + 8)
        file.store(UInt64(8192), at: secondLoad + 8)
        file.resize(to: 32768)
      }),
    BrokenVmcore(
      "load longer in memory", breaks: "loads are as long in the file as in memory",
      changeFile: { file in
        file.store(UInt64(3 * 4096), at: secondLoad + 40)
      }),
    BrokenVmcore(
      "load in the middle of a page", breaks: "loads begin and end on page boundaries",
      changeFile: { file in
        file.store(UInt64(0x100800), at: secondLoad + 24)
      }),
    BrokenVmcore(
      "overlapping loads", breaks: "loads ascend and do not overlap",
      changeFile: { file in
        file.store(UInt64(0x2000), at: secondLoad + 24)
      }),
    BrokenVmcore(
      "descending loads", breaks: "loads ascend and do not overlap",
      changeFile: { file in
        file.store(UInt64(0x200000), at: firstLoad + 24)
      }),
    BrokenVmcore(
      "cut file", breaks: "the file holds every load whole",
      changeFile: { file in
        file.resize(to: file.size - 1)
      }),
    BrokenVmcore(
      "notes behind memory", breaks: "notes lie before the first load",
      changeFile: { file in
        file.store(UInt64(0), at: firstLoad + 8)
        file.store(UInt64(0), at: firstLoad + 48)
      }),
    BrokenVmcore("vCPUs in disorder", breaks: "an NT_PRSTATUS of 336 bytes") { vmcore in
      vmcore.processors.swapAt(0, 1)
    },
    BrokenVmcore("short NT_PRSTATUS", breaks: "an NT_PRSTATUS of 336 bytes") { vmcore in
      vmcore.processors[1].description.removeLast(4)
    },
    BrokenVmcore("QEMU's note of one vCPU", breaks: "a QEMU note of version 1") { vmcore in
      vmcore.states.removeLast()
    },
    BrokenVmcore("QEMU's note of another version", breaks: "a QEMU note of version 1") { vmcore in
      vmcore.states[0].description[0] = 2
    },
    BrokenVmcore("nothing to find the kernel by", breaks: "VMCOREINFO, or QEMU notes") { vmcore in
      vmcore.others = []
      vmcore.states = []
    },
    BrokenVmcore("note that crash mistakes", breaks: "no other notes than ours") { vmcore in
      vmcore.others.append(SyntheticNote(name: "OTHER", type: 4, description: [0, 0, 0, 0]))
    },
    BrokenVmcore("no provenance", breaks: "a note of where it comes from") { vmcore in
      vmcore.provenance = nil
    },
    BrokenVmcore("provenance that is no JSON", breaks: "a note of where it comes from") { vmcore in
      vmcore.provenance?.description[0] = 0
    },
  ]
}

/// `vmcore-split check`.
struct CheckTests {
  @Test func soundVmcoreKeepsAllRules() throws {
    let vmcore = try SyntheticVmcore().file.save()
    let result = try Program.run(["check", vmcore.path], in: Folder())
    #expect(result.status == 0)
    #expect(result.errors.isEmpty)
    let lines = result.output.split(separator: "\n")
    #expect(lines.count > 10)
    for line in lines { #expect(line.hasPrefix("ok   ")) }
    #expect(lines.last?.hasSuffix("web1, out of /crash/vmcore") == true)
  }

  @Test(arguments: BrokenVmcore.all)
  func brokenRuleIsNamedAndNoOther(_ broken: BrokenVmcore) throws {
    let vmcore = try broken.file.save()
    let result = try Program.run(["check", vmcore.path], in: Folder())
    #expect(result.status == 1)
    let failed = result.output.split(separator: "\n").filter { $0.hasPrefix("FAIL ") }
      .map { String($0.dropFirst(5)) }
    #expect(failed.count == broken.rules.count, "\(failed)")
    for rule in broken.rules { #expect(failed.contains { $0.hasPrefix(rule) }, "\(failed)") }
  }

  /// The schema that the manual documents.
  @Test func reportInJSONHasRulesAndProvenance() throws {
    struct Report: Decodable {
      struct Rule: Decodable {
        var name: String
        var isKept: Bool
        var detail: String
      }
      struct Provenance: Decodable {
        struct Source: Decodable {
          var path: String
          var format: String
        }
        struct Guest: Decodable {
          var name: String
        }
        var tool: String
        var version: String
        var source: Source
        var guest: Guest
      }
      var rules: [Rule]
      var provenance: Provenance?
    }
    var vmcore = SyntheticVmcore()
    vmcore.others = []
    vmcore.states = []
    let file = try vmcore.file.save()
    let result = try Program.run(["check", "--json", file.path], in: Folder())
    #expect(result.status == 1)
    let report = try JSONDecoder().decode(Report.self, from: Data(result.output.utf8))
    #expect(report.rules.count { !$0.isKept } == 1)
    #expect(report.provenance?.source.path == "/crash/vmcore")
    #expect(report.provenance?.guest.name == "web1")
  }

  @Test func whatIsNeitherELFNorKdumpIsNotChecked() throws {
    let file = try SyntheticFile([UInt8](repeating: 0x20, count: 4096)).save()
    try expectError("check.unknown-format", ["check", file.path], in: Folder())
  }

  /// A kdump-compressed guest with a field of its headers changed, and the one rule that breaks.
  @Test(arguments: [
    ("kdump-compressed, header version 6", 8, 5),
    ("the header counts the vCPUs", 460, 7),
    ("the headers have VMCOREINFO's release", 12 + 2 * 65, 0x39),
    ("the headers have VMCOREINFO's release", 4096 + 3, 1),
    ("page descriptors lead to data", 424, 2),
    ("the sub-header leads to VMCOREINFO", 4096 + 32, 4),
  ])
  func brokenRuleOfKdumpIsNamedAndNoOther(_ rule: String, _ offset: Int, _ value: UInt8) throws {
    let folder = Folder()
    #expect(
      try Program.run([Sample.dump, "--format", "kdump-zlib", "-o", "k"], in: folder).status == 0)
    let sound = try Program.run(["check", "k"], in: folder)
    #expect(sound.status == 0)
    #expect(sound.output.split(separator: "\n").count >= 13)
    let file = try FileHandle(forWritingTo: URL(filePath: folder.file("k")))
    try file.seek(toOffset: UInt64(offset))
    try file.write(contentsOf: Data([value]))
    try file.close()
    let result = try Program.run(["check", "k"], in: folder)
    #expect(result.status == 1)
    let failed = result.output.split(separator: "\n").filter { $0.hasPrefix("FAIL ") }
    #expect(failed.count == 1, "\(failed)")
    #expect(failed.first?.hasPrefix("FAIL \(rule)") == true, "\(failed)")
  }

  @Test(arguments: [0, 63, 64 + 56, 400] as [UInt64])
  func fileThatEndsInItsHeadersIsNotChecked(_ size: UInt64) throws {
    var file = SyntheticVmcore().file
    file.resize(to: size)
    let vmcore = try file.save()
    try expectError("check.truncated", ["check", vmcore.path], in: Folder())
  }

  /// crash takes 64 MiB of notes; whoever makes a file so large gets no more memory for it.
  @Test func largeNoteAreaCostsNoMemory() throws {
    var file = SyntheticVmcore().file
    file.store(UInt64(63 << 20), at: 64 + 32)
    file.resize(to: 70 << 20)
    let vmcore = try file.save()
    let result = try Program.run(
      "sh", ["-c", "ulimit -v 81920; exec \"$@\"", "sh", Program.path, "check", vmcore.path],
      in: Folder())
    #expect(result.status == 1)
    #expect(result.output.contains("FAIL notes lie before the first load"))
    #expect(result.output.contains("note of where it comes from"))
  }

  /// A guest's name may hold what clears or colours the screen, also beyond ASCII (CSI is U+009B).
  @Test func nameCommandsNoTerminal() throws {
    var vmcore = SyntheticVmcore()
    let name = "we\u{9b}31m\u{202e}b1"
    let text = String(decoding: vmcore.provenance?.description ?? [], as: UTF8.self)
    vmcore.provenance?.description = Array(text.replacing("web1", with: name).utf8)
    let file = try vmcore.file.save()
    for options in [[], ["--json"]] {
      let result = try Program.run(["check", file.path] + options, in: Folder())
      #expect(result.status == 0)
      #expect(result.output.contains("31m"))
      #expect(!result.output.unicodeScalars.contains("\u{9b}"))
      #expect(!result.output.unicodeScalars.contains("\u{202e}"))
    }
  }

  /// What changes in a vmcore behind its notes is found by the sums in them.
  @Test(arguments: ["elf", "kdump-zlib"])
  func changedMemoryIsFoundByChecksums(_ format: String) throws {
    let folder = Folder()
    let extract = [Sample.dump, "--checksums", "--format", format, "-o", "sound"]
    #expect(try Program.run(extract, in: folder).status == 0)
    let sound = try Program.run(["check", "sound"], in: folder)
    #expect(sound.status == 0)
    #expect(sound.output.contains("ok   memory is what was written"))
    var bytes = try Data(contentsOf: URL(filePath: folder.file("sound")))
    // The last byte that is not zero is of a page.
    let last = try #require(bytes.lastIndex { $0 != 0 })
    bytes[last] ^= 1
    try bytes.write(to: URL(filePath: folder.file("changed")))
    let changed = try Program.run(["check", "changed"], in: folder)
    #expect(changed.status == 1)
    let failed = changed.output.split(separator: "\n").filter { $0.hasPrefix("FAIL ") }
    #expect(failed.count == 1, "\(failed)")
    #expect(failed.first?.contains("1 MiB of the file have changed") == true, "\(failed)")
    bytes[last] ^= 1
    try (bytes + Data(count: 1 << 20)).write(to: URL(filePath: folder.file("longer")))
    let longer = try Program.run(["check", "longer"], in: folder)
    #expect(longer.output.contains("the file has another size"))
  }

  @Test func streamHasNoChecksums() throws {
    let result = try Program.run([Sample.dump, "--checksums", "-o", "-"], in: Folder())
    #expect(result.status == 2)
    #expect(result.errors.contains("--checksums needs a file"))
  }

  @Test(arguments: ["no-such-vmcore", "."])
  func whatCannotBeReadIsNotChecked(_ path: String) throws {
    try expectError("check.cannot-read", ["check", path], in: Folder())
  }
}
