import Memory

/// A Linux host with KVM, made in code: processes, virtual machines and what they map.
///
/// Everything can be changed on the way: ``KernelTypes`` says which structures and members the
/// kernel has, and content is written where there is a member for it.
public struct SyntheticHost: Sendable {
  public struct Options: Sendable {
    public var seed: UInt64 = 1
    public var kernel = SyntheticKernel.Options()
    /// The members of its structures, changed from those of Linux 6.1.
    public var change: @Sendable (inout KernelTypes) -> Void = { _ in }
    /// Loaded modules of KVM's; those that are not are built in, as far as their symbols exist.
    public var modules: Set<String> = ["kvm", "kvm_amd"]
    /// The kernel keeps BTF of its modules. Since 5.11.
    public var modulesHaveTypes = true
    /// The build-id of every module, where its structure has room for it.
    public var moduleBuildID: [UInt8] = []
    /// KVM's types are in the kernel's BTF too, as where a part of the kernel uses them.
    public var kernelHasKVMTypes = true
    /// `kvm_x86_ops.name`.
    public var vendor = "kvm_amd"
    /// Where modules keep their symbol table.
    public var moduleSymbols = ModuleSymbols.pointer
    public var swapDevices: UInt32 = 0
    /// Numbers of flags of page descriptors in the kernel's types, else in VMCOREINFO only.
    public var hasPageFlagTypes = true
    /// On an Intel host: where its processor keeps the fields of a VMCS.
    public var vmcs = SyntheticVMCSLayout(seed: 1)
    /// Registers whose bits `regs_avail` has behind those of RIP: VCPU_EXREG_*.
    public var extraRegisters = ["PDPTR", "CR0", "CR3", "CR4", "RFLAGS", "SEGMENTS"]
    /// The numbers of lazily loaded MSRs are listed under a symbol.
    public var hasLazyRegisterList = true
    /// Where an exit leads is told by a pointer with a symbol instead of a symbol. Until 4.20.
    public var pointsAtExitHandler = false

    public init() {}

    /// An Intel host.
    public static var intel: Options {
      var options = Options()
      options.vendor = "kvm_intel"
      options.modules = ["kvm", "kvm_intel"]
      return options
    }
  }

  public enum ModuleSymbols: Sendable {
    /// `module.kallsyms`. Since 4.5.
    case pointer
    /// `module.core_kallsyms`, the pointer being null.
    case embedded
    /// Members of the module itself. Before 4.5.
    case inModule
  }

  public var kernel: SyntheticKernel
  public let options: Options
  private let pageArray: VirtualAddress
  private let machines: SyntheticObject
  let firstTask: SyntheticObject
  private let moduleRoom = VirtualAddress(0xffff_ffff_c040_0000)
  /// Where kvm_intel has its symbols.
  let vmxRoom: VirtualAddress
  /// Enumerations of this kernel, in an order of its own.
  let registers: [String]
  let extraRegisters: [(name: String, bit: Int)]
  private let guestMode: Int32
  private let pageFlags: [String: Int32]
  public let sharedZeroFrame: PageFrameNumber

  private static let pageArraySymbol = "vmemmap_base"

  public init(_ options: Options = Options()) {
    self.options = options
    var types = KernelTypes.host(seed: options.seed)
    options.change(&types)
    var generator = SeededGenerator(seed: options.seed &+ 77)
    registers = Self.generalRegisters.shuffled(using: &generator)
    extraRegisters = zip(
      options.extraRegisters.shuffled(using: &generator), Self.generalRegisters.count...
    ).map { ($0, $1) }
    guestMode = Int32.random(in: 1...9, using: &generator)
    let bits = Array(1...20 as ClosedRange<Int32>).shuffled(using: &generator)
    pageFlags = [
      "PG_lru": bits[0], "PG_private": bits[1], "PG_head": bits[2], "PG_uptodate": bits[3],
      "PG_hwpoison": bits[4],
    ]
    pageArray =
      VirtualAddress(0xffff_eac0_0000_0000) + UInt64.random(in: 0...9, using: &generator) << 30

    kernel = SyntheticKernel(types, options.kernel)
    kernel.store(pageArray.rawValue, at: kernel.define(Self.pageArraySymbol, size: 8))
    kernel.store(options.swapDevices, at: kernel.define("nr_swapfiles", size: 4))
    _ = kernel.define("shmem_aops", size: 128)
    _ = kernel.define("ext4_aops", size: 128)
    let zero = kernel.define("empty_zero_page", size: Int(pageSize), alignedTo: pageSize)
    sharedZeroFrame = kernel.physical(zero)?.frame ?? PageFrameNumber(0)

    let hasIntelModule = options.modules.contains("kvm_intel")
    vmxRoom =
      hasIntelModule || options.vendor != "kvm_intel"
      ? moduleRoom + 0x20000 : kernel.define("vmx_vmexit", size: 64) - 0x100

    firstTask = kernel.define("init_task", type: "task_struct")
    kernel.initializeList(kernel.member(firstTask, "tasks"))
    kernel.set(firstTask, "mm", 0)
    kernel.set(firstTask, "comm", text: "swapper/0")
    for list in ["modules", "btf_modules"] {
      kernel.initializeList(kernel.define(list, type: "list_head"))
    }
    let ownList = options.modules.contains("kvm")
    machines =
      ownList
      ? SyntheticObject(moduleRoom + 0x1000, "list_head")
      : kernel.define("vm_list", type: "list_head")
    kernel.initializeList(machines)
    writeOperations()
  }

