import Guest
import KVMHost
import LinuxKernel
import Memory
import SyntheticDumps
import Testing
import X86

/// Guests whose memory and registers the host's processor or its kernel keeps from the VMM.
@Suite struct ProtectionTests {
  /// A guest of 16 pages, of which the VMM maps the first three.
  private struct Machine {
    var host: SyntheticHost
    let machine: SyntheticHost.Machine
    /// The pages of its guest_memfd.
    let mapping: SyntheticObject

    init(
      _ base: SyntheticHost.Options, type: UInt64, privateFrames: [UInt64] = [],
      _ changes: [@Sendable (inout KernelTypes) -> Void]
    ) {
      var options = base
      options.change = { types in
        for change in changes { change(&types) }
      }
      host = SyntheticHost(options)
      let process = host.addProcess(pid: 4711, arguments: ["qemu", "-name", "web1"])
      for page in 0..<3 as Range<UInt64> {
        let frame = host.frame(OneGuest.bytes(page))
        process.tables.map(OneGuest.ram + page << pageShift, to: frame, in: &host.kernel.machine)
      }
      mapping = host.addFile(operations: "ext4_aops")
      let file = host.open(
        host.addDentry("[kvm-gmem]", in: nil), on: host.addMount().mount, pages: mapping)
      var slot = SyntheticHost.Slot(
        id: 0, guestFrame: 0, pages: OneGuest.pages, address: OneGuest.ram, flags: 4)
      slot.privateFile = (file.address, Self.firstPage)
      machine = host.addMachine(
        process, slots: [slot], processors: 2, type: type, privateFrames: privateFrames)
    }

    static let firstPage: UInt64 = 0x40

    /// Gives the guest private pages, with bytes that tell their place.
    mutating func fill(_ frames: [UInt64]) {
      var entries: [UInt64: UInt64] = [:]
      for frame in frames {
        let bytes = [UInt8](repeating: UInt8(0xa0 + frame), count: Int(pageSize))
        let index = Self.firstPage + frame
        entries[index] =
          host.descriptor(of: host.frame(bytes, as: .cache(mapping, index: index))).address.rawValue
      }
      host.fill(mapping, entries)
    }
  }

