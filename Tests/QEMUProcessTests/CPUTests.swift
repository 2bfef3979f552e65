import DumpFiles
import Guest
import Memory
import SyntheticDumps
import SystemPackage
import Testing
import X86

@testable import QEMUProcess

/// The guest of a QEMU with these vCPUs.
private func guest(
  _ cpus: [SyntheticCPU], changing change: (inout SyntheticCore) -> Void = { _ in }
) throws -> Guest {
  var core = SyntheticQEMU.pc.core
  SyntheticCPU.add(cpus, to: &core)
  change(&core)
  return try openQEMU(core.file).qemu.guest()
}

/// A process that has nothing but vCPUs.
private func image(
  _ cpus: [SyntheticCPU], changing change: (inout SyntheticCore) -> Void = { _ in }
) throws -> ProcessImage {
  var core = SyntheticQEMU.pc.core
  SyntheticCPU.add(cpus, to: &core)
  change(&core)
  let saved = try core.file.save()
  let dump = try DumpFile.open(FilePath(saved.path))
  return ProcessImage(try #require(dump.process), in: dump)
}

private func names(_ guest: Guest) -> [String] {
  guest.findings.map(\.name).filter { $0.hasPrefix("vcpu.") }
}

/// The reason why a register is not known, or nil if it is.
private func reason(_ reading: Reading<UInt64>?) -> String? {
  if case .unknown(let reason) = reading { reason } else { nil }
}

private func expectRegisters(_ processor: VirtualProcessor, of cpu: SyntheticCPU) {
  let registers = processor.registers
  func expect(_ register: Register, _ value: UInt64, _ member: String) {
    #expect(registers[register] == .known(value, RegisterSource(.qemu, member)))
  }
  let general: [Register] = [
    .rax, .rcx, .rdx, .rbx, .rsp, .rbp, .rsi, .rdi, .r8, .r9, .r10, .r11, .r12, .r13, .r14, .r15,
  ]
  for (number, register) in general.enumerated() {
    expect(register, cpu.general(number), "env.regs[\(number)]")
  }
  expect(.rip, cpu.instructionPointer, "env.eip")
  expect(.rflags, cpu.flags, "env.eflags")
  for (number, register) in [(0, Register.cr0), (2, .cr2), (3, .cr3), (4, .cr4)] {
    expect(register, cpu.control[number], "env.cr[\(number)]")
  }
  expect(.cr8, UInt64(cpu.taskPriority >> 4), "apic.tpr")
  expect(.apicBase, UInt64(cpu.apicBase), "apic.apicbase")
  expect(.efer, cpu.efer, "env.efer")
  let msrs: [(Int, Register, String)] = [
    (0, .sysenterCS, "sysenter_cs"), (1, .sysenterESP, "sysenter_esp"),
    (2, .sysenterEIP, "sysenter_eip"), (3, .star, "star"), (5, .lstar, "lstar"),
    (6, .cstar, "cstar"), (7, .sfmask, "fmask"), (8, .kernelGSBase, "kernelgsbase"),
  ]
  for (number, register, member) in msrs { expect(register, cpu.msrs[number], "env.\(member)") }
  expect(.xcr0, cpu.xcr0, "env.xcr0")
  expect(.pat, cpu.attributeTable, "env.pat")
  let debug: [(Int, Register)] = [
    (0, .dr0), (1, .dr1), (2, .dr2), (3, .dr3), (6, .dr6), (7, .dr7),
  ]
  for (number, register) in debug {
    expect(register, SyntheticCPU.debug[number], "env.dr[\(number)]")
  }
  let segments: [(SegmentRegister, Int)] = [
    (.es, 0), (.cs, 1), (.ss, 2), (.ds, 3), (.fs, 4), (.gs, 5), (.ldtr, 6), (.tr, 7),
  ]
  for (register, number) in segments {
    let segment = registers[register].value
    #expect(segment?.selector == UInt16(cpu.selector(number)))
    #expect(segment?.base == cpu.base(number))
    #expect(segment?.limit == UInt32(0x100 + number))
    #expect(segment?.attributes.rawValue == (number == 1 ? cpu.codeFlags & 0xf0_ff00 : 0x9300))
  }
  for (register, number) in [(TableRegister.gdtr, 8), (.idtr, 9)] {
    #expect(
      registers[register].value
        == DescriptorTable(base: cpu.base(number), limit: UInt32(0x100 + number)))
  }
}

struct CPUTests {
  @Test(arguments: SyntheticCPU.Layout.all, [false, true])
  func everyRegisterIsTheVCPUs(layout: SyntheticCPU.Layout, usesKVM: Bool) throws {
    let cpus = (0..<3).map { SyntheticCPU($0, layout: layout, usingKVM: usesKVM) }
    let guest = try guest(cpus)
    #expect(guest.processors.map(\.index) == [0, 1, 2])
    #expect(guest.processors.map(\.state) == [.exited, .exited, .exited])
    for (processor, cpu) in zip(guest.processors, cpus) { expectRegisters(processor, of: cpu) }
    #expect(names(guest).isEmpty)
  }

