import ControlBlocks
import DumpFiles
import Guest
import Memory
import SyntheticDumps
import SystemPackage
import Testing
import X86

@testable import QEMUProcess

/// Cores that carry what the host's KVM knew.
struct ControlBlockNoteTests {
  private static let ram: UInt64 = 0x7f00_0000_0000

  private static func note(_ name: String, _ description: [UInt8]) -> SyntheticNote {
    SyntheticNote(name: name, type: 0, description: description)
  }

  private static func notes(of dump: DumpFile) -> ControlBlockNotes {
    ControlBlockNotes(dump.notes.map { ($0.name, $0.type, $0.description) })
  }

  // MARK: With KVMINFO

  /// A process with nothing in it but memory: no QEMU.
  private static var process: SyntheticCore {
    var core = SyntheticCore()
    core.mappings = [
      SyntheticCore.Mapping(ram, size: 0x4000),
      SyntheticCore.Mapping(ram + 0x10000, size: 0x2000, isDumped: false),
    ]
    for page in 0..<4 { core.store(UInt64(page) + 0x1111, at: ram + UInt64(page) << 12) }
    core.auxiliaryVector = [(6, 4096), (9, 0x40_0000)]
    return core
  }

  private static func info(_ registers: RegisterFile) -> KVMInfo {
    KVMInfo(
      backend: "KVM (AMD SVM)", isEncrypted: false,
      slots: [
        KVMInfo.Slot(
          id: 1, start: GuestPhysicalAddress(0x10_0000), size: 0x2000,
          userspaceAddress: VirtualAddress(ram + 0x2000), isReadOnly: false),
        KVMInfo.Slot(
          id: 0, start: GuestPhysicalAddress(0), size: 0x2000,
          userspaceAddress: VirtualAddress(ram), isReadOnly: false),
        KVMInfo.Slot(
          id: 2, start: GuestPhysicalAddress(0x20_0000), size: 0x1000,
          userspaceAddress: VirtualAddress(ram + 0x10000), isReadOnly: true),
      ],
      processors: [VirtualProcessor(index: 0, state: .exited, registers: registers)],
      findings: [Finding(.note, "vcpu.told", "as the host was")])
  }

  private static func guest(_ core: SyntheticCore) throws -> (Guest, DumpFile) {
    let saved = try core.file.save()
    let dump = try DumpFile.open(FilePath(saved.path))
    let process = try #require(dump.process)
    let noted = try #require(NotedProcess(process, in: dump, notes: notes(of: dump)))
    return (noted.guest(), dump)
  }

  @Test func slotsTellTheMemoryWithoutAnyStructureOfTheVMM() throws {
    var core = Self.process
    core.furtherNotes += [Self.note("KVMINFO", Array(Self.info(RegisterFile()).text.utf8))]
    let (guest, dump) = try Self.guest(core)
    #expect(guest.memory.regions.map(\.start.rawValue) == [0, 0x10_0000, 0x20_0000])
    #expect(guest.identity.backend == "KVM (AMD SVM)")
    let memory = GuestMemory(guest.memory, in: dump)
    for (page, address) in [UInt64(0), 0x1000, 0x10_0000, 0x10_1000].enumerated() {
      let bytes = try memory.page(PageFrameNumber(address >> pageShift))
      #expect(bytes.load(at: 0) == UInt64(page) + 0x1111)
    }
    #expect(MemorySurvey(of: guest.memory).missingPages == 1)
    #expect(guest.findings.contains(Finding(.note, "vcpu.told", "as the host was")))
  }

  @Test func registersAreThoseThatKVMHad() throws {
    var registers = RegisterFile()
    registers[.rax] = .known(0x1234, RegisterSource(.kvm, "arch.regs[0]"))
    registers[.rip] = .unknown(reason: "lost")
    var core = Self.process
    core.furtherNotes += [Self.note("KVMINFO", Array(Self.info(registers).text.utf8))]
    let (guest, _) = try Self.guest(core)
    #expect(guest.processors[0].registers[.rax] == registers[.rax])
    #expect(guest.processors[0].registers[.rip] == registers[.rip])
  }

