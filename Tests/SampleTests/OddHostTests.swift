import DumpFiles
import Guest
import KVMHost
import LinuxKernel
import Memory
import Testing
import X86

/// The sample's host with something changed in its memory.
@Suite struct OddHostTests {
  let sample: Sample
  private var memory: EditedMemory

  init() throws {
    sample = try Sample.shared.get()
    memory = EditedMemory(sample.dump)
  }

  // MARK: Machines

  @Test mutating func `a host without a VM says so`() throws {
    let list = try sample.vmList
    try memory.set(try list["next"], to: list.address.rawValue)
    #expect { try sample.guests(in: memory) } throws: { error in
      if case KVMError.noGuests = error { true } else { false }
    }
  }

  @Test mutating func `a kernel without KVM is no host`() throws {
    let module = try sample.kernel.structure("module")
    let modules = try sample.kernel.object("modules", type: "list_head")
      .listElements(of: module, link: "list", limit: 100)
    for module in modules where try module["name"].text() == "kvm" {
      try memory.set(try module["name"].element(0), to: UInt64(UInt8(ascii: "X")))
    }
    #expect { try sample.guests(in: memory) } throws: { error in
      if case KVMError.noKVM = error { true } else { false }
    }
  }

  @Test mutating func `a list of VMs that runs in a circle ends, and what is on it is found`()
    throws
  {
    let link = try sample.machine["vm_list"]
    try memory.set(try link["next"], to: link.address.rawValue)
    let found = try sample.guests(in: memory)
    #expect(found.guests.map(\.identity) == (try sample.guests()).guests.map(\.identity))
    let failure = try #require(found.failures.first)
    #expect(found.failures.count == 1)
    if case .kernel(.endless) = failure {} else { Issue.record("\(failure)") }
  }

  @Test mutating func `a lost module costs no other`() throws {
    let type = try sample.kernel.structure("module")
    let modules = try sample.kernel.object("modules", type: "list_head")
      .listElements(of: type, link: "list", limit: 100)
    let names = try modules.map { try $0["name"].text() }
    let place = try #require(names.firstIndex { !$0.hasPrefix("kvm") })
    try memory.set(try modules[place]["list.next"], to: 0x10)
    let found = try sample.guests(in: memory)
    #expect(found.guests.count == (try sample.guests()).guests.count)
    #expect(found.failures.isEmpty)
  }

  @Test mutating func `a VM whose slots cannot be read is named, and no other is lost`() throws {
    try memory.set(try sample.machine["memslots"].element(0), to: 0)
    let found = try sample.guests(in: memory)
    #expect(found.guests.isEmpty)
    #expect(found.failures.count == 1)
    #expect(found.failures.first?.name == "kvm.machine")
  }

  @Test mutating func `a guest under SEV is recognised, and its memory is not taken`() throws {
    let types = try #require(try sample.kernel.module("kvm_amd")).types
    let svm = KernelObject(
      in: sample.kernel.memory, at: try sample.machine.address,
      type: try #require(types.structure(named: "kvm_svm")))
    try memory.set(try svm["sev_info.active"], to: 1)
    let guest = try sample.guest(in: memory)
    #expect(guest.findings.map(\.name) == ["guest.encrypted"])
    let survey = MemorySurvey(of: guest.memory)
    #expect(survey.missing == [.encrypted: survey.pages])
    #expect(guest.processors.map(\.registers.isComplete) == [true, true])

    try memory.set(try svm["sev_info.es_active"], to: 1)
    let hidden = try sample.guest(in: memory)
    #expect(hidden.processors.allSatisfy { $0.registers[.rip].value == nil })
  }

  // MARK: vCPUs

  @Test mutating func `a vCPU in guest mode whose processor saved nothing is stale`() throws {
    try memory.set(try sample.processor(0)["mode"], to: 1)
    let guest = try sample.guest(in: memory, notes: [])
    #expect(guest.processors.map(\.state) == [.stale, .exited])
    #expect(guest.findings.map(\.name) == ["vcpu.stale"])
  }

  @Test mutating func `a vCPU in guest mode whose thread the crash stopped is current`() throws {
    let vcpu = try sample.processor(0)
    try memory.set(try vcpu["mode"], to: 1)
    // The excerpt does not hold the thread's struct pid: one is made where vcpu_id is.
    let pid: UInt64 = 0x1234
    let id = try vcpu["vcpu_id"]
    let type = try sample.kernel.structure("pid")
    let number = try KernelObject(in: id.memory, at: VirtualAddress(0), type: type)["numbers"]
      .element(0)["nr"]
    try memory.set(id, to: pid)
    try memory.set(try vcpu["pid"], to: id.address.rawValue - number.address.rawValue)
    var status = [UInt8](repeating: 0, count: 336)
    status.replaceSubrange(32..<34, with: [UInt8(pid & 0xff), UInt8(pid >> 8)])
    let guest = try sample.guest(in: memory, notes: [("CORE", 1, status)])
    #expect(guest.processors.map(\.state) == [.exited, .exited])
    #expect(guest.findings.isEmpty)
  }

  @Test mutating func `a vCPU that ran when its host was stopped has that CPU's registers`() throws
  {
    let vcpu = try sample.processor(1)
    try memory.set(try vcpu["mode"], to: 1)
    let cpu = Int(try vcpu["cpu"].unsigned())
    // What the host's hypervisor would have noted: registers with the guest's CR3.
    var registers = RegisterFile()
    let source = RegisterSource(.hostProcessor, "")
    for register in Register.allCases { registers[register] = .known(0x1234, source) }
    registers[.cr3] = .known(0x1000, source)
    let live = ProcessorNotes.qemuState(registers)
    let hostState = try #require(sample.dump.notes.first { $0.name == "QEMU" }).description
    let notes = (0..<4).map { ("QEMU", UInt32(0), $0 == cpu ? live : hostState) }
    let guest = try sample.guest(in: memory, notes: notes)
    #expect(guest.processors[1].state == .running)
    #expect(guest.processors[1].registers[.rip].value == 0x1234)
    // What only the control block has is from before the guest was entered.
    #expect(guest.processors[1].registers[.lstar].value == nil)
    #expect(guest.processors[1].registers[.efer].value != nil)
    #expect(guest.processors[0].state == .exited)
    #expect(guest.findings.map(\.name) == ["vcpu.running"])
  }

  @Test mutating func `with shadow paging CR3 is KVM's own copy`() throws {
    let types = try #require(try sample.kernel.module("kvm_amd")).types
    let vcpu = try sample.processor(0)
    let svm = try vcpu.container(
      of: try #require(types.structure(named: "vcpu_svm")), member: "vcpu")
    let block = try svm["vmcb"].required()
    try memory.set(try block["save.cr3"], to: 0xabc000)
    #expect(try sample.guest(in: memory).processors[0].registers[.cr3].value == 0xabc000)
    try memory.set(try block["control.nested_ctl"], to: 0)
    let kept = try vcpu["arch.cr3"].unsigned()
    #expect(try sample.guest(in: memory).processors[0].registers[.cr3].value == kept)
  }

  // MARK: Pages

  /// Where the page table entry of the guest's page at `address` lies.
  private func entry(of address: GuestPhysicalAddress) throws -> PhysicalAddress {
    let machine = try sample.machine
    let tables = try sample.kernel.pageTables(of: try machine["mm"].required())
    let region = try #require(try sample.guest().memory.region(holding: address))
    let hex = try #require(region.origin.split(separator: " ").first { $0.hasPrefix("0x") })
    let base = try #require(UInt64(hex.dropFirst(2), radix: 16))
    let virtual = base + address.distance(from: region.start)
    var table = tables.root
    for level in stride(from: UInt64(tables.levels - 1), through: 1, by: -1) {
      let index = virtual >> (12 + 9 * level) & 511
      let page = try sample.dump.page(table.frame)
      let next = try #require(page.load(UInt64.self, at: Int(index) * 8))
      table = PhysicalAddress(next & 0x000f_ffff_ffff_f000)
    }
    return table + (virtual >> 12 & 511) * 8
  }

  /// A page of the guest that has data, in a page table of 4 KiB pages.
  private func dataPage() throws -> (address: GuestPhysicalAddress, frame: PageFrameNumber) {
    let map = try sample.guest().memory
    for run in map.runs(from: GuestPhysicalAddress(0), pages: 2048) {
      if case .frames(let frame) = run.content, run.pages < 16 { return (run.start, frame) }
    }
    throw KVMError.noGuests(release: "")
  }

  private func content(of address: GuestPhysicalAddress) throws -> PageContent? {
    try sample.guest(in: memory).memory.runs(from: address, pages: 1).first?.content
  }

  @Test mutating func `a page that was swapped out is missing, not zero`() throws {
    let (address, _) = try dataPage()
    let devices = try sample.kernel.address(of: "nr_swapfiles")
    try memory.store(1, size: 4, at: try sample.kernel.memory.translate(devices))
    // Type 0, offset 5, in the inverted form of x86-64.
    let place = try entry(of: address)
    try memory.store((~(UInt64(5) << 14) >> 5) & ((1 << 59) - 1) & ~0x1ff, at: place)
    #expect(try content(of: address) == .missing(.swappedOut, device: 0))
    // A type that is no device: an entry of migration, or a marker.
    try memory.store(UInt64(30) << 59 | 0x200, at: place)
    #expect(try content(of: address) == .missing(.specialEntry))
  }

  @Test mutating func `a page that is protected for a while is still there`() throws {
    let (address, frame) = try dataPage()
    let inverted = ~frame.address.rawValue & 0x000f_ffff_ffff_f000
    let place = try entry(of: address)
    try memory.store(inverted | 1 << 8, at: place)
    #expect(try content(of: address) == .frames(frame))
    // Kernels before 4.19 do not invert.
    try memory.store(frame.address.rawValue | 1 << 8, at: place)
    #expect(try content(of: address) == .frames(frame))
  }

  @Test mutating func `a page without an entry was never touched`() throws {
    let (address, _) = try dataPage()
    try memory.store(0, at: try entry(of: address))
    #expect(try content(of: address) == .zero(.neverTouched))
  }

  @Test mutating func `a page that the dump's filter took is missing, not zero`() throws {
    let (address, frame) = try dataPage()
    memory.remove(frame)
    #expect(try content(of: address) == .missing(.filtered))
  }

  @Test mutating func `pages behind a page table that is not there are missing`() throws {
    let (address, _) = try dataPage()
    memory.remove(try entry(of: address).frame)
    #expect(try content(of: address) == .missing(.pageTableMissing))
  }
}
