import Guest
import LinuxKernel
import Memory
import QEMUProcess
import SyntheticDumps
import Testing
import X86

/// What a guest's kernel tells of vCPUs of which nothing is known.
struct CPUDerivationTests {
  private struct Inner {
    let kernel: SyntheticKernel
    let source: SyntheticSource
    let table: VirtualAddress

    /// - Parameters:
    ///   - hasTable: `idt_descr` names a table that is mapped.
    ///   - crashed: CPUs whose registers the kernel saved when it crashed; nil if it did not.
    init(hasTable: Bool = true, crashed: [Int]? = nil) {
      var options = SyntheticKernel.Options()
      options.memorySize = 32 << 20
      options.imageAddress = PhysicalAddress(0x40_0000)
      var kernel = SyntheticKernel(KernelTypes([:], seed: 1), options, firstFrame: 0x600)
      let table = kernel.define("idt_table", size: 4096)
      let descriptor = kernel.define("idt_descr", size: 10)
      kernel.store(UInt16(0xfff), at: descriptor)
      kernel.store(hasTable ? table.rawValue : 0xffff_8000_0000_0000, at: descriptor + 2)
      let buffers = kernel.define("crash_notes_area", size: 4096)
      let pointer = kernel.define("crash_notes", size: 8)
      kernel.store(buffers.rawValue &- 0x1000, at: pointer)
      let offsets = kernel.define("__per_cpu_offset", size: 64)
      for cpu in 0..<4 { kernel.store(0x1000 + 0x200 * UInt64(cpu), at: offsets + 8 * UInt64(cpu)) }
      for cpu in crashed ?? [] {
        for (index, byte) in SyntheticNote.processStatus(cpu: UInt32(cpu)).bytes.enumerated() {
          kernel.store(byte, at: buffers + 0x200 * UInt64(cpu) + UInt64(index))
        }
      }
      let text = kernel.finish() + (crashed == nil ? "" : "CRASHTIME=1700000000\n")
      let bytes = SyntheticNote.vmcoreinfo(text).bytes
      let frame = kernel.machine.allocate((bytes.count + 4095) / 4096)
      kernel.machine.memory.write(bytes, at: frame.address)
      self.kernel = kernel
      self.table = table
      source = SyntheticSource(kernel.machine.memory)
    }

    func derived(_ processors: [VirtualProcessor]) throws -> Guest {
      let guest = Guest(
        identity: GuestIdentity(name: "g", uuid: nil, pid: 1, command: nil, backend: "QEMU (KVM)"),
        memory: MemoryMap(wholeOf: source), processors: processors, findings: [])
      let kernel = try #require(GuestKernels(of: guest, in: source, threads: 1).kernels.first)
      return guest.derivingLostRegisters(from: kernel, in: source)
    }
  }

  private var lost: VirtualProcessor {
    VirtualProcessor(index: 0, state: .stale, registers: RegisterFile())
  }

  @Test func lostVCPUGetsTheKernelsTablesAndNothingElse() throws {
    let inner = Inner()
    let guest = try inner.derived([lost])
    let registers = guest.processors[0].registers
    #expect(guest.processors[0].state == .stale)
    #expect(
      registers[.cr3]
        == .known(
          inner.kernel.tables.root.rawValue, RegisterSource(.derived, "swapper_pg_dir")))
    #expect(
      registers[.idtr]
        == .known(
          DescriptorTable(base: inner.table.rawValue, limit: 0xfff),
          RegisterSource(.derived, "idt_descr")))
    #expect(registers.unknown.count == RegisterFile().unknown.count - 2)
    #expect(guest.findings.map(\.name) == ["vcpu.derived"])
  }

  @Test func crashedKernelTellsTheRegistersOfTheCPUsThatItSaved() throws {
    let inner = Inner(crashed: [0, 2])
    let all = (0..<3).map {
      VirtualProcessor(index: $0, state: .stale, registers: RegisterFile())
    }
    let guest = try inner.derived(all)
    for index in [0, 2] {
      let registers = guest.processors[index].registers
      let source = RegisterSource(.guestKernel, "crash_notes of CPU \(index)")
      // user_regs_struct: R15 is the first, RIP the 17th, RFLAGS the 19th, RSP the 20th.
      for (register, place) in [
        (Register.r15, 0), (.rax, 10), (.rip, 16), (.rflags, 18), (.rsp, 19),
      ] {
        #expect(registers[register] == .known(UInt64(index) << 32 | UInt64(place), source))
      }
      #expect(registers[.cr3].value == inner.kernel.tables.root.rawValue)
      #expect(registers[.cs].value == nil)
    }
    #expect(guest.processors[1].registers[.rip].value == nil)
    #expect(guest.findings.map(\.name) == ["vcpu.derived", "vcpu.crash-notes"])
  }

  @Test func notesOfAKernelThatHasNotCrashedAreNotUsed() throws {
    let inner = Inner()
    #expect(try inner.derived([lost]).processors[0].registers[.rip].value == nil)
  }

  @Test func interruptTableThatIsNotMappedIsNotTold() throws {
    let registers = try Inner(hasTable: false).derived([lost]).processors[0].registers
    #expect(registers[.cr3].value != nil)
    #expect(registers[.idtr].value == nil)
  }

  @Test func vCPUOfWhichAnythingIsKnownIsLeftAlone() throws {
    var registers = RegisterFile()
    registers[.rip] = .known(7, RegisterSource(.qemu, "env.eip"))
    let known = VirtualProcessor(index: 1, state: .exited, registers: registers)
    let guest = try Inner().derived([known])
    #expect(guest.processors == [known])
    #expect(guest.findings.isEmpty)
  }
}
