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

    /// - Parameter hasTable: `idt_descr` names a table that is mapped.
    init(hasTable: Bool = true) {
      var options = SyntheticKernel.Options()
      options.memorySize = 32 << 20
      options.imageAddress = PhysicalAddress(0x40_0000)
      var kernel = SyntheticKernel(KernelTypes([:], seed: 1), options, firstFrame: 0x600)
      let table = kernel.define("idt_table", size: 4096)
      let descriptor = kernel.define("idt_descr", size: 10)
      kernel.store(UInt16(0xfff), at: descriptor)
      kernel.store(hasTable ? table.rawValue : 0xffff_8000_0000_0000, at: descriptor + 2)
      let bytes = SyntheticNote.vmcoreinfo(kernel.finish()).bytes
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
