import Memory
import X86

/// AMD's virtual machine control block, by the places that the architecture gives its fields (APM
/// vol. 2, appendix B).
package struct VMCB: Sendable {
  /// A page.
  package static let size = Int(pageSize)

  package let bytes: [UInt8]

  /// Nil if there are not enough bytes.
  package init?(_ bytes: [UInt8]) {
    guard bytes.count >= Self.size else { return nil }
    self.bytes = bytes
  }

  /// The registers of the vCPU as far as its VMCB alone has them: general registers but RAX and RSP
  /// are not in it.
  package func registers() -> RegisterFile {
    var file = RegisterFile.unknown(because: "the VMCB does not hold it")
    for (register, offset) in Self.places {
      file[register] = reading(at: offset, register.rawValue)
    }
    // VMRUN needs SVME whatever the guest has (APM vol. 2, 15.5.1).
    file[.efer] = .known(
      value(at: Self.efer) & ~Self.secureVirtualMachineEnabled,
      RegisterSource(.vmcb, "save.efer without SVME"))
    if value(at: Self.nestedControl) & Self.nestedPaging != 0 {
      file[.cr3] = reading(at: Self.cr3, Register.cr3.rawValue)
    } else {
      file[.cr3] = .unknown(reason: "without nested paging the VMCB has the hypervisor's tables")
    }
    let privilege = UInt32(bytes.load(UInt8.self, at: Self.save + 0xcb) ?? 0)
    for (register, offset) in Self.segments {
      var segment = segment(at: offset)
      segment.normalizeAsVMCB(as: register, privilege: privilege)
      file[register] = .known(segment, RegisterSource(.vmcb, "save.\(register.rawValue)"))
    }
    for (register, offset) in [(TableRegister.gdtr, 0x60), (.idtr, 0x80)] {
      let table = segment(at: offset)
      file[register] = .known(
        DescriptorTable(base: table.base, limit: table.limit),
        RegisterSource(.vmcb, "save.\(register.rawValue)"))
    }
    return file
  }

  /// True if VMRUN would take it: it needs VMRUN intercepted and EFER.SVME (APM vol. 2, 15.5.1).
  package var canRun: Bool {
    (bytes.load(UInt32.self, at: 0x10) ?? 0) & 1 != 0
      && value(at: Self.efer) & Self.secureVirtualMachineEnabled != 0
  }

  /// Write of CR0, bit 16 at offset 000h.
  package var interceptsWritesOfCR0: Bool {
    (bytes.load(UInt32.self, at: 0) ?? 0) & 1 << 16 != 0
  }

  /// SEV, bit 1 at offset 090h.
  package var encryptsMemory: Bool { value(at: Self.nestedControl) & 2 != 0 }

  /// SEV-ES, bit 2 at offset 090h.
  package var encryptsRegisters: Bool { value(at: Self.nestedControl) & 4 != 0 }

  /// Where the state-save area starts.
  private static let save = 0x400
  /// NP_ENABLE is bit 0 of it.
  private static let nestedControl = 0x90 - save
  private static let nestedPaging: UInt64 = 1
  private static let cr3 = 0x150
  private static let efer = 0xd0
  private static let secureVirtualMachineEnabled: UInt64 = 1 << 12

  /// In the state-save area.
  private static let places: [(Register, Int)] = [
    (.cr4, 0x148), (.cr0, 0x158), (.dr7, 0x160), (.dr6, 0x168), (.rflags, 0x170),
    (.rip, 0x178), (.rsp, 0x1d8), (.rax, 0x1f8), (.star, 0x200), (.lstar, 0x208), (.cstar, 0x210),
    (.sfmask, 0x218), (.kernelGSBase, 0x220), (.sysenterCS, 0x228), (.sysenterESP, 0x230),
    (.sysenterEIP, 0x238), (.cr2, 0x240), (.pat, 0x268),
  ]

  private static let segments: [(SegmentRegister, Int)] = [
    (.es, 0), (.cs, 0x10), (.ss, 0x20), (.ds, 0x30), (.fs, 0x40), (.gs, 0x50), (.ldtr, 0x70),
    (.tr, 0x90),
  ]

  /// `offset` is counted from the state-save area.
  private func value(at offset: Int) -> UInt64 { bytes.load(at: Self.save + offset) ?? 0 }

  private func reading(at offset: Int, _ name: String) -> Reading<UInt64> {
    .known(value(at: offset), RegisterSource(.vmcb, "save.\(name)"))
  }

  /// Selector, attributes, limit, base (APM vol. 2, 15.5.1).
  private func segment(at offset: Int) -> Segment {
    let place = Self.save + offset
    return Segment(
      selector: bytes.load(at: place) ?? 0, base: bytes.load(at: place + 8) ?? 0,
      limit: bytes.load(at: place + 4) ?? 0,
      attributes: SegmentAttributes(vmcb: bytes.load(at: place + 2) ?? 0))
  }
}

extension Segment {
  /// What the processor leaves undefined in a control block, set as an AMD processor behaves and
  /// as KVM reports it (`svm_get_segment`): granularity follows from the limit, a data segment in
  /// use is accessed, a loaded task is busy, the stack segment has the current privilege level,
  /// and a segment that is not present has no attributes.
  package mutating func normalizeAsVMCB(as register: SegmentRegister, privilege: UInt32) {
    guard attributes.isPresent else {
      attributes = .unusable
      return
    }
    attributes.hasPageGranularity = limit > 0xfffff
    switch register {
    case .ds, .es, .fs, .gs: attributes.type |= 1
    case .tr: attributes.type |= 2
    case .ss: attributes.privilegeLevel = privilege
    case .cs, .ldtr: break
    }
  }
}