  private mutating func writeOperations() {
    let object =
      options.modules.contains("kvm")
      ? SyntheticObject(moduleRoom + 0x1200, "kvm_x86_ops")
      : kernel.define("kvm_x86_ops", type: "kvm_x86_ops")
    kernel.set(object, "hardware_enable", 0)
    if kernel.has(object, "name") { kernel.set(object, "name", kernel.string(options.vendor)) }
  }

  // MARK: Processes

  public struct Process: Sendable {
    public let memory: SyntheticObject
    public let task: SyntheticObject
    public let tables: SyntheticPageTables
    public let pid: Int32
  }

  /// Adds a process with its command line in its memory; without arguments, no page has them.
  public mutating func addProcess(
    pid: Int32, command: String = "qemu-system-x86", arguments: [String]
  ) -> Process {
    let tables = SyntheticPageTables(
      levels: kernel.options.levels, encryptionMask: kernel.options.encryptionMask,
      in: &kernel.machine)
    for half in stride(from: 2048, to: 4096, by: 8) as StrideTo<UInt64> {
      let entry = kernel.machine.memory.load(UInt64.self, at: kernel.tables.root + half)
      kernel.machine.memory.store(entry, at: tables.root + half)
    }
    let memory = kernel.make("mm_struct")
    let task = kernel.make("task_struct")
    let text: [UInt8] = arguments.flatMap { Array($0.utf8) + [0] }
    let start = VirtualAddress(0x7ffd_1234_5f80)
    kernel.set(memory, "pgd", kernel.direct(tables.root))
    kernel.set(memory, "arg_start", start)
    kernel.set(memory, "arg_end", start + UInt64(text.count))
    kernel.setIfPresent(memory, "owner", task.address.rawValue)
    kernel.setIfPresent(memory, "mm_users.counter", 1)
    kernel.set(task, "mm", memory.address)
    kernel.set(task, "comm", text: command)
    kernel.set(task, "pid", UInt64(pid))
    kernel.append(kernel.member(task, "tasks"), to: kernel.member(firstTask, "tasks"))
    tables.write(text, at: start, in: &kernel.machine)
    return Process(memory: memory, task: task, tables: tables, pid: pid)
  }

  // MARK: Frames

  /// What a frame belongs to.
  public enum Use: Sendable {
    case anonymous
    /// The page cache; `index` in the file of an `address_space`.
    case cache(SyntheticObject, index: UInt64)
    case privateCache(SyntheticObject, index: UInt64)
    /// hugetlbfs: no LRU list, compound.
    case hugetlb
    case other
  }

  public mutating func descriptor(of frame: PageFrameNumber) -> SyntheticObject {
    let size = UInt64(kernel.types.size(of: .named("page")))
    return SyntheticObject(pageArray + frame.rawValue * size, "page")
  }

  /// A pointer to the head, under its newer name a mask that leads to it where there is one.
  private mutating func setHead(of page: SyntheticObject, to head: SyntheticObject, count: Int) {
    guard kernel.has(page, "compound_info") else {
      kernel.set(page, "compound_head", head.address.rawValue | 1)
      return
    }
    let size = UInt64(kernel.types.size(of: .named("page")) * count)
    let mask = ~(size - 1)
    let isMask = size.nonzeroBitCount == 1 && page.address.rawValue & mask == head.address.rawValue
    kernel.set(page, "compound_info", isMask ? mask | 1 : head.address.rawValue | 1)
  }

