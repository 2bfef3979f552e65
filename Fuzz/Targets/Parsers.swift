import Compression
import ControlBlocks
import DumpFiles
import Glibc
import Guest
import GuestVmcore
import KVMHost
import LinuxKernel
import Memory
import QEMUProcess
import SyntheticDumps
import SystemPackage
import X86

/// What is fuzzed: a parser, and inputs to start from.
struct Parser {
  let name: String
  let seeds: () -> [[UInt8]]
  /// Makes what takes an input; the costly part is done once.
  let makeBody: () -> ([UInt8]) -> Void
}

var parsers: [Parser] {
  [
    Parser(name: "elf", seeds: { elfSeeds }) { onFile(openDump) },
    Parser(name: "core", seeds: { coreSeeds }) { onFile(openDump) },
    Parser(name: "kdump", seeds: { kdumpSeeds }) { onFile(openDump) },
    Parser(name: "flattened", seeds: { flattenedSeeds }) { onFile(openDump) },
    Parser(name: "check", seeds: { elfSeeds + kdumpSeeds }) {
      onFile { path in
        _ = try? VmcoreCheck(path)
      }
    },
    Parser(name: "lzo-rle", seeds: { lzoSeeds }) {
      { bytes in
        var page = [UInt8](repeating: 0, count: 4096)
        _ = unsafe bytes.withUnsafeBytes { stored in
          unsafe page.withUnsafeMutableBytes { unsafe LZORLE.decompress(stored, into: $0) }
        }
      }
    },
    Parser(name: "vmcoreinfo", seeds: { [Array(vmcoreinfo.utf8)] }) {
      { bytes in
        guard let info = Vmcoreinfo(text: bytes) else { return }
        _ = (info.release, info.buildID, info.symbol("init_task"), info.number("phys_base"))
        _ = (info.offset("list_head.next"), info.size("page"), info.length("mem_section"))
        _ = Vmcoreinfo.note(in: bytes, at: 0)
      }
    },
    Parser(name: "vmcsinfo", seeds: { vmcsinfoSeeds }) {
      { bytes in
        guard let layout = VMCSLayout(contents: bytes, origin: "fuzz") else { return }
        _ = layout.text
        let region = (0..<4096).map { UInt8(truncatingIfNeeded: $0 &* 7) }
        _ = DecodedVMCS(layout: layout, region: region).registers()
      }
    },
    Parser(name: "provenance", seeds: { provenanceSeeds }) { { _ = Provenance(encoded: $0) } },
    Parser(name: "btf", seeds: { btfSeeds }) {
      { bytes in
        guard let btf = try? BTF(bytes) else { return }
        for name in ["task", "outer", "list_head", ""] {
          guard let type = btf.structure(named: name) else { continue }
          for member in type.members { _ = (member.byteOffset, member.type.size, member.type.name) }
          _ = type.member("next")
        }
        _ = btf.enumerator(named: "PG_lru")
        _ = try? BTF(bytes, base: btf)
      }
    },
    Parser(name: "notes", seeds: { noteSeeds }) {
      { bytes in
        for name in ["KVMINFO", "VMCSINFO", "VMCS", "VMCB"] {
          let notes = ControlBlockNotes([(name, 0, bytes)])
          _ = notes.info
          for index in 0..<2 {
            _ = notes.registers(of: index, runningNestedGuest: index == 1)
          }
          _ = notes.structures(
            of: GuestIdentity(name: nil, uuid: nil, pid: 1, command: nil, backend: "fuzz"))
        }
      }
    },
    Parser(name: "prstatus", seeds: { [SyntheticNote.processStatus(cpu: 0).description] }) {
      { bytes in
        _ = ProcessorNotes.pid(inProcessStatus: bytes)
        _ = ProcessorNotes.registers(
          inQEMUState: bytes, source: RegisterSource(.hostProcessor, ""))
        _ = HostProcessors(notes: [("CORE", 1, bytes), ("QEMU", 0, bytes)])
      }
    },
    Parser(name: "page-tables", seeds: { pageTableSeeds }) {
      { bytes in
        var memory = SyntheticMemory()
        memory.write(bytes, at: PhysicalAddress(0))
        for levels in 4...5 {
          var walker = PageTableWalker(
            PageTables(root: PhysicalAddress(0), levels: levels), in: memory)
          var address = VirtualAddress(0)
          for _ in 0..<64 {
            let (_, span) = walker.lookUp(address)
            address = VirtualAddress((address.rawValue | (span - 1)) &+ 1)
          }
        }
      }
    },
    Parser(name: "kernel", seeds: { patchSeeds }) {
      let host = FuzzedHost(.init())
      return { bytes in
        guard let info = Vmcoreinfo(text: host.vmcoreinfo) else { return }
        guard let kernel = try? LinuxKernel(info, in: host.patched(bytes)) else { return }
        _ = kernel.symbol("init_task")
        _ = try? kernel.structure("kvm")
      }
    },
    Parser(name: "dwarf", seeds: { dwarfSeeds }) {
      let host = FuzzedHost(.init())
      let text = host.vmcoreinfo + Array("BUILD-ID=\(debugBuildID)\n".utf8)
      let info = Vmcoreinfo(text: text)
      return onFile { path in
        guard let info else { return }
        let files = DebugInformation(only: .dwarf, vmlinux: path.string, folders: [])
        let kernel = try? LinuxKernel(info, in: host.memory, debug: files)
        _ = try? kernel?.structure("outer")
      }
    },
    Parser(name: "amd-host", seeds: { patchSeeds }) {
      let host = FuzzedHost(.init())
      return { host.analyse($0) }
    },
    Parser(name: "intel-host", seeds: { patchSeeds }) {
      var options = SyntheticHost.Options()
      options.vendor = "kvm_intel"
      options.modules = ["kvm", "kvm_intel"]
      let host = FuzzedHost(options)
      return { host.analyse($0) }
    },
    Parser(name: "qemu", seeds: { patchSeeds }) {
      let core = FuzzedCore()
      return { core.analyse($0) }
    },
  ]
}

