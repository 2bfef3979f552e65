import ControlBlocks
import DumpFiles
import Guest
import KVMHost
import LinuxKernel
import Memory
import Testing
import X86

/// The Intel sample's host with something changed in its memory.
@Suite struct OddIntelHostTests {
  let sample: Sample
  private let sources: VMCSLayoutSources
  private let whole: KVMHost.Guests
  private var memory: EditedMemory

  init() throws {
    sample = try Sample.intel.get()
    let layouts = VMCSINFOSearch(sample.dump, threads: 2).layouts()
    sources = VMCSLayoutSources(ofUser: layouts, threads: 2)
    whole = try sample.guests(vmcsLayouts: sources)
    memory = EditedMemory(sample.dump)
  }

  private func offset(of name: String, in structure: ControlStructure) throws -> UInt64 {
    let field = try #require(structure.fields.first { $0.name == name })
    return UInt64(try #require(field.offsets.first))
  }

  /// Both ways of knowing the layout must find the same structures stale.
  private func expectStale(_ count: Int, saying text: String) throws {
    for sources in [sources, VMCSLayoutSources(infersAlways: true)] {
      let found = try sample.guests(in: memory, vmcsLayouts: sources)
      let findings = found.guests.flatMap(\.findings).filter { $0.name == "vcpu.vmcs-stale" }
      #expect(findings.count == count)
      #expect(findings.allSatisfy { $0.text.contains(text) && $0.severity == .warning })
      for (structure, before) in zip(found.controlStructures, whole.controlStructures) {
        #expect(structure.address == before.address)
      }
      let states = found.controlStructures.map { if case .stale = $0.state { true } else { false } }
      let processors = found.guests.flatMap(\.processors)
      #expect(states.count { $0 } == count && states.count == processors.count)
      for (isStale, processor) in zip(states, processors) {
        // KVM's copies remain; what is in the structure alone is not taken from it.
        #expect(processor.registers[.rax].value != nil && processor.registers[.lstar].value != nil)
        #expect((processor.registers[.gdtr].value == nil) == isStale)
        #expect((processor.registers[.sysenterEIP].value == nil) == isStale)
      }
    }
  }

  @Test mutating func `a VMCS that was never written back is stale, and no other is`() throws {
    let address = try #require(whole.controlStructures[2].address)
    for offset in stride(from: 8, to: pageSize, by: 8) as StrideTo<UInt64> {
      try memory.store(0, at: address + offset)
    }
    try expectStale(1, saying: "nothing but its head")
  }

  @Test mutating func `a VMCS with what another vCPU left in its page is stale`() throws {
    let other = try #require(whole.controlStructures[5].address)
    let old = try sample.dump.page(other.frame)
    let address = try #require(whole.controlStructures[1].address)
    for offset in stride(from: 0, to: Int(pageSize), by: 8) {
      let value = try #require(old.load(UInt64.self, at: offset))
      try memory.store(value, at: address + UInt64(offset))
    }
    try expectStale(1, saying: "the processor has not written it back")
  }

  @Test mutating func `a VMCS that is older than the last exit is stale`() throws {
    let structure = whole.controlStructures[0]
    let address = try #require(structure.address)
    for name in ["VM_EXIT_REASON", "GUEST_RFLAGS", "GUEST_RIP", "GUEST_RSP"] {
      try memory.store(
        0x2a, size: 4, at: address + offset(of: name, in: structure))
    }
    let found = try sample.guests(in: memory, vmcsLayouts: sources)
    let finding = try #require(
      found.guests[0].findings.first { $0.name == "vcpu.vmcs-stale" })
    #expect(finding.text.contains("older than the last exit"))
    #expect(found.guests[0].processors[0].registers[.cs].value == nil)
  }

  @Test mutating func `a VMCS that KVM's structures do not lead to is found in memory`() throws {
    let types = try #require(try sample.kernel.module("kvm_intel")).types
    let vmx = try sample.processor(0).container(
      of: try #require(types.structure(named: "vcpu_vmx")), member: "vcpu")
    try memory.set(try vmx["vmcs01.vmcs"], to: 0xdead_0000_0000)
    let found = try sample.guests(in: memory, vmcsLayouts: sources)
    #expect(
      found.guests[0].findings.map(\.name) == ["vcpu.vmcs-layout", "vcpu.vmcs-searched"])
    #expect(found.guests.map(\.processors) == whole.guests.map(\.processors))
  }

  @Test mutating func `without a list of VMs memory still shows their VMCSs`() throws {
    let list = try sample.vmList
    for link in ["next", "prev"] { try memory.set(try list[link], to: 0xdead_0000_0000) }
    #expect(throws: KVMError.self) { try sample.guests(in: memory, vmcsLayouts: sources) }
    let found = try sample.guests(
      in: memory, vmcsLayouts: sources, searchingForVMCSs: true)
    #expect(found.guests.isEmpty && found.failures.count == 1)
    #expect(
      Set(found.controlStructures.map(\.address)) == Set(whole.controlStructures.map(\.address)))
    #expect(
      found.controlStructures.allSatisfy {
        if case .current = $0.state { $0.owner == nil } else { false }
      })
  }
}
