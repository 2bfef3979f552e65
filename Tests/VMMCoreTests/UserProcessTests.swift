import Guest
import KVMHost
import LinuxKernel
import Memory
import SyntheticDumps
import Testing
import X86

/// What is found of a process in the structures of its kernel.
@Suite struct UserProcessTests {
  private static func inList(_ types: inout KernelTypes) {
    types["mm_struct"].remove("mm_mt")
    types["mm_struct"] = CStructure([
      "pgd": .pointer(.void), "arg_start": .u64, "arg_end": .u64,
      "owner": .pointer(to: "task_struct"), "mmap": .pointer(to: "vm_area_struct"),
      "saved_auxv": .array(.u64, 8), "context": .named("mm_context_t"),
    ])
    types["vm_area_struct"] = CStructure([
      "vm_start": .u64, "vm_end": .u64, "vm_next": .pointer(to: "vm_area_struct"),
      "vm_flags": .u64, "vm_ops": .pointer(.void), "vm_pgoff": .u64,
      "vm_file": .pointer(to: "file"),
    ])
  }

  private static func start(_ index: Int) -> UInt64 { 0x1000_0000 + UInt64(index) * 0x5000 }

  /// - Parameter slots: of each node of the maple tree; nil: a list.
  private static func host(
    mappings count: Int, slots: Int?, seed: UInt64 = 1
  ) -> (host: ProcessHost, areas: [SyntheticObject]) {
    var options = SyntheticHost.Options()
    options.seed = seed
    if slots == nil { options.change = inList }
    var one = ProcessHost(options)
    // Some lie side by side, so that leaves have slots without gaps between.
    let areas = (0..<count).map { index in
      one.host.addMapping(
        start(index), pages: index.isMultiple(of: 3) ? 5 : 2, flags: UInt64(index % 8))
    }
    one.host.setMappings(of: one.process, to: areas, slots: slots ?? 8)
    return (one, areas)
  }

  @Test func `a process that has ended has no core`() throws {
    var one = ProcessHost()
    one.host.kernel.set(one.process.memory, "mm_users.counter", 0)
    let error = #expect(throws: KVMError.self) { try one.found() }
    #expect(error?.name == "kvm.process-ended")
    #expect(error?.problem.contains("4711") == true)
  }

