import ControlBlocks
import Guest
import KVMHost
import LinuxKernel
import Memory
import SyntheticDumps
import Testing
import X86

/// What is found in a synthetic host.
struct Analysis {
  let source: SyntheticSource
  let guests: [Guest]
  let failures: [KVMError]

  init(
    _ host: SyntheticHost, level: DumpLevel? = [], excluding excluded: Set<PageFrameNumber> = [],
    numbered: [Range<PageFrameNumber>] = [],
    notes: [(name: String, type: UInt32, descriptor: [UInt8])] = [], layout: String? = nil
  ) throws {
    var host = host
    let text = host.finish()
    var source = SyntheticSource(host.kernel.machine.memory, dumpLevel: level)
    source.excluded = excluded
    source.numbered = numbered
    try self.init(source, vmcoreinfo: text, notes: notes, layout: layout)
  }

  /// - Parameter layout: the layout of VMCSs that the user gives.
  init(
    _ source: SyntheticSource, vmcoreinfo: String,
    notes: [(name: String, type: UInt32, descriptor: [UInt8])] = [], layout: String? = nil
  ) throws {
    self.source = source
    let text = try #require(Vmcoreinfo(text: Array(vmcoreinfo.utf8)))
    let kernel = try LinuxKernel(text, in: source)
    let found = try KVMHost(
      kernel, in: source, processors: HostProcessors(notes: notes),
      vmcsLayouts: VMCSLayoutSources(
        ofUser: layout.flatMap { VMCSLayout(text: $0, origin: "the test") }.map { [$0] } ?? [])
    ).guests()
    guests = found.guests
    failures = found.failures
  }

  var guest: Guest {
    get throws {
      #expect(failures.isEmpty, "\(failures)")
      return try #require(guests.first)
    }
  }

  /// What is known of one page of the first guest.
  func content(_ guestFrame: UInt64) throws -> PageContent? {
    let address = GuestPhysicalAddress(guestFrame << pageShift)
    return try guest.memory.runs(from: address, pages: 1).first?.content
  }

  /// The bytes of one page of the first guest.
  func bytes(_ guestFrame: UInt64) throws -> [UInt8] {
    try GuestMemory(guest.memory, in: source).page(PageFrameNumber(guestFrame))
  }
}

/// A host with one guest of 16 pages and a slot behind them, of which the first three have data.
struct OneGuest {
  static let ram = VirtualAddress(0x7f12_3456_0000)
  static let pages: UInt64 = 16

  var host: SyntheticHost
  let process: SyntheticHost.Process
  let machine: SyntheticHost.Machine

  init(
    _ options: SyntheticHost.Options = .init(), arguments: [String] = ["qemu", "-name", "web1"],
    slots: [SyntheticHost.Slot] = [
      .init(id: 0, guestFrame: 0, pages: pages, address: ram)
    ],
    processors: Int = 2, node: Int = 0
  ) throws {
    host = SyntheticHost(options)
    process = host.addProcess(pid: 4711, arguments: arguments)
    for page in 0..<3 as Range<UInt64> {
      let frame = host.frame(Self.bytes(page))
      process.tables.map(
        Self.ram + page << pageShift, to: frame, in: &host.kernel.machine)
    }
    machine = host.addMachine(process, slots: slots, processors: processors, node: node)
  }

  /// What the guest has in one of its first three pages.
  static func bytes(_ page: UInt64) -> [UInt8] {
    [UInt8](repeating: UInt8(truncatingIfNeeded: 0x31 + page), count: Int(pageSize))
  }
}

/// Checks everything that a ``OneGuest`` is known to be.
func expectWhole(_ one: OneGuest, processors: Int = 2, name: String? = "web1") throws {
  let found = try Analysis(one.host)
  let guest = try found.guest
  #expect(found.guests.count == 1)
  #expect(guest.identity.name == name)
  #expect(guest.identity.pid == 4711)
  #expect(guest.memory.regions.map(\.start.rawValue) == [0])
  #expect(guest.memory.size == OneGuest.pages << pageShift)
  let survey = MemorySurvey(of: guest.memory)
  #expect(survey.present == 3)
  #expect(survey.zero == [.neverTouched: OneGuest.pages - 3])
  #expect(survey.missingPages == 0)
  for page in 0..<3 as Range<UInt64> { #expect(try found.bytes(page) == OneGuest.bytes(page)) }
  #expect(guest.processors.map(\.index) == Array(0..<processors))
  for processor in guest.processors {
    for register in Register.general + [.rip, .cr0, .cr4, .efer, .dr0, .dr7] {
      #expect(
        processor.registers[register].value
          == SyntheticHost.value(register.rawValue, processor.index), "\(register)")
    }
    for register in [Register.cr3, .rflags, .lstar, .star, .kernelGSBase, .sysenterEIP] {
      #expect(
        processor.registers[register].value
          == SyntheticHost.value("save.\(register.rawValue)", processor.index), "\(register)")
    }
    #expect(
      processor.registers[.gs].value?.base == SyntheticHost.value("save.gs", processor.index))
  }
}
