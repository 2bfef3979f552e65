import LinuxKernel
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
      let name = "VCPU_REGS_" + register.rawValue.uppercased()
      guard let index = types.enumerator(named: name).flatMap({ Int(exactly: $0) }) else {
        throw .noSymbol(name, module: "kvm")
      }
      file[register] = .known(
        try saved.element(index).unsigned(), RegisterSource(.kvm, "arch.regs[\(index)]"))
    }
    let members: [(Register, String)] = [
      (.cr0, "cr0"), (.cr2, "cr2"), (.cr3, "cr3"), (.cr4, "cr4"), (.cr8, "cr8"),
      (.efer, "efer"), (.apicBase, "apic_base"), (.xcr0, "xcr0"), (.pat, "pat"),
      (.dr6, "dr6"), (.dr7, "dr7"),
    ]
    for (register, member) in members {
      guard let object = arch.memberIfPresent(member) else { continue }
      file[register] = .known(
        try object.unsigned(), RegisterSource(.kvm, "arch.\(member)"))
    }
    let breakpoints = try arch["db"]
    for (index, register) in [Register.dr0, .dr1, .dr2, .dr3].enumerated() {
      file[register] = .known(
        try breakpoints.element(index).unsigned(), RegisterSource(.kvm, "arch.db[\(index)]"))
    }
    return file
  }
}