  @Test(
    arguments: [0, 1, 2, 7, 40, 700], [nil, 2, 7, 8, 10] as [Int?])
  func `mappings are found in trees of any depth, and in lists`(count: Int, slots: Int?) throws {
    let process = try Self.host(mappings: count, slots: slots).host.found().process.process
    #expect(process.failures.isEmpty, "\(process.failures)")
    #expect(process.mappings.map(\.start.rawValue) == (0..<count).map(Self.start))
    #expect(
      process.mappings.map { $0.size >> pageShift }
        == (0..<count).map { $0.isMultiple(of: 3) ? 5 : 2 })
    #expect(process.mappings.map(\.flags.rawValue) == (0..<count).map { UInt64($0 % 8) })
  }

  @Test(arguments: [2, 3, 4, 5] as [UInt64])
  func `the numbers of node types are asked for`(seed: UInt64) throws {
    let process = try Self.host(mappings: 60, slots: 4, seed: seed).host.found().process.process
    #expect(process.failures.isEmpty)
    #expect(process.mappings.count == 60)
  }

  @Test func `a tree that runs in a circle ends with a finding`() throws {
    var (one, _) = Self.host(mappings: 60, slots: 4)
    // The root's first child is the root itself.
    let root = one.host.kernel.member(one.process.memory, "mm_mt")
    let address = one.host.kernel.load(root, "ma_root")
    let node = SyntheticObject(VirtualAddress(address & ~255), "maple_node")
    for body in ["ma64", "mr64"] {
      let slot = one.host.kernel.address(node, "\(body).slot[0]")
      one.host.kernel.store(address & ~3 | 4, at: slot)
    }
    let found = try one.found().process
    #expect(found.findings.map(\.name).contains("process.unreadable"))
    #expect(found.process.mappings.count < 60)
  }

  @Test func `a list that runs in a circle ends with a finding, and what came before is kept`()
    throws
  {
    var (one, areas) = Self.host(mappings: 20, slots: nil)
    one.host.kernel.set(areas[11], "vm_next", areas[4].address)
    let found = try one.found().process
    #expect(found.process.mappings.count == 12)
    #expect(found.findings.map(\.name) == ["process.unreadable"])
  }

  @Test func `a damaged node costs what is below it only`() throws {
    var (one, areas) = Self.host(mappings: 64, slots: 8)
    one.host.kernel.set(areas[9], "vm_start", 0x123)
    let found = try one.found().process
    #expect(found.process.mappings.count == 63)
    #expect(found.findings.map(\.name) == ["process.unreadable"])
  }

  // MARK: Files

  @Test func `files have the names that /proc shows`() throws {
    var one = ProcessHost()
    let pages = one.host.addFile()
    let root = one.host.addMount()
    let usr = one.host.addDentry("usr", in: root.root)
    let inner = one.host.addMount(on: root.mount, at: usr)
    let library = one.host.addDentry("lib", in: inner.root)
    let files: [(SyntheticObject, SyntheticObject, String)] = [
      (one.host.addDentry("libc.so.6", in: library), inner.mount, "/usr/lib/libc.so.6"),
      (one.host.addDentry("init", in: root.root), root.mount, "/init"),
      (
        one.host.addDentry("old", in: library, isDeleted: true), inner.mount,
        "/usr/lib/old (deleted)"
      ),
      (
        one.host.addDentry("memfd:ram", in: nil, naming: "simple_dname"), root.mount,
        "/memfd:ram (deleted)"
      ),
      (
        one.host.addDentry("kvm-vcpu:0", in: nil, naming: "anon_inodefs_dname"), root.mount,
        "anon_inode:kvm-vcpu:0"
      ),
      (
        one.host.addDentry("a\u{1b}[2J", in: usr, naming: "ext4_d_name"), root.mount,
        "/usr/a\u{1b}[2J"
      ),
    ]
    let areas = files.enumerated().map { index, file in
      let open = one.host.open(file.0, on: file.1, pages: pages)
      return one.host.addMapping(
        Self.start(index), pages: 1, file: open, filePage: UInt64(index))
    }
    one.host.setMappings(of: one.process, to: areas)
    let process = try one.found().process.process
    #expect(process.mappings.map { $0.file?.path } == files.map(\.2))
    #expect(process.mappings.map(\.filePage) == (0..<6).map { UInt64($0) })
  }

  @Test func `a path without end has no name, and the mapping stays`() throws {
    var one = ProcessHost()
    let root = one.host.addMount()
    let first = one.host.addDentry("a", in: root.root)
    let second = one.host.addDentry("b", in: first)
    one.host.kernel.set(first, "d_parent", second.address)
    let file = one.host.open(second, on: root.mount, pages: one.host.addFile())
    one.host.setMappings(
      of: one.process, to: [one.host.addMapping(0x1000, pages: 1, file: file)])
    let process = try one.found().process.process
    #expect(process.mappings.count == 1)
    #expect(process.mappings.first?.file != nil)
    #expect(process.mappings.first?.file?.path == nil)
  }

  // MARK: Threads

  private static let members: [(UserRegister, String)] = [
    (.r15, "r15"), (.rbp, "bp"), (.rax, "ax"), (.originalRAX, "orig_ax"), (.rip, "ip"),
    (.cs, "cs"), (.rflags, "flags"), (.rsp, "sp"), (.ss, "ss"), (.fsBase, "fsbase"),
    (.gsBase, "gsbase"),
  ]

  @Test(arguments: [false, true])
  func `threads have the registers on their kernel stacks`(hasFRED: Bool) throws {
    var options = SyntheticHost.Options()
    if hasFRED {
      options.change = { types in
        // The registers come first in it, wherever its seed puts other members.
        types.structures["fred_frame"] = CStructure(["regs": .array(.u64, 100)])
      }
    }
    let found = try ProcessHost(options, workers: [4800]).found().process
    #expect(found.findings.isEmpty, "\(found.findings)")
    let threads = found.process.threads
    #expect(threads.map(\.id) == ProcessHost.threads)
    for thread in threads {
      #expect(thread.name == "thread \(thread.id)")
      for (register, member) in Self.members {
        #expect(
          thread.registers?[register] == SyntheticHost.register(member, of: thread.id),
          "\(member) of \(thread.id)")
      }
    }
  }

  @Test func `the leader comes first wherever it is in the list`() throws {
    var one = ProcessHost()
    _ = one.host.setThreads(of: one.process, to: [5000, 5001, ProcessHost.pid, 5002])
    let process = try one.found().process.process
    #expect(process.threads.map(\.id) == [ProcessHost.pid, 5000, 5001, 5002])
    #expect(process.id == ProcessHost.pid)
    #expect(process.credentials.parent == 1)
    #expect(process.credentials.processGroup == 77)
    #expect(process.credentials.session == 78)
    #expect(process.credentials.user == 64055)
    #expect(process.credentials.nice == 5)
    #expect(process.auxiliaryVector == [3, 0x40, 33, 0x7ffd_0000, 0, 0])
  }

  @Test func `registers that are not there are not invented`() throws {
    var one = ProcessHost()
    one.host.kernel.set(one.tasks[1], "stack", 0)
    let found = try one.found().process
    #expect(found.process.threads.map { $0.registers != nil } == [true, false, true])
    #expect(found.findings.map(\.name) == ["process.thread-registers"])
  }

  @Test func `a running thread whose registers nobody saved is told of`() throws {
    var one = ProcessHost()
    one.host.kernel.set(one.tasks[2], "on_cpu", 1)
    one.host.kernel.set(one.tasks[2], "thread_info.cpu", 1)
    #expect(try one.found().process.findings.map(\.name) == ["process.thread-running"])
    // The host stopped it itself: there is a note of that task.
    let status = ThreadStatus(id: 4720).encoded
    #expect(try one.found(notes: [("CORE", 1, status)]).process.findings.isEmpty)
  }

  @Test(arguments: [false, true])
  func `a thread in user mode has the registers of its host processor`(isIsolated: Bool) throws {
    var one = ProcessHost()
    one.host.kernel.set(one.tasks[0], "on_cpu", 1)
    one.host.kernel.set(one.tasks[0], "thread_info.cpu", 1)
    var user = RegisterFile()
    let source = RegisterSource(.hostProcessor, "")
    user[.rip] = .known(0x55_1234, source)
    user[.cr3] = .known(
      one.process.tables.root.rawValue + (isIsolated ? 0x1000 : 0) | 0x801, source)
    user[.cs] = .known(
      Segment(selector: 0x33, base: 0, limit: 0, attributes: SegmentAttributes(descriptor: 0)),
      source)
    user[.fs] = .known(
      Segment(selector: 0, base: 0x7f77, limit: 0, attributes: SegmentAttributes(descriptor: 0)),
      source)
    func notes(_ file: RegisterFile) -> [(name: String, type: UInt32, descriptor: [UInt8])] {
      [RegisterFile(), file].map { ("QEMU", 0, ProcessorNotes.qemuState($0)) }
    }
    let thread = try one.found(notes: notes(user)).process.process.threads[0]
    #expect(thread.registers?[.rip] == 0x55_1234)
    #expect(thread.registers?[.fsBase] == 0x7f77)
    #expect(thread.registers?[.originalRAX] == .max)
    // In another address space, such as a guest's, it is not the thread that is in user mode.
    user[.cr3] = .known(0x55_5000, source)
    let other = try one.found(notes: notes(user)).process
    #expect(
      other.process.threads[0].registers?[.rip]
        == SyntheticHost.register("ip", of: ProcessHost.pid))
    #expect(other.findings.isEmpty)
  }
}
