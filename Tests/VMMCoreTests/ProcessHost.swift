import DumpFiles
import Guest
import KVMHost
import LinuxKernel
import Memory
import Output
import SyntheticDumps
import SystemPackage
import Testing
import VMMCore
import X86

/// A host with one guest, of whose VMM the kernel has everything: a process with mappings and threads.
struct ProcessHost {
  static let pid: Int32 = 4711
  static let threads: [Int32] = [4711, 4713, 4720]

  var host: SyntheticHost
  let process: SyntheticHost.Process
  private(set) var tasks: [SyntheticObject] = []

  init(_ options: SyntheticHost.Options = .init(), workers: [Int32] = []) {
    host = SyntheticHost(options)
    process = host.addProcess(
      pid: Self.pid, arguments: ["qemu-system-x86_64", "-name", "web1"])
    _ = host.addMachine(
      process,
      slots: [.init(id: 0, guestFrame: 0, pages: 16, address: VirtualAddress(0x7f00_0000_0000))])
    tasks = host.setThreads(of: process, to: Self.threads, workers: workers)
    for (index, word) in [3, 0x40, 33, 0x7ffd_0000, 0, 0, 77, 78].enumerated() {
      host.kernel.set(process.memory, "saved_auxv[\(index)]", UInt64(word))
    }
    host.setMappings(of: process, to: [])
  }

  /// A page of the process with these bytes.
  mutating func map(
    _ address: UInt64, _ bytes: [UInt8], as use: SyntheticHost.Use = .anonymous
  ) -> PageFrameNumber {
    let frame = host.frame(bytes, as: use)
    process.tables.map(VirtualAddress(address), to: frame, in: &host.kernel.machine)
    return frame
  }

  /// The dump of the host.
  func source(
    level: DumpLevel? = [], excluding excluded: Set<PageFrameNumber> = []
  ) throws -> (source: SyntheticSource, kernel: LinuxKernel) {
    var host = host
    let text = host.finish()
    var source = SyntheticSource(host.kernel.machine.memory, dumpLevel: level)
    source.excluded = excluded
    let vmcoreinfo = try #require(Vmcoreinfo(text: Array(text.utf8)))
    return (source, try LinuxKernel(vmcoreinfo, in: source))
  }

  /// What is found of the process.
  func found(
    level: DumpLevel? = [], excluding excluded: Set<PageFrameNumber> = [],
    notes: [(name: String, type: UInt32, descriptor: [UInt8])] = []
  ) throws -> (process: VMMProcess, source: SyntheticSource) {
    let (source, kernel) = try source(level: level, excluding: excluded)
    let host = try KVMHost(kernel, in: source, processors: HostProcessors(notes: notes))
    let guest = try #require(try host.guests().guests.first)
    return (try #require(try host.process(of: guest.identity)), source)
  }
}

/// Writes the core of a process and opens it.
func writeCore(
  of process: VMMProcess, in source: any FrameSource, adding notes: [Note] = []
) throws -> (core: DumpFile, summary: ProcessCoreWriter.Summary) {
  let path = try TemporaryFile()
  let summary = try ProcessCoreWriter(
    process.process, memory: process.memory, in: source, adding: notes
  ).write(
    to: try OutputFile(FilePath(path.path), force: true), threads: 2, progress: MoveProgress())
  return (try DumpFile.open([FilePath(path.path)]), summary)
}

/// A page full of one byte.
func page(_ byte: UInt8) -> [UInt8] { [UInt8](repeating: byte, count: Int(pageSize)) }

extension DumpFile {
  /// The page of a process's core at an address.
  func page(at address: UInt64) throws -> [UInt8] { try page(PageFrameNumber(address >> 12)) }
}
