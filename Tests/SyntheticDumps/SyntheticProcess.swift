import Memory

/// What a host's kernel keeps of a process besides its page tables: mappings, files, threads.
extension SyntheticHost {
  /// `THREAD_SIZE` of the kernel.
  public static let stackSize: UInt64 = 0x4000

  /// `enum maple_type` and `enum pid_type` of this kernel, in an order of its own.
  var processEnumerations: [CEnumeration] {
    [
      mapleTypes.enumerated().map { ($1, Int32($0)) },
      [("PIDTYPE_PID", 0), ("PIDTYPE_TGID", 1), ("PIDTYPE_PGID", 2), ("PIDTYPE_SID", 3)],
    ]
  }

  private var mapleTypes: [String] {
    var generator = SeededGenerator(seed: options.seed &+ 99)
    return ["maple_dense", "maple_leaf_64", "maple_range_64", "maple_arange_64"]
      .shuffled(using: &generator)
  }

  // MARK: Files

  /// A file system's root; without a parent, that of all mounts.
  public mutating func addMount(
    on parent: SyntheticObject? = nil, at place: SyntheticObject? = nil
  ) -> (mount: SyntheticObject, root: SyntheticObject) {
    let mount = kernel.make("mount")
    let root = addDentry("/", in: nil)
    kernel.set(mount, "mnt.mnt_root", root.address)
    kernel.set(mount, "mnt_parent", (parent ?? mount).address)
    kernel.set(mount, "mnt_mountpoint", (place ?? root).address)
    return (mount, root)
  }

  /// - Parameter naming: the kernel's function that names it, if it is in no directory.
  public mutating func addDentry(
    _ name: String, in parent: SyntheticObject?, isDeleted: Bool = false, naming: String? = nil
  ) -> SyntheticObject {
    let dentry = kernel.make("dentry")
    kernel.set(dentry, "d_parent", (parent ?? dentry).address)
    kernel.set(dentry, "d_name.name", kernel.string(name))
    kernel.set(dentry, "d_name.len", UInt64(name.utf8.count))
    kernel.set(dentry, "d_hash.pprev", isDeleted ? 0 : dentry.address.rawValue)
    kernel.set(dentry, "d_op", 0)
    if let naming {
      let operations = kernel.make("dentry_operations")
      let function = kernel.address(of: naming) ?? kernel.define(naming, size: 16)
      kernel.set(operations, "d_dname", function)
      kernel.set(dentry, "d_op", operations.address)
    }
    return dentry
  }

  /// An open file.
  public mutating func open(
    _ dentry: SyntheticObject, on mount: SyntheticObject, pages: SyntheticObject
  ) -> SyntheticObject {
    let file = kernel.make("file")
    kernel.set(file, "f_path.dentry", dentry.address)
    kernel.set(file, "f_path.mnt", kernel.address(mount, "mnt"))
    kernel.set(file, "f_mapping", pages.address)
    return file
  }

  // MARK: Mappings

  /// Permissions of ``addMapping(_:pages:flags:file:filePage:isSpecial:)``: VM_READ and others.
  public static let readable: UInt64 = 1
  public static let writable: UInt64 = 2
  public static let device: UInt64 = 0x4000

  public mutating func addMapping(
    _ start: UInt64, pages: UInt64, flags: UInt64 = readable | writable,
    file: SyntheticObject? = nil, filePage: UInt64 = 0, isSpecial: Bool = false
  ) -> SyntheticObject {
    let area = kernel.make("vm_area_struct")
    kernel.set(area, "vm_start", start)
    kernel.set(area, "vm_end", start + pages << pageShift)
    kernel.set(area, kernel.has(area, "vm_flags") ? "vm_flags" : "__vm_flags", flags)
    kernel.set(area, "vm_pgoff", filePage)
    kernel.set(area, "vm_file", file?.address.rawValue ?? 0)
    kernel.set(area, "vm_ops", isSpecial ? area.address.rawValue : 0)
    return area
  }

  /// Gives a process its mappings: in a maple tree, or, if its type has none, in a list.
  ///
  /// - Parameter slots: of each node of the tree, at most 10.
  public mutating func setMappings(
    of process: Process, to areas: [SyntheticObject], slots: Int = 8
  ) {
    kernel.set(process.memory, "context.vdso", 0)
    kernel.set(process.memory, "context.vdso_image", 0)
    guard kernel.has(process.memory, "mm_mt") else {
      kernel.set(process.memory, "mmap", areas.first?.address.rawValue ?? 0)
      for (index, area) in areas.enumerated() {
        kernel.set(
          area, "vm_next", index + 1 < areas.count ? areas[index + 1].address.rawValue : 0)
      }
      return
    }
    var entries: [(last: UInt64, entry: UInt64)] = []
    var next: UInt64 = 0
    for area in areas {
      let start = kernel.load(area, "vm_start")
      let end = kernel.load(area, "vm_end")
      if start > next { entries.append((start - 1, 0)) }
      entries.append((end - 1, area.address.rawValue))
      next = end
    }
    entries.append((.max, 0))
    kernel.set(process.memory, "mm_mt.ma_root", mapleTree(entries, slots: slots))
  }

  /// Maps the vDSO: the kernel's own copy of it has these bytes.
  public mutating func setVDSO(
    of process: Process, at start: UInt64, _ bytes: [UInt8]
  ) {
    let data = kernel.define("vdso_image_64_data", size: bytes.count, alignedTo: pageSize)
    kernel.write(bytes, at: data)
    let image = kernel.make("vdso_image")
    kernel.set(image, "data", data)
    kernel.set(process.memory, "context.vdso", start)
    kernel.set(process.memory, "context.vdso_image", image.address)
  }