  @Test func vCPUsComeInTheOrderOfTheirIndexWhateverTheirThreads() throws {
    var cpus = (0..<3).map { SyntheticCPU($0) }
    for index in 0..<3 { cpus[index].threadID = 4800 - Int32(index) }
    let guest = try guest(cpus)
    #expect(guest.processors.map { $0.registers[.rip].value } == cpus.map(\.instructionPointer))
  }

  // MARK: Freshness

  @Test(arguments: SyntheticCPU.Layout.all)
  func registersThatKVMHadAreUnknown(layout: SyntheticCPU.Layout) throws {
    var cpus = (0..<2).map { SyntheticCPU($0, layout: layout, usingKVM: true) }
    cpus[1].isDirty = false
    let guest = try guest(cpus)
    #expect(guest.processors.map(\.state) == [.exited, .stale])
    expectRegisters(guest.processors[0], of: cpus[0])
    #expect(guest.processors[1].registers.unknown.count == RegisterFile().unknown.count)
    #expect(
      reason(guest.processors[1].registers[.rip])?.contains("before the vCPU last ran") == true)
    #expect(names(guest) == ["vcpu.stale"])
  }

  @Test func vCPUThatIsToBeThrottledHasNoCurrentRegisters() throws {
    var cpu = SyntheticCPU(0, layout: .qemu100, usingKVM: true)
    cpu.isDirty = false
    cpu.isThrottled = true
    cpu.isStopped = false
    cpu.isRunning = true
    #expect(try guest([cpu]).processors.map(\.state) == [.stale])
  }

  @Test func copyThatContradictsItselfIsNotUsed() throws {
    var cpu = SyntheticCPU(0, usingKVM: true)
    cpu.codeFlags = 0xcf_9b00
    let guest = try guest([cpu])
    #expect(guest.processors.map(\.state) == [.stale])
    #expect(reason(guest.processors[0].registers[.rax]) == "QEMU's copy contradicts itself")
  }

  @Test func emulatedVCPUThatRunsHasItsDirectionAndNoStatusFlags() throws {
    var cpu = SyntheticCPU(0)
    cpu.isRunning = true
    cpu.isStopped = false
    cpu.flags = 0x202
    cpu.direction = -1
    let guest = try guest([cpu])
    #expect(guest.processors.map(\.state) == [.running])
    #expect(
      guest.processors[0].registers[.rflags]
        == .known(0x602, RegisterSource(.qemu, "env.eflags without status flags")))
    #expect(names(guest) == ["vcpu.running"])
  }

  // MARK: What cannot be told

  @Test func vCPUThatWaitsForItsStartDoesNotHideThePlacesOfTheOthers() throws {
    var waiting = SyntheticCPU(1)
    waiting.control = [0x6000_0010, 0, 0, 0, 0]
    waiting.hiddenFlags = 0
    waiting.codeFlags = 0x9b00
    waiting.flags = 2
    waiting.efer = 0
    waiting.msrs = [UInt64](repeating: 0, count: 9)
    waiting.xcr0 = 1
    let cpus = [SyntheticCPU(0), waiting]
    let guest = try guest(cpus)
    for (processor, cpu) in zip(guest.processors, cpus) { expectRegisters(processor, of: cpu) }
  }

  @Test func withoutLongModeModelSpecificRegistersAreUnknown() throws {
    var cpu = SyntheticCPU(0)
    cpu.control = [0x6000_0010, 0, 0, 0, 0]
    cpu.hiddenFlags = 0
    cpu.codeFlags = 0x9b00
    let registers = try guest([cpu]).processors[0].registers
    #expect(registers[.rip].value == cpu.instructionPointer)
    #expect(reason(registers[.efer])?.contains("long mode") == true)
    #expect(reason(registers[.lstar])?.contains("long mode") == true)
    #expect(registers[.pat].value == nil)
  }

  @Test func secondPlaceThatFitsMakesRegistersUnknown() throws {
    let cpu = SyntheticCPU(0)
    let registers = try guest([cpu]) { core in
      for (number, value) in cpu.msrs.enumerated() {
        core.store(value, at: cpu.environment + 0x1800 + 8 * UInt64(number))
      }
      core.store(cpu.attributeTable, at: cpu.environment + cpu.layout.attributeTable + 0x40)
    }.processors[0].registers
    #expect(registers[.rax].value == cpu.general(0))
    #expect(registers[.efer].value == cpu.efer)
    #expect(reason(registers[.lstar])?.hasPrefix("2 places") == true)
    #expect(registers[.pat].value == nil)
  }

  @Test(arguments: [(0x10, true), (0x33, true), (0x23, true), (0x18, false), (0x2b, false)])
  func codeSegmentTellsThePlaceOfSTAR(selector: UInt32, fits: Bool) throws {
    let cpu = SyntheticCPU(0)
    let registers = try guest([cpu]) { core in
      core.store(selector, at: cpu.environment + 184 + 24)
    }.processors[0].registers
    #expect(registers[.star].value == (fits ? cpu.msrs[3] : nil))
  }

  @Test func registersThatOnlyOneVCPUHasInAPlaceAreUnknown() throws {
    var cpus = [SyntheticCPU(0), SyntheticCPU(1)]
    cpus[1].attributeTable = 0x0007_0406_0007_0406
    cpus[1].msrs[7] = 0
    let processors = try guest(cpus).processors
    for processor in processors {
      #expect(reason(processor.registers[.lstar])?.hasPrefix("no place") == true)
      #expect(processor.registers[.pat].value == nil)
    }
  }

  @Test func secondCopyOfAllRegistersMakesThemUnknown() throws {
    let cpu = SyntheticCPU(0)
    let guest = try guest([cpu]) { core in
      let bytes = core.memory.bytes(at: PhysicalAddress(cpu.environment), count: 464)
      core.write(bytes, at: cpu.environment + 0x5000)
    }
    #expect(guest.processors.map(\.state) == [.stale])
    #expect(guest.processors[0].registers[.rax].value == nil)
    #expect(names(guest) == ["vcpu.not-found"])
  }

  @Test func withoutItsAPICAVCPUHasNoPriority() throws {
    let cpu = SyntheticCPU(0)
    let registers = try guest([cpu]) { core in
      core.store(UInt64(0), at: cpu.environment + cpu.layout.apic)
    }.processors[0].registers
    #expect(registers[.lstar].value == cpu.msrs[5])
    #expect(reason(registers[.cr8])?.contains("APIC") == true)
    #expect(reason(registers[.apicBase])?.contains("APIC") == true)
  }

  @Test func threadThatTheProcessDoesNotHaveIsNoVCPU() throws {
    let guest = try guest([SyntheticCPU(0)]) { $0.threads.removeLast() }
    #expect(guest.processors.isEmpty)
    #expect(names(guest) == ["vcpu.not-found"])
  }

  @Test func pointerToAnotherThreadIsNoVCPU() throws {
    let cpu = SyntheticCPU(0)
    let guest = try guest([cpu]) { core in
      core.store(SyntheticCore.threadBase(1), at: cpu.object + SyntheticCPU.objectSize + 0x800)
    }
    #expect(guest.processors.isEmpty)
  }

  // MARK: QEMU's list

  @Test(arguments: [SyntheticCPU.Layout.qemu72, .qemu100])
  func listLeadsToAllInItsOrder(layout: SyntheticCPU.Layout) throws {
    var cpus = (0..<3).map { SyntheticCPU($0, layout: layout) }
    for index in 0..<3 { cpus[index].threadID = 4800 - Int32(index) }
    let image = try image(cpus)
    let found = CPUThread.all(
      listedAt: VirtualAddress(SyntheticCPU.head), of: image, threads: ThreadTable(image.core))
    #expect(found?.map(\.id) == [4800, 4799, 4798])
    #expect(found?.map(\.address.rawValue) == cpus.map { $0.object + layout.thread })
  }

  @Test func listThatIsBrokenIsNotBelieved() throws {
    let cpus = (0..<3).map { SyntheticCPU($0) }
    let node = cpus[0].layout.node
    let breaks: [(inout SyntheticCore) -> Void] = [
      { $0.store(cpus[0].object, at: cpus[2].object + node) },
      { $0.store(cpus[2].object, at: cpus[0].object + node) },
      { $0.store(UInt64(0x1000), at: cpus[1].object + node) },
      { $0.store(UInt64(0), at: SyntheticCPU.head) },
      { $0.store(UInt64.max - 7, at: SyntheticCPU.head) },
    ]
    for damage in breaks {
      let image = try image(cpus, changing: damage)
      #expect(
        CPUThread.all(
          listedAt: VirtualAddress(SyntheticCPU.head), of: image, threads: ThreadTable(image.core))
          == nil)
    }
  }

  // MARK: Damage

  @Test func coreThatEndsInTheRegistersHasThemNot() throws {
    let cpu = SyntheticCPU(0)
    for end in [0x2bc0, 0x2c00, 0x2d00, 0x5800] {
      let guest = try guest([cpu]) { core in
        let last = core.mappings.count - 1
        core.mappings[last].size = (cpu.object - SyntheticCPU.heap + UInt64(end)) & ~4095
      }
      #expect(guest.processors.count <= 1)
      #expect(guest.processors.allSatisfy { $0.registers[.cr8].value == nil })
    }
  }

  @Test func damageNeverTraps() throws {
    var generator = SeededGenerator(seed: 7)
    let cpus = (0..<2).map { SyntheticCPU($0, usingKVM: true) }
    for _ in 0..<60 {
      _ = try guest(cpus) { core in
        for _ in 0..<40 {
          let cpu = cpus.randomElement(using: &generator) ?? cpus[0]
          let offset = UInt64.random(in: 0..<0x6000, using: &generator) & ~7
          let value = [
            0, .max, 1 << 63, cpu.object, UInt64.random(in: .min ... .max, using: &generator),
          ]
          core.store(value.randomElement(using: &generator) ?? 0, at: cpu.object + offset)
        }
      }
    }
  }
}