  /// Describes `count` frames as one compound page, or a single frame as itself.
  public mutating func describe(_ first: PageFrameNumber, count: Int = 1, as use: Use) {
    for index in 0..<count {
      let page = descriptor(of: first + UInt64(index))
      kernel.write(
        [UInt8](repeating: 0, count: kernel.types.size(of: .named("page"))), at: page.address,
        filledWith: 0)
      if index > 0 {
        setHead(of: page, to: descriptor(of: first), count: count)
      }
    }
    let head = descriptor(of: first)
    var flags: UInt64 = count > 1 ? flag("PG_head") : 0
    switch use {
    case .anonymous:
      flags |= flag("PG_lru")
      kernel.set(head, "mapping", 0xffff_8888_0000_1000 | 1)
    case .cache(let mapping, let index):
      flags |= flag("PG_lru")
      kernel.set(head, "mapping", mapping.address)
      setIndex(of: head, to: index)
    case .privateCache(let mapping, let index):
      flags |= flag("PG_lru") | flag("PG_private")
      kernel.set(head, "mapping", mapping.address)
      setIndex(of: head, to: index)
    case .hugetlb:
      kernel.set(head, "mapping", 0xffff_8888_0000_2000)
    case .other: break
    }
    // Since 6.18 the flags are in a structure of their own.
    kernel.set(head, kernel.types.has("memdesc_flags_t", "f") ? "flags.f" : "flags", flags)
  }

  private mutating func setIndex(of page: SyntheticObject, to index: UInt64) {
    kernel.set(page, kernel.has(page, "index") ? "index" : "__folio_index", index)
  }

  func flag(_ name: String) -> UInt64 { 1 << UInt64(pageFlags[name] ?? 0) }

  /// A file of the page cache, without pages.
  public mutating func addFile(operations: String = "shmem_aops") -> SyntheticObject {
    let mapping = kernel.make("address_space")
    kernel.set(mapping, "a_ops", kernel.address(of: operations) ?? VirtualAddress(0))
    kernel.set(mapping, "i_pages.xa_head", 0)
    return mapping
  }

  /// Makes a file have these pages: descriptors of frames, or raw entries.
  public mutating func fill(_ mapping: SyntheticObject, _ entries: [UInt64: UInt64]) {
    let head = kernel.xarray(entries)
    kernel.set(mapping, "i_pages.xa_head", head)
  }

  /// A new frame with the bytes of a guest's page.
  public mutating func frame(_ bytes: [UInt8], as use: Use = .anonymous) -> PageFrameNumber {
    let frame = kernel.machine.allocate()
    kernel.machine.memory[frame] = bytes
    describe(frame, as: use)
    return frame
  }

  // MARK: Virtual machines

  public struct Slot: Sendable {
    public var id: Int
    public var guestFrame: UInt64
    public var pages: UInt64
    public var address: VirtualAddress
    public var flags: UInt32 = 0
    /// 1: system management mode's.
    public var space = 0
    /// `struct file` of guest_memfd, and the slot's first page in it.
    public var privateFile: (file: VirtualAddress, firstPage: UInt64)?

    public init(
      id: Int, guestFrame: UInt64, pages: UInt64, address: VirtualAddress, flags: UInt32 = 0,
      space: Int = 0
    ) {
      self.id = id
      self.guestFrame = guestFrame
      self.pages = pages
      self.address = address
      self.flags = flags
      self.space = space
    }
  }

  public struct Machine: Sendable {
    public let object: SyntheticObject
    public let processors: [Processor]
    /// `kvm_svm`, on an AMD host.
    public let svm: SyntheticObject?
  }

  public struct Processor: Sendable {
    /// `kvm_vcpu`.
    public let vcpu: SyntheticObject
    /// `vcpu_svm`, on an AMD host.
    public let svm: SyntheticObject?
    /// The control block in use: `vmcb`.
    public let block: SyntheticObject?
    /// `vcpu_vmx`, on an Intel host.
    public let vmx: SyntheticObject?
    /// The control structure in use, on an Intel host.
    public let vmcs: VirtualAddress?
  }