  private static func expectHidden(_ guest: Guest, by technology: String) {
    #expect(guest.findings.map(\.name) == ["guest.encrypted"])
    #expect(guest.findings.first?.text.contains("registers are encrypted (\(technology))") == true)
    #expect(guest.processors.count == 2)
    for processor in guest.processors {
      for register in [Register.rip, .rax, .cr3] {
        #expect(
          processor.registers[register] == .unknown(reason: "encrypted by \(technology)"))
      }
    }
  }

  // MARK: Intel

  private static let trustDomains:
    [(name: String, type: UInt64, hasPrivateMemory: Bool, protectsState: Bool)] = [
      ("its type (since 6.16)", 5, true, false), ("a type of its own kernel", 2, false, false),
      ("the type that is another's since 6.8", 1, false, false),
      ("the state of its vCPUs", 0, false, true),
    ]

  @Test(arguments: trustDomains.map(\.name))
  func `a TD is recognised by`(what: String) throws {
    let way = try #require(Self.trustDomains.first { $0.name == what })
    var one = Machine(
      .intel, type: way.type,
      [Variant.machineTypes, Variant.trustDomains]
        + (way.hasPrivateMemory ? [Variant.privateMemory] : []))
    if way.protectsState {
      for processor in one.machine.processors {
        one.host.kernel.set(processor.vcpu, "arch.guest_state_protected", 1)
      }
    }
    let guest = try Analysis(one.host).guest
    Self.expectHidden(guest, by: "Intel TDX")
    let survey = MemorySurvey(of: guest.memory)
    // Where the kernel does not tell what is shared, nothing is believed to be.
    #expect(survey.missing[.encrypted] == (way.hasPrivateMemory ? nil : OneGuest.pages))
  }

  @Test func `a TD before VMs had types is recognised by the state of its vCPUs`() throws {
    var one = Machine(
      .intel, type: 0,
      [Variant.trustDomains, { $0["kvm_vcpu_arch"].add("guest_state_protected", .u8) }])
    one.host.kernel.set(one.machine.processors[0].vcpu, "arch.guest_state_protected", 1)
    Self.expectHidden(try Analysis(one.host).guest, by: "Intel TDX")
  }

  @Test func `what a TD shares with its host is given`() throws {
    let one = Machine(
      .intel, type: 5, privateFrames: [0] + Array(3..<14),
      [Variant.machineTypes, Variant.trustDomains, Variant.privateMemory])
    let found = try Analysis(one.host)
    let guest = try found.guest
    Self.expectHidden(guest, by: "Intel TDX")
    #expect(guest.findings.first?.text.contains("private memory") == true)
    let survey = MemorySurvey(of: guest.memory)
    #expect(survey.missing == [.encrypted: 12])
    #expect(survey.present == 2)
    #expect(survey.zero == [.neverTouched: 2])
    #expect(try found.content(0) == .missing(.encrypted), "the VMM's page there is none of it")
    #expect(try found.bytes(1) == OneGuest.bytes(1))
    #expect(try found.bytes(2) == OneGuest.bytes(2))
  }

  @Test func `other guests of a host with TDX are what they are`() throws {
    let one = Machine(
      .intel, type: 0, [Variant.machineTypes, Variant.trustDomains, Variant.privateMemory])
    let guest = try Analysis(one.host).guest
    #expect(!guest.findings.contains { $0.name == "guest.encrypted" })
    #expect(MemorySurvey(of: guest.memory).present == 3)
    #expect(guest.processors[1].registers[.rax].value == SyntheticHost.value("rax", 1))
  }

  // MARK: Protected by software

  private static let software: [@Sendable (inout KernelTypes) -> Void] = [
    Variant.machineTypes, Variant.trustDomains, Variant.privateMemory,
  ]

  @Test(arguments: [SyntheticHost.Options(), .intel])
  func `private memory that is not encrypted is read`(options: SyntheticHost.Options) throws {
    var one = Machine(options, type: 1, privateFrames: Array(1..<12), Self.software)
    one.fill([1, 5])
    let found = try Analysis(one.host)
    let guest = try found.guest
    #expect(!guest.findings.contains { $0.name == "guest.encrypted" })
    let survey = MemorySurvey(of: guest.memory)
    #expect(survey.missing.isEmpty)
    #expect(survey.present == 3)
    #expect(try found.bytes(0) == OneGuest.bytes(0))
    #expect(try found.bytes(1) == [UInt8](repeating: 0xa1, count: Int(pageSize)))
    #expect(try found.bytes(5) == [UInt8](repeating: 0xa5, count: Int(pageSize)))
    #expect(try found.content(2) == .zero(.neverTouched), "the VMM's page there is none of it")
  }

  @Test func `private memory whose file cannot be read is missing, not zero`() throws {
    var one = Machine(.init(), type: 1, privateFrames: Array(1..<12), Self.software)
    one.fill([1, 5])
    one.host.kernel.set(one.mapping, "i_pages.xa_head", 0xffff_8880_7fff_f002)
    let survey = MemorySurvey(of: try Analysis(one.host).guest.memory)
    #expect(survey.missing == [.pageTableMissing: 11])
    #expect(survey.present == 1)
  }

  @Test func `where it is not known what is private all of it is missing`() throws {
    var one = Machine(.init(), type: 1, privateFrames: [1], Self.software)
    one.host.kernel.set(one.machine.object, "mem_attr_array.xa_head", 0xffff_8880_7fff_f002)
    let survey = MemorySurvey(of: try Analysis(one.host).guest.memory)
    #expect(survey.missing == [.pageTableMissing: OneGuest.pages])
  }

  // MARK: AMD

  private static let nestedPaging: [(name: String, type: UInt64, member: String?)] = [
    ("its type (since 6.11)", 4, nil),
    ("the features of its vCPUs' state (since 6.9)", 0, "vmsa_features"),
    ("a mark of distributions' kernels", 0, "snp_active"),
  ]

  @Test(arguments: nestedPaging.map(\.name))
  func `SEV-SNP is recognised by`(what: String) throws {
    let way = try #require(Self.nestedPaging.first { $0.name == what })
    var one = Machine(
      .init(), type: way.type,
      [
        Variant.machineTypes,
        { types in
          for member in ["vmsa_features", "snp_active"] where member == way.member {
            types["kvm_sev_info"].add(member, .u64)
          }
        },
      ])
    let svm = try #require(one.machine.svm)
    for member in ["active", "es_active"] + (way.member.map { [$0] } ?? []) {
      one.host.kernel.set(svm, "sev_info.\(member)", 1)
    }
    let guest = try Analysis(one.host).guest
    Self.expectHidden(guest, by: "AMD SEV-SNP")
    #expect(MemorySurvey(of: guest.memory).missing == [.encrypted: OneGuest.pages])
  }

  @Test func `what a guest under SEV-SNP shares with its host is given`() throws {
    var one = Machine(
      .init(), type: 4, privateFrames: Array(0..<16).filter { $0 != 1 },
      [Variant.machineTypes, Variant.privateMemory])
    one.fill([0, 1])
    for member in ["active", "es_active"] {
      one.host.kernel.set(try #require(one.machine.svm), "sev_info.\(member)", 1)
    }
    let found = try Analysis(one.host)
    Self.expectHidden(try found.guest, by: "AMD SEV-SNP")
    #expect(MemorySurvey(of: try found.guest.memory).missing == [.encrypted: 15])
    #expect(try found.bytes(1) == OneGuest.bytes(1))
  }

  @Test(arguments: [2, 3, 4] as [UInt64])
  func `a guest that is not launched yet is not encrypted`(type: UInt64) throws {
    let one = Machine(.init(), type: type, [Variant.machineTypes])
    let guest = try Analysis(one.host).guest
    #expect(guest.findings.isEmpty)
    #expect(MemorySurvey(of: guest.memory).present == 3)
  }
}
