import Guest
import Memory
import X86

/// QEMU's copies of all vCPUs' registers.
struct ProcessorStates: Sendable {
  private struct State: Sendable {
    let thread: CPUThread
    let head: EnvironmentHead
    /// From the start of `CPUX86State` on.
    let bytes: [UInt8]
    let execution: CPUExecution?
    let apic: LocalAPIC?
  }

  private let states: [State]
  private let layout: EnvironmentLayout

  /// A vCPU's object is smaller, all releases up to 10.0.
  private static let objectSize = 0x1_0000

  /// Nil if there is no place, or more than one, that holds the registers of every vCPU.
  init?(of threads: [CPUThread], in image: ProcessImage) {
    let objects = threads.map { image.bytes(from: $0.address, limit: Self.objectSize) }
    let end = objects.map(\.count).min() ?? 0
    let places = stride(from: 0, to: end, by: 8).filter { offset in
      objects.allSatisfy { EnvironmentHead($0, at: offset) != nil }
    }
    guard places.count == 1 else { return nil }
    let place = places[0]
    let heads = objects.compactMap { EnvironmentHead($0, at: place) }
    let tails = objects.map { Array($0[place...]) }
    layout = EnvironmentLayout(Array(zip(heads, tails)))
    let executions = CPUExecution.all(
      of: threads, in: objects.map { Array($0[..<place]) }, image)
    let apics = LocalAPIC.all(
      behind: tails,
      of: threads.map {
        let end = $0.address.rawValue
        return (end - min(end, UInt64(CPUThread.objectSize)))..<end
      }, in: image)
    states = threads.indices.map {
      State(
        thread: threads[$0], head: heads[$0], bytes: tails[$0], execution: executions?[$0],
        apic: apics?[$0])
    }.sorted { ($0.execution?.index ?? 0) < ($1.execution?.index ?? 0) }
  }

  func processors(usingKVM: Bool) -> [VirtualProcessor] {
    states.indices.map { index in
      let state = states[index]
      if usingKVM, let reason = whyStale(state) {
        return VirtualProcessor(index: index, state: .stale, registers: .unknown(because: reason))
      }
      let isRunning = !usingKVM && state.thread.isRunning
      return VirtualProcessor(
        index: index, state: isRunning ? .running : .exited,
        registers: registers(state, isRunning: isRunning))
    }
  }

  /// Why the copy of a vCPU that runs by KVM must not be used, if it must not.
  private func whyStale(_ state: State) -> String? {
    guard let execution = state.execution else {
      return "QEMU's copy may be old: what would tell was not found"
    }
    guard execution.isDirty else {
      return "KVM had the register: QEMU's copy is from before the vCPU last ran"
    }
    let longMode = efer(state).map { $0 & ControlBits.longModeActive != 0 }
    guard state.head.isCoherent, longMode ?? state.head.isInLongMode == state.head.isInLongMode
    else { return "QEMU's copy contradicts itself" }
    return nil
  }

  private func efer(_ state: State) -> UInt64? {
    layout.extendedFeatures.offset.flatMap { state.bytes.load(at: $0) }
  }
}

// MARK: - Registers