  /// - Parameters:
  ///   - node: where a set of slots has its active nodes, since 5.17.
  ///   - type: `kvm_arch.vm_type`.
  ///   - privateFrames: of the guest; the attribute is set of these.
  public mutating func addMachine(
    _ process: Process, slots: [Slot], processors count: Int = 1, node: Int = 0,
    type: UInt64 = 0, privateFrames: [UInt64] = [],
    vcpuEntries: ([UInt64]) -> [UInt64: UInt64] = {
      Dictionary(uniqueKeysWithValues: $0.enumerated().map { (UInt64($0), $1) })
    }
  ) -> Machine {
    let isAMD = options.vendor == "kvm_amd"
    let svm = isAMD ? kernel.make("kvm_svm") : nil
    let object = svm.map { kernel.member($0, "kvm") } ?? kernel.make("kvm")
    if let svm, kernel.has(svm, "sev_info") { kernel.clear(svm, "sev_info") }
    kernel.append(kernel.member(object, "vm_list"), to: machines)
    kernel.set(object, "mm", process.memory.address)
    kernel.set(object, "userspace_pid", UInt64(process.pid))
    kernel.setIfPresent(object, "arch.vm_type", type)
    if kernel.has(object, "mem_attr_array") {
      let value = (1 << 3) << 1 | 1 as UInt64
      let head = kernel.xarray(
        Dictionary(uniqueKeysWithValues: privateFrames.map { ($0, value) }))
      kernel.set(object, "mem_attr_array.xa_head", head)
    }
    for space in 0..<2 {
      let set = makeSlots(slots.filter { $0.space == space }, node: node)
      kernel.set(object, "memslots[\(space)]", set.address)
    }
    let processors = (0..<count).map { addProcessor($0, isAMD: isAMD, isTrustDomain: type == 5) }
    let addresses = processors.map(\.vcpu.address.rawValue)
    if kernel.has(object, "vcpu_array") {
      let head = kernel.xarray(vcpuEntries(addresses))
      kernel.set(object, "vcpu_array.xa_head", head)
    } else {
      kernel.clear(object, "vcpus")
      for (index, address) in addresses.enumerated() {
        kernel.set(object, "vcpus[\(index)]", address)
      }
    }
    kernel.set(object, "online_vcpus.counter", UInt64(count))
    return Machine(object: object, processors: processors, svm: svm)
  }

  private mutating func makeSlots(_ slots: [Slot], node: Int) -> SyntheticObject {
    if kernel.types.has("kvm_memslots", "id_hash") {
      let set = kernel.make("kvm_memslots")
      kernel.clear(set, "id_hash")
      kernel.set(set, "node_idx", UInt64(node))
      for slot in slots {
        let object = kernel.make("kvm_memory_slot")
        fill(object, slot)
        let link = kernel.member(object, "id_node[\(node)]")
        kernel.prepend(link, to: kernel.member(set, "id_hash[\(slot.id & 127)]"))
      }
      return set
    }
    // An array sorted by descending guest address, in room behind its type if it is flexible.
    let size = kernel.types.size(of: .named("kvm_memslots"))
    let element = kernel.types.size(of: .named("kvm_memory_slot"))
    let set = SyntheticObject(kernel.allocate(size + element * (slots.count + 1)), "kvm_memslots")
    kernel.set(set, "used_slots", UInt64(slots.count))
    for (index, slot) in slots.sorted(by: { $0.guestFrame > $1.guestFrame }).enumerated() {
      fill(kernel.member(set, "memslots[\(index)]"), slot)
    }
    return set
  }

  private mutating func fill(_ object: SyntheticObject, _ slot: Slot) {
    kernel.set(object, "base_gfn", slot.guestFrame)
    kernel.set(object, "npages", slot.pages)
    kernel.set(object, "userspace_addr", slot.address)
    kernel.set(object, "flags", UInt64(slot.flags))
    kernel.set(object, "id", UInt64(slot.id))
    kernel.setIfPresent(object, "as_id", UInt64(slot.space))
    kernel.setIfPresent(object, "gmem.file", slot.privateFile?.file.rawValue ?? 0)
    kernel.setIfPresent(object, "gmem.pgoff", slot.privateFile?.firstPage ?? 0)
  }

