import Memory
import SyntheticDumps
import Testing

/// vCPUs made in code: `CPUState`, `CPUX86State` and `APICCommonState` as QEMU's versions have them.
struct SyntheticCPU {
  /// Where a version has its members.
  struct Layout: Sendable, CustomTestStringConvertible {
    var name: String
    /// From the start of `CPUState`.
    var thread: UInt64
    var node: UInt64
    var index: UInt64
    var hasAbility: Bool
    var dirty: Dirty
    var environment: UInt64
    /// From the start of `CPUX86State`.
    var systemCalls: UInt64
    var extendedStates: UInt64
    var attributeTable: UInt64
    var debug: UInt64
    var apic: UInt64

    var testDescription: String { name }

    /// Where `vcpu_dirty` is: an offset from `cpu_index`, or behind `kvm_run`.
    enum Dirty: Hashable, Sendable {
      case execution(UInt64)
      case run
    }

    static let qemu72 = Layout(
      name: "7.2", thread: 0xb8, node: 0x248, index: 0x2f0, hasAbility: true,
      dirty: .execution(24), environment: 0x13b0, systemCalls: 0x2c18, extendedStates: 0x2c78,
      attributeTable: 0x2e10, debug: 0x3390, apic: 0x3bf8)
    static let qemu82: Layout = {
      var layout = qemu100
      layout.name = "8.2"
      layout.dirty = .execution(32)
      return layout
    }()
    static let qemu100 = Layout(
      name: "10.0", thread: 0xb0, node: 0x230, index: 0x2c0, hasAbility: false, dirty: .run,
      environment: 0x2bc0, systemCalls: 0x2c28, extendedStates: 0x2cd0, attributeTable: 0x2e68,
      debug: 0x33f0, apic: 0x3de8)
    static let qemu101: Layout = {
      var layout = qemu100
      layout.name = "10.1"
      layout.dirty = .execution(20)
      return layout
    }()
    static let all = [qemu72, qemu82, qemu100, qemu101]
  }

  var layout = Layout.qemu100
  var index: Int
  var threadID: Int32
  var isRunning = false
  var isStopped = true
  /// nil: the vCPU does not run by KVM.
  var isDirty: Bool?
  var isThrottled = false
  var direction: Int32 = 1
  var hiddenFlags: UInt32 = 0xc0b0 | 1 << 22
  var flags: UInt64 = 0x246
  var control: [UInt64] = [0x8005_0033, 0, 0x1234, 0x10_0000, 0x35_06b0]
  var codeFlags: UInt32 = 0xaf_9b00
  var msrs: [UInt64] = SyntheticCPU.msrs
  var efer: UInt64 = 0xd01
  var xcr0: UInt64 = 7
  var attributeTable: UInt64 = 0x0407_0506_0007_0106
  var taskPriority: UInt8 = 0x20

  /// sysenter_cs and on.
  static let msrs: [UInt64] = [
    0x10, 0xffff_fe00_0000_3000, 0xffff_ffff_8100_17b0, 0x23_0010_0000_0000, 0x7_7000,
    0xffff_ffff_8100_0080, 0xffff_ffff_8100_1870, 0x25_7fd5, 0xffff_8b33_c7a0_0000,
  ]
  static let debug: [UInt64] = [0x1111, 0x2222, 0x3333, 0x4444, 0, 0, 0xffff_0ff1, 0x702]

  init(_ index: Int, layout: Layout = .qemu100, usingKVM: Bool = false) {
    self.index = index
    self.layout = layout
    threadID = 4712 + Int32(index)
    isDirty = usingKVM ? true : nil
  }

  // MARK: Addresses

  static let heap: UInt64 = 0x5555_7000_0000
  static let objectSize: UInt64 = 0x10000
  static let head = heap + 0x100
  static let runs: UInt64 = 0x7ffb_0000_0000
  static let runSize: UInt64 = 0x3000
  static let runPath = "anon_inode:kvm-vcpu:"

  var object: UInt64 { Self.heap + 0x1000 + Self.objectSize * 2 * UInt64(index) }
  var environment: UInt64 { object + layout.environment }
  private var apic: UInt64 { object + Self.objectSize }
  private var handle: UInt64 { object + Self.objectSize + 0x800 }
  var run: UInt64 { Self.runs + Self.runSize * UInt64(index) }

  /// The value of `env.regs[number]`.
  func general(_ number: Int) -> UInt64 { 0x1111_0000 * UInt64(number + 1) + UInt64(index) }
  var instructionPointer: UInt64 { 0xffff_ffff_8123_4567 + UInt64(index) }
  func selector(_ number: Int) -> UInt32 { number == 1 ? 0x10 : UInt32(number) * 8 }
  func base(_ number: Int) -> UInt64 { 0x1000_0000 * UInt64(number) }
  var apicBase: UInt32 { index == 0 ? 0xfee0_0d00 : 0xfee0_0c00 }