extension ProcessorStates {
  private func registers(_ state: State, isRunning: Bool) -> RegisterFile {
    let head = state.head
    var registers = RegisterFile()
    func set(_ register: Register, _ value: UInt64, _ name: String) {
      registers[register] = .known(value, RegisterSource(.qemu, name))
    }
    for (index, register) in EnvironmentHead.general.enumerated() {
      set(register, head.general[index], "env.regs[\(index)]")
    }
    set(.rip, head.instructionPointer, "env.eip")
    if isRunning {
      let direction: UInt64 = head.direction == -1 ? 1 << 10 : 0
      set(.rflags, head.flags | direction, "env.eflags without status flags")
    } else {
      set(.rflags, head.flags, "env.eflags")
    }
    for (index, register) in [Register.cr0, nil, .cr2, .cr3, .cr4].enumerated() {
      if let register { set(register, head.control[index], "env.cr[\(index)]") }
    }
    let segments: [SegmentRegister] = [.es, .cs, .ss, .ds, .fs, .gs]
    for (index, segment) in segments.enumerated() {
      registers[segment] = .known(
        head.segments[index], RegisterSource(.qemu, "env.segs[\(index)]"))
    }
    registers[.ldtr] = .known(head.localDescriptorTable, RegisterSource(.qemu, "env.ldt"))
    registers[.tr] = .known(head.task, RegisterSource(.qemu, "env.tr"))
    registers[.gdtr] = .known(head.globalDescriptorTable, RegisterSource(.qemu, "env.gdt"))
    registers[.idtr] = .known(head.interruptDescriptorTable, RegisterSource(.qemu, "env.idt"))
    for place in placed {
      registers[place.register] = reading(of: place, in: state)
    }
    let noAPIC = "QEMU's local APIC, which has it, was not found"
    registers[.apicBase] =
      state.apic.map { .known($0.base, RegisterSource(.qemu, "apic.apicbase")) }
      ?? .unknown(reason: noAPIC)
    registers[.cr8] =
      state.apic?.taskPriority.map { .known(UInt64($0 >> 4), RegisterSource(.qemu, "apic.tpr")) }
      ?? .unknown(reason: noAPIC)
    return registers
  }

  private struct PlacedRegister {
    let register: Register
    let member: String
    let place: Place
    let delta: Int
    var isShort = false
  }

  private var placed: [PlacedRegister] {
    typealias Calls = EnvironmentLayout.SystemCall
    func call(_ register: Register, _ member: String, _ delta: Int) -> PlacedRegister {
      PlacedRegister(register: register, member: member, place: layout.systemCalls, delta: delta)
    }
    let debug: [Register?] = [.dr0, .dr1, .dr2, .dr3, nil, nil, .dr6, .dr7]
    return [
      PlacedRegister(
        register: .efer, member: "efer", place: layout.extendedFeatures, delta: 0),
      PlacedRegister(
        register: .sysenterCS, member: "sysenter_cs", place: layout.systemCalls, delta: 0,
        isShort: true),
      call(.sysenterESP, "sysenter_esp", Calls.sysenterESP),
      call(.sysenterEIP, "sysenter_eip", Calls.sysenterEIP),
      call(.star, "star", Calls.star),
      call(.lstar, "lstar", Calls.lstar),
      call(.cstar, "cstar", Calls.cstar),
      call(.sfmask, "fmask", Calls.sfmask),
      call(.kernelGSBase, "kernelgsbase", Calls.kernelGSBase),
      PlacedRegister(register: .xcr0, member: "xcr0", place: layout.extendedStates, delta: 0),
      PlacedRegister(register: .pat, member: "pat", place: layout.attributeTable, delta: 0),
    ]
      + debug.enumerated().compactMap { index, register in
        register.map {
          PlacedRegister(
            register: $0, member: "dr[\(index)]", place: layout.debug, delta: 8 * index)
        }
      }
  }

  private func reading(of register: PlacedRegister, in state: State) -> Reading<UInt64> {
    switch register.place {
    case .unknown(let reason): return .unknown(reason: reason)
    case .known(let offset):
      let position = offset + register.delta
      let value: UInt64? =
        register.isShort
        ? state.bytes.load(UInt32.self, at: position).map(UInt64.init)
        : state.bytes.load(at: position)
      return value.map { .known($0, RegisterSource(.qemu, "env.\(register.member)")) }
        ?? .unknown(reason: "not in the core")
    }
  }
}

extension ProcessImage {
  /// What the core has from `address` on without a gap, at most `limit` bytes.
  fileprivate func bytes(from address: VirtualAddress, limit: Int) -> [UInt8] {
    var bytes: [UInt8] = []
    while bytes.count < limit {
      let position = address + UInt64(bytes.count)
      guard let page = try? page(at: position) else { break }
      bytes += page[position.pageOffset...]
    }
    return bytes
  }
}