// MARK: - Files

/// Gives the input to `body` as a file.
private func onFile(_ body: @escaping (FilePath) -> Void) -> ([UInt8]) -> Void {
  let file = unsafe memfd_create("input", UInt32(MFD_CLOEXEC))
  let path = FilePath("/proc/self/fd/\(file)")
  return { bytes in
    guard ftruncate(file, 0) == 0,
      unsafe bytes.withUnsafeBytes({ unsafe writeAll($0, to: file, at: 0) }) == nil
    else { return }
    body(path)
  }
}

/// Opens a dump and reads what it says it has.
private func openDump(_ path: FilePath) {
  guard let dump = try? DumpFile.open(path) else { return }
  _ = (dump.vmcoreinfo, dump.formatDescription, dump.process?.threads)
  for range in dump.frameRanges.prefix(8) {
    _ = dump.presence(from: range.lowerBound, limit: 1 << 20)
    for frame in [range.lowerBound, range.upperBound - 1] { _ = try? dump.page(frame) }
    var room = [UInt8](repeating: 0, count: 8 * Int(pageSize))
    _ = unsafe room.withUnsafeMutableBytes {
      unsafe dump.makeReader().read(from: range.lowerBound, into: $0)
    }
  }
  _ = dump.damage
}

private let vmcoreinfo = """
  OSRELEASE=6.1.0
  BUILD-ID=0123456789abcdef0123456789abcdef01234567
  PAGESIZE=4096
  SYMBOL(init_uts_ns)=ffffffff82a13000
  SYMBOL(swapper_pg_dir)=ffffffff82a10000
  SIZE(page)=64
  OFFSET(list_head.next)=0
  LENGTH(mem_section)=2048
  NUMBER(phys_base)=-16777216
  KERNELOFFSET=1000000

  """

private var notes: [SyntheticNote] { [.processStatus(cpu: 0), .vmcoreinfo(vmcoreinfo)] }

private var memory: SyntheticMemory {
  var generator = SeededGenerator(seed: 3)
  return SyntheticMemory(randomIn: [0..<4, 6..<8], using: &generator)
}

private var lzoSeeds: [[UInt8]] {
  let page = (0..<4096).map { UInt8(truncatingIfNeeded: $0 % 37 | $0 / 300) }
  let zeros: [UInt8] = [17, 1, 21, 1, 2, 3, 4, 0x18, 0xfd, 0xff, 7, 9, 17, 0, 0]
  return [SyntheticDumps.Compression.lzo.compressed(page) ?? [], zeros]
}

private var elfSeeds: [[UInt8]] {
  [
    memory.elf(SyntheticELF(notes: notes)).bytes,
    memory.elf(SyntheticELF(style: .qemu, notes: notes, hasExtendedCount: true)).bytes,
  ]
}

private var kdumpSeeds: [[UInt8]] {
  Compression.allCases.map { compression in
    var options = SyntheticKdump()
    options.compression = compression
    options.level = 1
    options.notes = notes
    options.vmcoreinfo = vmcoreinfo
    return memory.kdump(options).bytes
  }
}

private var flattenedSeeds: [[UInt8]] {
  var generator = SeededGenerator(seed: 12)
  return [memory.elf(SyntheticELF(notes: notes)), memory.kdump(SyntheticKdump())].map {
    SyntheticFile(flattened: $0.records(using: &generator)).bytes
  }
}