  // MARK: The process

  /// Adds vCPUs, their threads and their list to a process.
  static func add(_ cpus: [SyntheticCPU], to core: inout SyntheticCore) {
    let size = 0x1000 + objectSize * 2 * UInt64(max(1, cpus.count))
    core.mappings.append(SyntheticCore.Mapping(heap, size: size))
    core.write([UInt8](repeating: 0, count: Int(size)), at: heap)
    core.store(cpus.first?.object ?? 0, at: head)
    for (position, cpu) in cpus.enumerated() {
      core.threads.append(cpu.threadID)
      cpu.write(to: &core)
      let link = cpu.object + cpu.layout.node
      core.store(
        position + 1 < cpus.count ? cpus[position + 1].object : 0, at: link)
      core.store(
        position == 0 ? head : cpus[position - 1].object + cpus[position - 1].layout.node,
        at: link + 8)
    }
  }

  private func write(to core: inout SyntheticCore) {
    writeThread(to: &core)
    writeExecution(to: &core)
    writeHead(to: &core)
    writeMSRs(to: &core)
    core.store(apic, at: environment + layout.apic)
    core.store(object, at: apic + 0x1b0)
    core.store(apicBase, at: apic + 0x1b8)
    core.write([0x14, UInt8(index), taskPriority, 0, 0xff, 1], at: apic + 0x1c4)
  }

  private func writeThread(to core: inout SyntheticCore) {
    let address = object + layout.thread
    core.store(SyntheticCore.threadBase(threadID), at: handle)
    core.store(handle, at: address - 8)
    core.store(threadID, at: address)
    core.store(UInt8(isRunning ? 1 : 0), at: address + 4)
    core.store(handle + 64, at: address + 8)
    core.write([0, 1, 0, isStopped ? 1 : 0], at: address + 16)
  }

  private func writeExecution(to core: inout SyntheticCore) {
    let address = object + layout.index
    let none = UInt32.max
    var words: [UInt32] = [UInt32(index), none, 0x20000, 0]
    words += layout.hasAbility ? [1, none] : [none]
    for (number, word) in words.enumerated() { core.store(word, at: address + 4 * UInt64(number)) }
    guard let isDirty else { return }
    let runPointer = object + layout.index - 0x50
    core.mappings.append(
      SyntheticCore.Mapping(
        run, size: Self.runSize, file: "\(Self.runPath)\(index)", isDumped: false))
    core.store(run, at: runPointer)
    if layout.name != "7.2" { core.store(UInt32(13), at: runPointer + 32) }
    switch layout.dirty {
    case .execution(let offset):
      core.store(UInt8(isDirty ? 1 : 0), at: address + offset)
      core.store(UInt8(isThrottled ? 1 : 0), at: address + offset + 1)
    case .run:
      core.store(UInt8(isDirty ? 1 : 0), at: runPointer + 36)
      core.store(UInt8(isThrottled ? 1 : 0), at: address + 32)
    }
  }

  private func writeHead(to core: inout SyntheticCore) {
    for number in 0..<16 { core.store(general(number), at: environment + 8 * UInt64(number)) }
    core.store(instructionPointer, at: environment + 128)
    core.store(flags, at: environment + 136)
    core.store(direction, at: environment + 172)
    core.store(hiddenFlags, at: environment + 176)
    for number in 0..<10 {
      let address = environment + 184 + 24 * UInt64(number)
      core.store(number < 8 ? selector(number) : 0, at: address)
      core.store(base(number), at: address + 8)
      core.store(UInt32(0x100 + number), at: address + 16)
      let flags: UInt32 = number == 1 ? codeFlags : 0x93_00
      core.store(number < 8 ? flags : 0, at: address + 20)
    }
    for number in 0..<5 {
      core.store(control[number], at: environment + 424 + 8 * UInt64(number))
    }
  }

  private func writeMSRs(to core: inout SyntheticCore) {
    core.store(efer, at: environment + 0x258)
    for (number, value) in msrs.enumerated() {
      core.store(value, at: environment + layout.systemCalls + 8 * UInt64(number))
    }
    // tsc_aux, xcr0, mcg_status, msr_ia32_misc_enable, feature control, the key of SGX
    let states: [UInt64] = [UInt64(index), xcr0, 0, 0x4_0001, 0, 0xa605_3e05_1270_b7ac]
    for (number, value) in states.enumerated() {
      core.store(value, at: environment + layout.extendedStates - 8 + 8 * UInt64(number))
    }
    core.store(attributeTable, at: environment + layout.attributeTable)
    for (number, value) in Self.debug.enumerated() {
      core.store(value, at: environment + layout.debug + 8 * UInt64(number))
    }
  }
}