  @Test func controlBlockIsReadAnewAndWins() throws {
    var registers = RegisterFile()
    registers[.rip] = .known(0x1111, RegisterSource(.vmcb, "save.rip"))
    registers[.lstar] = .known(0x3333, RegisterSource(.vmcb, "save.lstar"))
    registers[.cr4] = .known(0x2222, RegisterSource(.kvm, "arch.cr4"))
    var block = [UInt8](repeating: 0, count: 4096)
    block.replaceSubrange(0x578..<0x57a, with: [0x11, 0x12])
    block.replaceSubrange(0x608..<0x60a, with: [0x33, 0x33])
    func core(isCurrent: Bool) -> SyntheticCore {
      var core = Self.process
      let note = ControlBlockNote(
        kind: .vmcb, processor: 0, isCurrent: isCurrent, runsNestedGuest: false, address: nil,
        block: block)
      core.furtherNotes += [
        Self.note("KVMINFO", Array(Self.info(registers).text.utf8)),
        Self.note("VMCB", note.description),
      ]
      return core
    }
    let (guest, _) = try Self.guest(core(isCurrent: true))
    let read = guest.processors[0].registers
    #expect(read[.rip] == .known(0x1211, RegisterSource(.vmcb, "save.rip")))
    #expect(read[.lstar].value == 0x3333)
    #expect(read[.cr4].value == 0x2222)
    let finding = try #require(guest.findings.first { $0.name == "vcpu.notes-differ" })
    #expect(finding.text.contains("disagree on rip:"))

    let (older, _) = try Self.guest(core(isCurrent: false))
    #expect(older.processors[0].registers[.rip].value == 0x1111)
    #expect(!older.findings.contains { $0.name == "vcpu.notes-differ" })
  }

  // MARK: Without it: control blocks beside QEMU's own structures

  /// A QEMU of two vCPUs, of which KVM had the registers, and the VMCS of the first.
  private static func guest(
    layout: String?, of user: [VMCSLayout] = [], isCurrent: Bool = true
  ) throws -> Guest {
    let processor = SyntheticVMCSLayout(seed: 3)
    var region = [UInt8](repeating: 0, count: 4096)
    region.replaceSubrange(0..<4, with: withBytes(of: processor.revision))
    for (encoding, value) in [(UInt32(0x681e), UInt64(0xffff_ffff_8123_4567)), (0x681c, 0x777)] {
      let (offset, bytes) = try #require(processor.encode(value, as: encoding))
      region.replaceSubrange(offset..<offset + bytes.count, with: bytes)
    }
    var core = SyntheticQEMU.pc.core
    var cpus = (0..<2).map { SyntheticCPU($0, usingKVM: true) }
    cpus[0].isDirty = false
    cpus[1].isDirty = false
    SyntheticCPU.add(cpus, to: &core)
    let note = ControlBlockNote(
      kind: .vmcs, processor: 0, isCurrent: isCurrent, runsNestedGuest: false,
      address: PhysicalAddress(0x1000), block: region)
    core.furtherNotes += [Self.note("VMCS", note.description)]
    if let layout { core.furtherNotes += [Self.note("VMCSINFO", Array(layout.utf8))] }
    let saved = try core.file.save()
    let dump = try DumpFile.open(FilePath(saved.path))
    let notes = ControlBlockNotes(
      dump.notes.map { ($0.name, $0.type, $0.description) }, layouts: user)
    let process = try #require(dump.process)
    #expect(NotedProcess(process, in: dump, notes: notes) == nil)
    return try QEMUProcess(process, in: dump, notes: notes).guest()
  }

  private static func withBytes(of value: UInt32) -> [UInt8] {
    (0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * UInt32($0))) }
  }

  @Test func registersOfTheVMCSStandInForStaleOnes() throws {
    let guest = try Self.guest(layout: SyntheticVMCSLayout(seed: 3).text())
    let registers = guest.processors[0].registers
    #expect(guest.processors.map(\.state) == [.exited, .stale])
    #expect(
      registers[.rip] == .known(0xffff_ffff_8123_4567, RegisterSource(.vmcs, "GUEST_RIP")))
    #expect(registers[.rsp].value == 0x777)
    #expect(registers[.rax].value == nil)
    #expect(guest.processors[1].registers[.rip].value == nil)
    #expect(guest.findings.contains { $0.name == "vcpu.control-block-notes" })
    #expect(guest.findings.contains { $0.name == "vcpu.stale" && $0.text.hasPrefix("vCPU 1:") })
  }

  @Test func layoutThatIsGivenReadsTheVMCS() throws {
    let text = SyntheticVMCSLayout(seed: 3).text()
    let given = try #require(VMCSLayout(text: text, origin: "the file x"))
    let guest = try Self.guest(layout: nil, of: [given])
    #expect(guest.processors[0].registers[.rsp].value == 0x777)
  }

  @Test func withoutALayoutTheVMCSIsNotReadAndThatIsSaid() throws {
    for other in [nil, SyntheticVMCSLayout(seed: 4).text()] {
      let guest = try Self.guest(layout: other)
      #expect(guest.processors[0].state == .stale)
      #expect(guest.processors[0].registers[.rip].value == nil)
      #expect(guest.findings.contains { $0.name == "vcpu.vmcs-unreadable" })
    }
  }

  @Test func vmcsThatIsNotCurrentIsNotUsed() throws {
    let guest = try Self.guest(layout: SyntheticVMCSLayout(seed: 3).text(), isCurrent: false)
    #expect(guest.processors[0].registers[.rip].value == nil)
    #expect(!guest.findings.contains { $0.name == "vcpu.vmcs-unreadable" })
  }
}