  private mutating func addProcessor(
    _ index: Int, isAMD: Bool, isTrustDomain: Bool
  ) -> Processor {
    let svm = isAMD ? kernel.make("vcpu_svm") : nil
    let tdx = isTrustDomain ? kernel.make("vcpu_tdx") : nil
    let vmx = options.vendor == "kvm_intel" && tdx == nil ? kernel.make("vcpu_vmx") : nil
    let vcpu = (svm ?? tdx ?? vmx).map { kernel.member($0, "vcpu") } ?? kernel.make("kvm_vcpu")
    kernel.set(vcpu, "mode", 0)
    kernel.set(vcpu, "cpu", UInt64(index))
    kernel.set(vcpu, "pid", 0)
    kernel.setIfPresent(vcpu, "arch.regs_avail", 0xffff_ffff)
    if kernel.types.has("kvm_vcpu_arch", "guest_state_protected") {
      kernel.set(vcpu, "arch.guest_state_protected", 0)
    }
    for member in ["regs_dirty", "hflags", "cr0_guest_owned_bits", "cr4_guest_owned_bits", "apic"] {
      kernel.set(vcpu, "arch.\(member)", 0)
    }
    for (number, register) in registers.enumerated() {
      kernel.set(vcpu, "arch.regs[\(number)]", Self.value(register, index))
    }
    for register in [
      "cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base", "xcr0", "pat", "dr6",
      "dr7",
    ] {
      kernel.set(vcpu, "arch.\(register)", Self.value(register, index))
    }
    for number in 0..<4 {
      kernel.set(vcpu, "arch.db[\(number)]", Self.value("dr\(number)", index))
    }
    if let vmx {
      let vmcs = addVMX(index, to: vmx)
      return Processor(vcpu: vcpu, svm: nil, block: nil, vmx: vmx, vmcs: vmcs)
    }
    guard let svm else {
      return Processor(vcpu: vcpu, svm: nil, block: nil, vmx: nil, vmcs: nil)
    }
    let block = makeControlBlock(index)
    kernel.set(svm, "vmcb", block.address)
    if kernel.has(svm, "vmcb01") {
      kernel.set(svm, "vmcb01.ptr", block.address)
      kernel.set(svm, "current_vmcb", kernel.address(svm, "vmcb01"))
    }
    return Processor(vcpu: vcpu, svm: svm, block: block, vmx: nil, vmcs: nil)
  }

  /// A control block whose values tell the register and the vCPU.
  public mutating func makeControlBlock(_ index: Int) -> SyntheticObject {
    let block = kernel.make("vmcb")
    for name in ["nested_ctl", "misc_ctl"] where kernel.types.has("vmcb_control_area", name) {
      kernel.set(block, "control.\(name)", 1)
    }
    if kernel.types.has("vmcb_control_area", "intercepts") {
      // Writes of CR0 are intercepted, as are those of CR4.
      kernel.set(block, "control.intercepts[0]", 0x11_0000)
    } else {
      kernel.set(block, "control.intercept_cr", 0x11_0000)
    }
    for member in kernel.types["vmcb_save_area"].members {
      if member.type == .u64 {
        kernel.set(block, "save.\(member.name)", Self.value("save.\(member.name)", index))
      }
    }
    kernel.set(block, "save.cpl", 0)
    for (number, segment) in ["es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr", "gdtr", "idtr"]
      .enumerated()
    {
      kernel.set(block, "save.\(segment).selector", UInt64(8 * number + 8))
      kernel.set(block, "save.\(segment).attrib", segment == "cs" ? 0x29b : 0xc93)
      kernel.set(block, "save.\(segment).limit", 0xffff_ffff)
      kernel.set(block, "save.\(segment).base", Self.value("save.\(segment)", index))
    }
    return block
  }

  /// A value that tells the register and the vCPU.
  public static func value(_ register: String, _ processor: Int) -> UInt64 {
    KernelTypes.hash("\(register) \(processor)")
  }

  static let generalRegisters =
    ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"] + (8...15).map { "r\($0)" } + ["rip"]

  /// `kvm_vcpu.mode` of a vCPU that runs its guest.
  public var inGuestMode: UInt64 { UInt64(guestMode) }

  // MARK: Completion

  private var vmxRoots: [String] {
    KernelTypes.vmxRoots.filter { kernel.types.structures[$0] != nil }
  }

