import ControlBlocks
import Guest
import Memory
import Testing
import X86

/// A register file of which every register has a value of its own, or a reason.
private func file(_ seed: UInt64) -> RegisterFile {
  var file = RegisterFile()
  for (index, register) in Register.allCases.enumerated() {
    file[register] =
      index % 5 == 4
      ? .unknown(reason: "reason \(index): it has \"quotes\", (brackets) = signs")
      : .known(
        seed &* 0x9e37_79b9_7f4a_7c15 &+ UInt64(index), RegisterSource(.kvm, "arch.regs[\(index)]"))
  }
  for (index, register) in SegmentRegister.allCases.enumerated() {
    file[register] = .known(
      Segment(
        selector: UInt16(index) + 8, base: seed << 32 | UInt64(index), limit: .max - UInt32(index),
        attributes: SegmentAttributes(descriptor: 0x00a0_9b00)),
      RegisterSource(.vmcs, "GUEST_CS_SELECTOR and its base, limit, access rights"))
  }
  file[.gdtr] = .known(DescriptorTable(base: seed, limit: 0x7f), RegisterSource(.vmcb, "save.gdtr"))
  file[.idtr] = .unknown(reason: "")
  return file
}

private let info = KVMInfo(
  backend: "KVM (Intel VMX)", isEncrypted: true,
  slots: [
    KVMInfo.Slot(
      id: 0, start: GuestPhysicalAddress(0), size: 0xa0000,
      userspaceAddress: VirtualAddress(0x7f00_0000_0000), isReadOnly: false),
    KVMInfo.Slot(
      id: 9, start: GuestPhysicalAddress(0x1_0000_0000), size: 0x20_0000,
      userspaceAddress: VirtualAddress(0x7f10_0000_0000), isReadOnly: true),
  ],
  processors: [
    VirtualProcessor(index: 0, state: .exited, registers: file(1)),
    VirtualProcessor(index: 1, state: .stale, registers: file(2), nested: file(3)),
    VirtualProcessor(index: 2, state: .running, registers: file(4)),
  ],
  findings: [Finding(.warning, "vcpu.stale", "vCPU 1 = stale (of its last exit)")])

struct KVMInfoTests {
  @Test func textReadsBackAsItWas() {
    #expect(KVMInfo(text: info.text) == info)
  }

  @Test func lineBreakInATextEndsNoLine() {
    var other = info
    other.findings = [Finding(.note, "a.b", "one\nVCPU(7)=exited\u{1b}[31m")]
    #expect(
      KVMInfo(text: other.text)?.findings == [
        Finding(.note, "a.b", "one VCPU(7)=exited [31m")
      ])
    #expect(KVMInfo(text: other.text)?.processors.count == 3)
  }

  @Test func unknownLinesAreSkipped() {
    let text = info.text.replacing(
      "ENCRYPTED=1\n", with: "ENCRYPTED=1\nTIME=7\nREG(rxx)=0x1 kvm a\n")
    #expect(KVMInfo(text: text) == info)
  }

  @Test func textThatWasCutOffIsNotRead() {
    #expect(KVMInfo(text: String(info.text.dropLast(4))) == nil)
    #expect(KVMInfo(text: "") == nil)
    #expect(KVMInfo(text: "KVMINFO/2\nEND\n") == nil)
  }

  @Test(arguments: [
    "SLOT(1)=0x90000 0x20000 0x7f2000000000 0x0", "VCPU(7)=exited",
  ])
  func contradictionIsNotRead(line: String) {
    #expect(KVMInfo(text: info.text.replacing("\nEND\n", with: "\n\(line)\nEND\n")) == nil)
  }

  @Test(arguments: [
    "SLOT(1)=0x100000000000000 0x1000 0x0 0x0", "SLOT(1)=0xfffffffffffff000 0x2000 0x1000 0x0",
    "SLOT(1)=0x200001 0x1000 0x1000 0x0", "SLOT(1)=0x200000 0x0 0x1000 0x0",
    "SLOT(1)=0x200000 0x1000 0xfffffffffffff000 0x0", "SLOT(x)=0x200000 0x1000 0x1000 0x0",
    "SLOT(1)=0x200000 0x1000 0x1000", "VCPU(3)=asleep",
  ])
  func impossibleLineIsSkipped(line: String) {
    #expect(KVMInfo(text: info.text.replacing("\nEND\n", with: "\n\(line)\nEND\n")) == info)
  }
}

struct ControlBlockNoteTests {
  private let note = ControlBlockNote(
    kind: .vmcs, processor: 3, isCurrent: true, runsNestedGuest: true,
    address: PhysicalAddress(0x1234_5000), block: [UInt8](repeating: 7, count: 4096))

  @Test func noteReadsBackAsItWas() {
    #expect(ControlBlockNote(name: "VMCS", description: note.description) == note)
    #expect(ControlBlockNote(name: "VMCB", description: note.description)?.kind == .vmcb)
    #expect(ControlBlockNote(name: "VMCSINFO", description: note.description) == nil)
    let other = ControlBlockNote(
      kind: .vmcb, processor: 0, isCurrent: false, runsNestedGuest: false, address: nil,
      block: [1, 2, 3])
    #expect(ControlBlockNote(name: "VMCB", description: other.description) == other)
  }

  @Test func largerHeadIsSkipped() {
    var bytes = note.description
    bytes[0] = 32
    bytes.insert(contentsOf: [UInt8](repeating: 0xee, count: 8), at: 24)
    #expect(ControlBlockNote(name: "VMCS", description: bytes) == note)
  }

  @Test(arguments: [0, 3, 23]) func noteWithoutAWholeHeadIsNone(count: Int) {
    #expect(ControlBlockNote(name: "VMCS", description: Array(note.description[..<count])) == nil)
  }

  @Test func headThatIsLongerThanTheNoteIsNone() {
    var bytes = note.description
    bytes[2] = 0xff
    #expect(ControlBlockNote(name: "VMCS", description: bytes) == nil)
  }
}
