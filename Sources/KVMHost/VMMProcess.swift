import Guest
import LinuxKernel
import Memory
import X86

/// The process that runs a guest, out of the dump of its host.
public struct VMMProcess: Sendable {
  /// With registers of threads that were in user mode when the host was stopped from outside.
  public let process: UserProcess
  /// The process's memory: a region for each mapping of RAM.
  public let memory: PageMap<VirtualAddress>
  /// What is not known of the process.
  public let findings: [Finding]

  init(_ machine: VirtualMachine, on host: KVMHost) throws(KernelError) {
    let mm = try machine.object["mm"].required()
    let filter = FilteredPages(on: host)
    let tables = try host.kernel.pageTables(of: mm)
    var process = try host.kernel.process(of: mm) { address throws(MemoryError) in
      try filter.page(at: address, of: tables)
    }
    var findings = process.failures.map { failure in
      Finding(
        .warning, "process.unreadable",
        "a part of what the host's kernel has of the process cannot be read: \(failure.problem)")
    }
    for (index, thread) in process.threads.enumerated() {
      let current = CurrentThread(thread, of: process, on: host)
      process.threads[index] = current.thread
      if let finding = current.finding { findings.append(finding) }
    }
    self.process = process
    self.findings = findings
    let mappings = process.mappings.filter(\.hasMemory)
    memory = PageMap(
      regions: mappings.map(\.region),
      backing: VMMMemory(
        mappings: mappings, tables: process.tables, filter: filter,
        kernel: host.kernel.memory))
  }
}

extension KVMHost {
  /// The process that runs a guest; nil if no VM is that guest's.
  public func process(of guest: GuestIdentity) throws(KVMError) -> VMMProcess? {
    guard let machine = try machines().machines.first(where: { $0.identity == guest }) else {
      return nil
    }
    guard !machine.processHasEnded else { throw .processEnded(id: machine.identity.pid) }
    do throws(KernelError) {
      return try VMMProcess(machine, on: self)
    } catch {
      throw .machine(at: machine.object.address, error)
    }
  }
}

extension ProcessMapping {
  fileprivate var region: PageRegion<VirtualAddress> {
    PageRegion(
      start: start, size: size, isReadOnly: !flags.contains(.writable), origin: "mapping")
  }
}

/// A thread with its registers as they were when the host was stopped, as far as the dump tells.
private struct CurrentThread {
  private(set) var thread: ProcessThread
  private(set) var finding: Finding?

  init(_ thread: ProcessThread, of process: UserProcess, on host: KVMHost) {
    self.thread = thread
    if let processor = thread.processor,
      let live = host.processors.userRegisters(onProcessor: processor, in: process.tables)
    {
      self.thread = thread.with(live)
      return
    }
    if let failure = thread.registersFailure {
      finding = Finding(
        .warning, "process.thread-registers",
        "thread \(thread.id): its registers are not known, and are 0 in the core:"
          + " \(failure.problem)")
    } else if let processor = thread.processor, !host.processors.wereStoppedFromOutside,
      !host.processors.stoppedTasks.contains(UInt32(bitPattern: thread.id))
    {
      finding = Finding(
        .warning, "process.thread-running",
        "thread \(thread.id) was running on host CPU \(processor), of which the dump has no"
          + " registers: if it was in user mode, its registers are those with which it entered the"
          + " kernel last")
    }
  }
}

/// A process's memory through its page tables, and through what its mappings map.
private struct VMMMemory: MemoryBacking {
  /// Ascending and apart from each other.
  let mappings: [ProcessMapping]
  let tables: PageTables
  let filter: FilteredPages
  /// The kernel's own address space.
  let kernel: VirtualMemory

  func runs(from start: VirtualAddress, pages: UInt64) -> [PageRun<VirtualAddress>] {
    guard let mapping = mapping(holding: start) else { return [] }
    var builder = PageRunBuilder<VirtualAddress>()
    var process = ProcessMemory(tables, in: filter.memory, swap: filter.entries)
    let source = source(of: mapping)
    let total = min(pages, mapping.end.distance(from: start) >> pageShift)
    var done: UInt64 = 0
    while done < total {
      let address = start + done << pageShift
      let (page, bytes) = process.lookUp(address)
      let count = max(1, min(bytes >> pageShift, total - done))
      switch (page, source) {
      case (.unmapped, .kernel(let image)):
        appendKernelPage(image + address.distance(from: mapping.start), at: address, to: &builder)
        done += 1
        continue
      case (.unmapped, .unknown):
        builder.append(
          PageRun(start: address, pages: count, content: .missing(.specialEntry)))
      case (.unmapped, .file(let file)):
        filter.append(page, at: address, pages: count, file: file, to: &builder)
      default:
        filter.append(page, at: address, pages: count, file: nil, to: &builder)
      }
      done += count
    }
    return builder.runs
  }

  /// What a page has that the process's tables do not map.
  private enum Source {
    case zero
    case file(FilePages<VirtualAddress>)
    case kernel(VirtualAddress)
    case unknown
  }

  private func source(of mapping: ProcessMapping) -> Source {
    switch mapping.backing {
    case .anonymous: return .zero
    // Files of hugetlbfs count in pages of their own size, and keep their pages mapped.
    case .file where mapping.flags.contains(.hugetlb): return .zero
    case .file(let file):
      return filter.pages(of: file, from: mapping.filePage, at: mapping.start)
        .map { .file($0) } ?? .unknown
    case .kernel(let image): return .kernel(image)
    case .special: return .unknown
    }
  }

  /// A page that the kernel would have mapped of its own image.
  private func appendKernelPage(
    _ page: VirtualAddress, at address: VirtualAddress,
    to builder: inout PageRunBuilder<VirtualAddress>
  ) {
    if let physical = try? kernel.translate(page) {
      filter.appendFrames(physical.frame, at: address, pages: 1, to: &builder)
    } else {
      builder.append(PageRun(start: address, pages: 1, content: .missing(.pageTableMissing)))
    }
  }

  private func mapping(holding address: VirtualAddress) -> ProcessMapping? {
    let next = mappings.partitioningIndex { $0.start > address }
    guard next > 0, address < mappings[next - 1].end else { return nil }
    return mappings[next - 1]
  }
}