  /// Writes what is told about everything, and returns VMCOREINFO.
  public mutating func finish() -> String {
    var base = TypeWriter(kernel.types)
    let isBuiltIn = !options.modules.contains("kvm")
    if options.vendor == "kvm_intel" {
      if options.pointsAtExitHandler { kernel.store(exitHandler.rawValue, at: vmxRoom + 0x1500) }
      let room = lazyRegisterList == "kvm_uret_msrs_list" ? moduleRoom : vmxRoom
      let list =
        isBuiltIn ? kernel.define(lazyRegisterList, size: 64) : room + Self.lazyRegisterOffset
      for (index, number) in lazyRegisters.enumerated() {
        kernel.store(number, at: list + UInt64(4 * index))
      }
    }
    let pageFlagTypes: [CEnumeration] =
      options.hasPageFlagTypes
      ? [pageFlags.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }] : []
    if !options.hasPageFlagTypes {
      kernel.options.moreVmcoreinfo += pageFlags.map { "NUMBER(\($0.key))=\($0.value)" }
    }
    base.write(
      KernelTypes.linuxRoots.filter { kernel.types.structures[$0] != nil },
      pageFlagTypes + processEnumerations + swapEnumerations)
    if options.kernelHasKVMTypes || isBuiltIn { base.write(KernelTypes.kvmRoots, []) }
    if isBuiltIn || !options.modulesHaveTypes { base.write([], enumerations) }
    if isBuiltIn, options.vendor == "kvm_amd" { base.write(KernelTypes.svmRoots, []) }
    if isBuiltIn, options.vendor == "kvm_intel" { base.write(vmxRoots, []) }
    kernel.writeTypes(base.builder.bytes)