private var coreSeeds: [[UInt8]] {
  var core = SyntheticCore()
  core.mappings = [
    SyntheticCore.Mapping(0x40_0000, size: 0x2000, file: "/usr/bin/vmm"),
    SyntheticCore.Mapping(0x7f00_0000_0000, size: 0x4000),
  ]
  core.auxiliaryVector = [(6, 4096), (9, 0x40_0000)]
  core.store(UInt64(1), at: 0x7f00_0000_1000)
  return [core.file.bytes]
}

// MARK: - Texts and tables

private var vmcsinfoSeeds: [[UInt8]] {
  [
    Array(SyntheticVMCSLayout(seed: 1).text().utf8),
    Array(SyntheticVMCSLayout(seed: 2, accessRights: .plain).text(bits: false).utf8),
  ]
}

private var provenanceSeeds: [[UInt8]] {
  [
    Array(
      """
      {"guest":{"backend":"KVM (AMD SVM)","findings":[],"kernels":[],"memory":{"bytes":20480,\
      "missing":{},"missingRuns":[],"pages":5,"present":5,"regions":[],"unlistedRuns":0,"zero":{}},\
      "name":"web1","pid":42,"processors":[]},"source":{"format":"ELF vmcore","path":"/vmcore"},\
      "tool":"vmcore-split","version":"0.1.0"}
      """.utf8)
  ]
}

private var btfSeeds: [[UInt8]] {
  var builder = BTFBuilder()
  let int = builder.integer("int")
  let list = builder.structure("list_head", size: 16, [("next", builder.pointer(3), 0)])
  let inner = builder.structure("", size: 8, [("a", int, 0), ("b", int, 32)])
  let union = builder.structure("", size: 8, union: true, [("", inner, 0), ("c", int, 0)])
  _ = builder.structure("outer", size: 32, [("d", int, 0), ("", union, 64), ("l", list, 128)])
  _ = builder.structure("task", size: 16, [("many", builder.array(int, 4), 0)])
  _ = builder.typedef("int_t", int)
  return [builder.bytes]
}

private let debugBuildID = "0123456789abcdef0123456789abcdef01234567"

/// What the machine's compiler makes, relocatable as modules are: each version of DWARF, and compressed
/// sections.
private var dwarfSeeds: [[UInt8]] {
  let source = """
    struct list { struct list *next, *previous; };
    enum mode { OUTSIDE, INSIDE = 7 };
    union either { int number; char bytes[12]; };
    struct outer { int a; union { long whole; struct { int low, high; }; }; struct list list;
      unsigned b1 : 3, b2 : 9; enum mode mode; union either either[3]; void (*call)(int); } it;
    """
  return ["-gdwarf-4", "-gdwarf-5", "-gz=zlib"].compactMap { option in
    let command = """
      folder=$(mktemp -d) && cd "$folder" && echo '\(source)' | cc -c -x c -g \(option) -o a.o - \
        && ld -r --build-id=0x\(debugBuildID) -o b.o a.o && cat b.o; rm -r "$folder"
      """
    guard let output = unsafe popen(command, "r") else { return nil }
    defer { unsafe pclose(output) }
    var bytes = [UInt8](repeating: 0, count: 1 << 16)
    let count = unsafe fread(&bytes, 1, bytes.count, output)
    return count > 0 ? Array(bytes.prefix(count)) : nil
  }
}

private var noteSeeds: [[UInt8]] {
  let registers = RegisterFile.unknown(because: "of the seed")
  let info = KVMInfo(
    backend: "KVM (AMD SVM)", isEncrypted: false,
    slots: [
      KVMInfo.Slot(
        id: 0, start: GuestPhysicalAddress(0), size: 0x2000,
        userspaceAddress: VirtualAddress(0x7f00_0000_0000), isReadOnly: false)
    ],
    processors: [VirtualProcessor(index: 0, state: .exited, registers: registers)], findings: [])
  var block = [UInt8](repeating: 0, count: 32 + 4096)
  block[0] = 1
  return [Array(info.text.utf8), block] + vmcsinfoSeeds
}

/// Tables that lead to each other, and to themselves.
private var pageTableSeeds: [[UInt8]] {
  var bytes: [UInt8] = []
  for table in 0..<6 as Range<UInt64> {
    for entry in 0..<512 as Range<UInt64> {
      bytes.append(littleEndian: ((table + entry) % 7) << 12 | (entry % 3 == 0 ? 0x87 : 7))
    }
  }
  return [bytes]
}

// MARK: - Structures in memory

/// Inputs that change words of a memory: 12 bytes each, where and what.
private var patchSeeds: [[UInt8]] {
  var generator = SeededGenerator(seed: 5)
  return (0..<32).map { count in
    (0...count % 4).flatMap { _ in
      (0..<12).map { _ in UInt8.random(in: 0...255, using: &generator) }
    }
  }
}