  private mutating func mapleTree(
    _ entries: [(last: UInt64, entry: UInt64)], slots: Int
  ) -> UInt64 {
    var level = entries
    var type = "maple_leaf_64"
    // Mappings are in trees that know gaps; nodes without them are of the same use to readers.
    var next = ["maple_arange_64", "maple_range_64"]
    while true {
      let isRoot = level.count <= slots
      let nodes = stride(from: 0, to: level.count, by: slots).map { start in
        mapleNode(
          Array(level[start..<min(start + slots, level.count)]), type,
          mark: isRoot ? 2 : 4)
      }
      if isRoot { return nodes[0].entry }
      level = nodes
      type = next[0]
      next.reverse()
    }
  }

  private mutating func mapleNode(
    _ entries: [(last: UInt64, entry: UInt64)], _ type: String, mark: UInt64
  ) -> (last: UInt64, entry: UInt64) {
    let size = kernel.types.size(of: .named("maple_node"))
    let room = kernel.allocate(size + 256, filledWith: 0)
    let node = SyntheticObject(
      VirtualAddress((room.rawValue + 255) & ~255), "maple_node")
    let body = type == "maple_arange_64" ? "ma64" : "mr64"
    let pivots = body == "ma64" ? 9 : 15
    for (index, entry) in entries.enumerated() {
      kernel.set(node, "\(body).slot[\(index)]", entry.entry)
      // The last pivot of a node is its end, which may be left out.
      let isLast = index + 1 == entries.count
      if index < pivots, !isLast || index == 0 || entries.count.isMultiple(of: 2) {
        kernel.set(node, "\(body).pivot[\(index)]", entry.last)
      }
    }
    let number = UInt64(mapleTypes.firstIndex(of: type) ?? 0)
    return (entries[entries.count - 1].last, node.address.rawValue | number << 3 | mark)
  }

  // MARK: Threads

  /// A value for each member of `pt_regs`, made of the thread's number.
  public static func register(_ name: String, of thread: Int32) -> UInt64 {
    name == "cs" ? 0x33 : name == "ss" ? 0x2b : KernelTypes.hash("\(name) \(thread)")
  }

  /// Makes the process's task the leader of a thread group, with these threads.
  ///
  /// - Parameter workers: threads that the kernel runs for the process: they have no user mode.
  public mutating func setThreads(
    of process: Process, to threads: [Int32], workers: [Int32] = []
  ) -> [SyntheticObject] {
    if kernel.address(of: "__start_init_stack") == nil {
      let start = kernel.define(
        "__start_init_stack", size: Int(Self.stackSize), alignedTo: Self.stackSize)
      _ = kernel.define("__end_init_stack", size: 0, at: start + Self.stackSize)
    }
    kernel.set(firstTask, "tgid", 1)
    let signal = kernel.make("signal_struct")
    kernel.initializeList(kernel.member(signal, "thread_head"))
    let cred = kernel.make("cred")
    kernel.set(cred, "uid.val", 64055)
    kernel.set(cred, "gid.val", 108)
    for (index, number) in [process.pid, process.pid, 77, 78].enumerated() {
      let pid = kernel.make("pid")
      kernel.set(pid, "numbers[0].nr", UInt64(number))
      kernel.set(signal, "pids[\(index)]", pid.address)
    }
    return (threads + workers).map { thread in
      let task = thread == process.pid ? process.task : kernel.make("task_struct")
      kernel.set(task, "pid", UInt64(thread))
      kernel.set(task, "tgid", UInt64(process.pid))
      kernel.set(task, "comm", text: "thread \(thread)")
      kernel.set(task, "mm", process.memory.address)
      kernel.set(task, "group_leader", process.task.address)
      kernel.set(task, "real_parent", firstTask.address)
      kernel.set(task, "signal", signal.address)
      kernel.set(task, "cred", cred.address)
      kernel.set(task, "static_prio", 125)
      kernel.set(task, "on_cpu", 0)
      kernel.set(task, "__state", 1)
      kernel.set(task, "utime", 3_000_000_000)
      kernel.set(task, "stime", 5_000_000)
      for member in ["fsbase", "gsbase"] {
        kernel.set(task, "thread.\(member)", Self.register(member, of: thread))
      }
      for member in ["ds", "es", "fsindex", "gsindex"] { kernel.set(task, "thread.\(member)", 0) }
      kernel.append(kernel.member(task, "thread_node"), to: kernel.member(signal, "thread_head"))
      let stack = kernel.direct(kernel.machine.allocate(4, filledWith: 0xa5).address)
      kernel.set(task, "stack", stack)
      let frame = registersFrame(stack)
      for member in kernel.types["pt_regs"].members.map(\.name) {
        kernel.set(
          frame, member,
          workers.contains(thread) && (member == "ip" || member == "sp")
            ? 0 : Self.register(member, of: thread))
      }
      return task
    }
  }

  /// Where the `pt_regs` of user mode is on a stack.
  private func registersFrame(_ stack: VirtualAddress) -> SyntheticObject {
    let type = kernel.types.structures["fred_frame"] == nil ? "pt_regs" : "fred_frame"
    let top = UInt64(kernel.types.size(of: .named(type)))
    return SyntheticObject(stack + Self.stackSize - top, "pt_regs")
  }
}
