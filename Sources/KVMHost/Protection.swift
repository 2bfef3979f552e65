import Guest
import LinuxKernel

/// Whether the host's processor keeps a guest's memory and registers from the host.
enum Protection: String, Sendable {
  case none
  /// AMD SEV: memory is encrypted, registers are not.
  case sev
  /// AMD SEV-ES and SEV-SNP: registers are encrypted too.
  case sevES

  /// Reads `kvm_svm.sev_info` (arch/x86/kvm/svm/svm.h, 1654efcbc431; `es_active` since 5.11,
  /// 916391a2d1dc). `struct kvm` is the first member of `struct kvm_svm`.
  ///
  /// Without types the control blocks tell.
  init(
    of machine: KernelObject, _ vcpus: [KernelObject], on host: KVMHost
  ) throws(KernelError) {
    self = host.controlBlocks?.protection(of: vcpus) ?? .none
    guard case .svm(let types) = host.vendor, let type = types.structure(named: "kvm_svm"),
      let sev = try machine.container(of: type, member: "kvm").memberIfPresent("sev_info"),
      try sev["active"].isTrue()
    else { return }
    self = try sev.memberIfPresent("es_active")?.isTrue() == true ? .sevES : .sev
  }

  var findings: [Finding] {
    switch self {
    case .none: []
    case .sev:
      [
        Finding(
          .warning, "guest.encrypted",
          "the guest's memory is encrypted (AMD SEV) and cannot be recovered; its registers can")
      ]
    case .sevES:
      [
        Finding(
          .warning, "guest.encrypted",
          "the guest's memory and registers are encrypted (AMD SEV-ES or SEV-SNP) and cannot be"
            + " recovered")
      ]
    }
  }
}
