import LinuxKernel
import Memory
import X86

/// The copies of a vCPU's registers that KVM keeps itself, in `kvm_vcpu.arch`.
struct KVMRegisters {
  private let arch: KernelObject
  private let types: BTF

  init(_ vcpu: KernelObject, types: BTF) throws(KernelError) {
    arch = try vcpu["arch"]
    self.types = types
  }

  func read() throws(KernelError) -> RegisterFile {
    var file = RegisterFile()
    let saved = try arch["regs"]
    // The order is that of enum kvm_reg (arch/x86/include/asm/kvm_host.h).
    for register in Register.general + [.rip] {
      let index = try bit(of: "VCPU_REGS_" + register.rawValue.uppercased())
      file[register] = try copy(
        saved.element(index), of: "arch.regs[\(index)]", availableBy: index)
    }
    for (register, member, flag) in Self.members {
      guard let object = arch.memberIfPresent(member) else { continue }
      // Control registers are fetched from the control block on demand: CR0 since 5.7
      // (bd31fe495d0d), CR3 and CR4 before.
      let index = try flag.flatMap { name throws(KernelError) in
        types.enumerator(named: name) == nil ? nil : try bit(of: name)
      }
      file[register] = try copy(object, of: "arch.\(member)", availableBy: index)
    }
    if let priority = try taskPriority() { file[.cr8] = priority }
    let breakpoints = try arch["db"]
    for (index, register) in [Register.dr0, .dr1, .dr2, .dr3].enumerated() {
      file[register] = .known(
        try breakpoints.element(index).unsigned(), RegisterSource(.kvm, "arch.db[\(index)]"))
    }
    return file
  }

  /// With KVM's own APIC, CR8 is the upper half of the task priority in its register page, at 80h
  /// (SDM vol. 3A 11.8.6); `arch.cr8` is in use without one only.
  private func taskPriority() throws(KernelError) -> Reading<UInt64>? {
    guard let apic = try arch.memberIfPresent("apic")?.dereferenced() else { return nil }
    // The kernel's own types know kvm_lapic by name alone: its members are KVM's.
    guard let type = types.structure(named: "kvm_lapic"),
      let page = try? apic.cast(to: type)["regs"].pointer(),
      let priority = try? arch.memory.load(page + 0x80, as: UInt32.self)
    else { return .unknown(reason: "the APIC's registers are not in the dump") }
    return .known(
      UInt64(priority) >> 4 & 0xf, RegisterSource(.kvm, "arch.apic->regs, task priority"))
  }

  /// Copies of registers that a member of `kvm_vcpu.arch` has, with the bit that says whether the
  /// copy is current, where there is one.
  private static let members: [(register: Register, member: String, flag: String?)] = [
    (.cr0, "cr0", "VCPU_EXREG_CR0"), (.cr2, "cr2", nil), (.cr3, "cr3", "VCPU_EXREG_CR3"),
    (.cr4, "cr4", "VCPU_EXREG_CR4"), (.cr8, "cr8", nil), (.efer, "efer", nil),
    (.apicBase, "apic_base", nil), (.xcr0, "xcr0", nil), (.pat, "pat", nil),
    (.dr6, "dr6", nil), (.dr7, "dr7", nil),
  ]

  /// A copy counts if `regs_avail` says that it is newer than the control block.
  private func copy(
    _ object: KernelObject, of location: String, availableBy index: Int?
  ) throws(KernelError) -> Reading<UInt64> {
    if let index, try arch["regs_avail"].unsigned() >> UInt64(index) & 1 == 0 {
      return .unknown(reason: "KVM's copy is older than the control block (regs_avail)")
    }
    return .known(try object.unsigned(), RegisterSource(.kvm, location))
  }

  /// A value of `enum kvm_reg`: an index of `regs`, and a bit of `regs_avail`.
  private func bit(of name: String) throws(KernelError) -> Int {
    guard let value = types.enumerator(named: name), (0..<64).contains(value) else {
      throw .noType("kvm_reg")
    }
    return Int(value)
  }
}