/// What an input does to a memory.
private func patches(
  _ bytes: [UInt8], places: [PhysicalAddress], pointers: [UInt64]
) -> [(PhysicalAddress, UInt64)] {
  stride(from: 0, to: min(bytes.count, 12 * 64), by: 12).compactMap { start in
    guard let place: UInt32 = bytes.load(at: start), let value: UInt64 = bytes.load(at: start + 4)
    else { return nil }
    // Pointers are not found by chance.
    let isPointer = place >> 31 != 0 && !pointers.isEmpty
    return (
      places[Int(place & 0x7fff_ffff) % places.count],
      isPointer ? pointers[Int(value % UInt64(pointers.count))] &+ ((value >> 60) << 3) : value
    )
  }
}

/// A host with one guest, whose structures inputs change.
private struct FuzzedHost {
  let memory: SyntheticMemory
  let vmcoreinfo: [UInt8]
  private let kernel: LinuxKernel?
  private let places: [PhysicalAddress]
  private let pointers: [UInt64]

  init(_ options: SyntheticHost.Options) {
    var host = SyntheticHost(options)
    let ram = VirtualAddress(0x7f12_3456_0000)
    let process = host.addProcess(pid: 4711, arguments: ["qemu", "-name", "web1"])
    for page in 0..<3 as Range<UInt64> {
      let frame = host.frame([UInt8](repeating: 0x31, count: Int(pageSize)))
      process.tables.map(ram + page << pageShift, to: frame, in: &host.kernel.machine)
    }
    _ = host.addMachine(
      process, slots: [.init(id: 0, guestFrame: 0, pages: 16, address: ram)], processors: 2,
      node: 0)
    vmcoreinfo = Array(host.finish().utf8)
    memory = host.kernel.machine.memory
    let kernel = Vmcoreinfo(text: vmcoreinfo).flatMap { [memory] in
      try? LinuxKernel($0, in: memory)
    }
    self.kernel = kernel
    let objects = host.kernel.objects
    let inObjects = objects.flatMap { object, size in
      stride(from: 0, to: UInt64(size), by: 8).compactMap {
        try? kernel?.memory.translate(object.address + $0)
      }
    }
    let all = memory.frames.flatMap { frame in
      stride(from: 0, to: pageSize, by: 8).map { frame.address + $0 }
    }
    places = inObjects.isEmpty ? all : inObjects + inObjects + all
    pointers = objects.map(\.object.address.rawValue)
  }

  func patched(_ bytes: [UInt8]) -> SyntheticMemory {
    var memory = memory
    for (place, value) in patches(bytes, places: places, pointers: pointers) {
      memory.store(value, at: place)
    }
    return memory
  }

  func analyse(_ bytes: [UInt8]) {
    guard let kernel else { return }
    let source = SyntheticSource(patched(bytes), dumpLevel: [])
    guard
      let host = try? KVMHost(
        kernel.seen(through: source), in: source, processors: HostProcessors(notes: [])),
      let found = try? host.guests()
    else { return }
    for guest in found.guests.prefix(3) {
      _ = MemorySurvey(of: guest.memory)
      _ = GuestKernels(of: guest, in: source, threads: 1)
      _ = try? host.process(of: guest.identity)
    }
  }
}

/// The core of a QEMU, whose structures inputs change.
private struct FuzzedCore {
  private let core = SyntheticQEMU.pc.core
  private let places: [PhysicalAddress]
  private let pointers: [UInt64]

  init() {
    let words = core.memory.frames.flatMap { frame in
      stride(from: 0, to: pageSize, by: 8).map { frame.address + $0 }
    }
    let memory = core.memory
    let isUsed = words.filter { memory.bytes(at: $0, count: 8) != [UInt8](repeating: 0, count: 8) }
    // RAM of the guest is most of it, and no structure.
    places = isUsed.filter { $0.rawValue < 0x7e00_0000_0000 }
    pointers = places.compactMap { memory.bytes(at: $0, count: 8).load(at: 0) as UInt64? }
      .filter { $0 > 0x1000_0000 }
  }

  func analyse(_ bytes: [UInt8]) {
    var core = core
    for (place, value) in patches(bytes, places: places, pointers: pointers) {
      core.memory.store(value, at: place)
    }
    guard let file = try? core.file.save(), let dump = try? DumpFile.open(FilePath(file.path)),
      let process = dump.process,
      let qemu = try? QEMUProcess(process, in: dump, isTruncated: dump.isIncomplete)
    else { return }
    let guest = qemu.guest()
    _ = MemorySurvey(of: guest.memory)
    _ = GuestKernels(of: guest, in: dump, threads: 1)
  }
}