    addModule("unrelated", at: moduleRoom - 0x10000, symbols: [("vm_list", 0x40)], types: nil)
    if !isBuiltIn {
      var types = TypeWriter(base: base)
      types.write(KernelTypes.kvmRoots, enumerations)
      let list: [(name: String, offset: UInt64)] =
        lazyRegisterModule == "kvm" ? [(lazyRegisterList, Self.lazyRegisterOffset)] : []
      addModule(
        "kvm", at: moduleRoom, symbols: [("vm_list", 0x1000), ("kvm_x86_ops", 0x1200)] + list,
        types: types.builder)
    }
    if options.modules.contains("kvm_amd") {
      var types = TypeWriter(base: base)
      types.write(KernelTypes.svmRoots, [])
      addModule(
        "kvm_amd", at: moduleRoom + 0x10000, symbols: [("svm_init", 0x100)], types: types.builder)
    }
    if options.modules.contains("kvm_intel") {
      var types = TypeWriter(base: base)
      types.write(vmxRoots, [])
      let list: [(name: String, offset: UInt64)] =
        lazyRegisterModule == "kvm_intel" ? [(lazyRegisterList, Self.lazyRegisterOffset)] : []
      addModule(
        "kvm_intel", at: vmxRoom, symbols: [exitHandlerSymbol] + list, types: types.builder)
    }
    return kernel.finish()
  }

  /// The list of numbers of MSRs that are loaded lazily: since 5.13 kvm's, before 5.10 under
  /// another name.
  private var lazyRegisterList: String {
    if kernel.types.has("vcpu_vmx", "guest_msrs") { return "vmx_msr_index" }
    return kernel.types.has("vmx_uret_msr", "slot") ? "vmx_uret_msrs_list" : "kvm_uret_msrs_list"
  }

  private static let lazyRegisterOffset: UInt64 = 0x1400

  private var exitHandlerSymbol: (name: String, offset: UInt64) {
    options.pointsAtExitHandler ? ("vmx_return", 0x1500) : ("vmx_vmexit", 0x100)
  }

  private var lazyRegisterModule: String? {
    guard options.hasLazyRegisterList else { return nil }
    return lazyRegisterList == "kvm_uret_msrs_list" ? "kvm" : "kvm_intel"
  }

  private var enumerations: [CEnumeration] {
    [
      registers.enumerated().map { ("VCPU_REGS_\($1.uppercased())", Int32($0)) }
        + extraRegisters.map { ("VCPU_EXREG_\($0.name)", Int32($0.bit)) },
      [("OUTSIDE_GUEST_MODE", 0), ("IN_GUEST_MODE", guestMode)],
    ]
  }

  private mutating func writeBuildID(of module: SyntheticObject) {
    if kernel.has(module, "build_id") {
      kernel.write(options.moduleBuildID, at: kernel.address(module, "build_id"))
    }
    guard kernel.has(module, "notes_attrs") else { return }
    // A note of another kind, then NT_GNU_BUILD_ID.
    var notes: [[UInt8]] = [[], []]
    for (index, (type, name, content)) in [
      (0x100 as UInt32, "Linux", [1, 2, 3, 4] as [UInt8]), (3, "GNU", options.moduleBuildID),
    ].enumerated() {
      notes[index].append(littleEndian: UInt32(name.utf8.count + 1))
      notes[index].append(littleEndian: UInt32(content.count))
      notes[index].append(littleEndian: type)
      let padded = Array(name.utf8) + [UInt8](repeating: 0, count: 4 - name.utf8.count % 4)
      notes[index] += padded + content
    }
    let size = kernel.types.size(of: .named("bin_attribute"))
    let rest = kernel.types.size(of: .named("module_notes_attrs"))
    let object = SyntheticObject(
      kernel.allocate(rest + size * notes.count), "module_notes_attrs")
    var attributes: [VirtualAddress] = []
    for (index, note) in notes.enumerated() {
      let attribute =
        kernel.has(object, "attrs")
        ? SyntheticObject(
          kernel.address(object, "attrs") + UInt64(size * index), "bin_attribute")
        : kernel.make("bin_attribute")
      let place = kernel.allocate(note.count)
      kernel.write(note, at: place)
      kernel.set(attribute, "private", place)
      kernel.set(attribute, "size", UInt64(note.count))
      attributes.append(attribute.address)
    }
    if kernel.has(object, "notes") {
      kernel.set(object, "notes", UInt64(notes.count))
    } else {
      let list = kernel.allocate(8 * (notes.count + 1), filledWith: 0)
      for (index, address) in attributes.enumerated() {
        kernel.store(address.rawValue, at: list + UInt64(8 * index))
      }
      kernel.set(object, "grp.bin_attrs", list)
    }
    kernel.set(module, "notes_attrs", object.address)
  }

  private mutating func addModule(
    _ name: String, at room: VirtualAddress, symbols: [(name: String, offset: UInt64)],
    types: BTFBuilder?
  ) {
    let module = SyntheticObject(room + 0x2000, "module")
    kernel.clear(module, "list")
    kernel.set(module, "name", text: name)
    // Elf64_Sym: st_name, st_info, st_other, st_shndx, st_value, st_size; the first is empty.
    var table = [UInt8](repeating: 0, count: 24)
    var strings: [UInt8] = [0]
    for symbol in symbols {
      table.append(littleEndian: UInt32(strings.count))
      table += [1, 0, 1, 0]
      table.append(littleEndian: (room + symbol.offset).rawValue)
      table.append(littleEndian: 8 as UInt64)
      strings += Array(symbol.name.utf8) + [0]
    }
    let symtab = kernel.allocate(table.count)
    kernel.write(table, at: symtab)
    let strtab = kernel.allocate(strings.count)
    kernel.write(strings, at: strtab)
    let place: SyntheticObject
    switch options.moduleSymbols {
    case .pointer, .embedded:
      place = kernel.member(module, "core_kallsyms")
      kernel.set(
        module, "kallsyms", options.moduleSymbols == .pointer ? place.address.rawValue : 0)
    case .inModule: place = module
    }
    kernel.set(place, "symtab", symtab)
    kernel.set(place, "strtab", strtab)
    kernel.set(place, "num_symtab", UInt64(table.count / 24))
    let list = SyntheticObject(kernel.address(of: "modules") ?? room, "list_head")
    kernel.append(kernel.member(module, "list"), to: list)
    writeBuildID(of: module)

    guard let types, options.modulesHaveTypes else { return }
    let data = kernel.allocate(types.bytes.count)
    kernel.write(types.bytes, at: data)
    let btf = kernel.make("btf")
    kernel.set(btf, "data", data)
    kernel.set(btf, "data_size", UInt64(types.bytes.count))
    let entry = kernel.make("btf_module")
    kernel.set(entry, "btf", btf.address)
    kernel.set(entry, "module", module.address)
    let all = SyntheticObject(kernel.address(of: "btf_modules") ?? room, "list_head")
    kernel.append(kernel.member(entry, "list"), to: all)
  }
}
