import Guest
import LinuxKernel

/// Whether the host's processor keeps a guest's memory and registers from the host.
enum Protection: String, Sendable {
  case none
  /// AMD SEV: memory is encrypted, registers are not.
  case sev = "AMD SEV"
  /// Registers are encrypted too.
  case sevES = "AMD SEV-ES"
  /// The same; pages are private or shared, and the host knows which.
  case sevSNP = "AMD SEV-SNP"
  /// The same of Intel's. The processor's module keeps the control structures, and KVM has none.
  case tdx = "Intel TDX"

  init(
    of machine: KernelObject, _ vcpus: [KernelObject], on host: KVMHost
  ) throws(KernelError) {
    let type = try VirtualMachineType(of: machine)
    switch host.vendor {
    case .svm(let types):
      // Without types the control blocks tell.
      self =
        try Self.encryptedVirtualization(of: machine, type, types)
        ?? host.controlBlocks?.protection(of: vcpus) ?? .none
    case .vmx(let types):
      self = try Self.isTrustDomain(machine, type, vcpus, types) ? .tdx : .none
    case .unknown:
      self = .none
    }
  }

  /// Reads `kvm_svm.sev_info` (arch/x86/kvm/svm/svm.h, 1654efcbc431; `es_active` since 5.11,
  /// 916391a2d1dc). `struct kvm` is the first member of `struct kvm_svm`.
  ///
  /// Nil if there are no types.
  private static func encryptedVirtualization(
    of machine: KernelObject, _ machineType: VirtualMachineType?, _ types: BTF
  ) throws(KernelError) -> Protection? {
    guard let type = types.structure(named: "kvm_svm"),
      let sev = try machine.container(of: type, member: "kvm").memberIfPresent("sev_info"),
      try sev["active"].isTrue()
    else { return nil }
    // Kernels whose VMs have no types had the one or the other for SNP: `snp_active` in those of
    // distributions, the features of the VMSA since 6.9 (ac5c48027bac).
    let isMarked = try sev.memberIfPresent("snp_active")?.isTrue() == true
    let features = try sev.memberIfPresent("vmsa_features")?.unsigned() ?? 0
    if machineType == .sevSNP || isMarked || features & SEVFeatures.snpActive != 0 {
      return .sevSNP
    }
    return try sev.memberIfPresent("es_active")?.isTrue() == true ? .sevES : .sev
  }

  /// Since 6.16 `vm_type` tells (fcdbdf63431c). Kernels with TDX before it was merged have it with
  /// numbers of their own, of which none but the default one is anything else on Intel's processors,
  /// except for software-protected VMs where there is private memory for those. A vCPU whose state
  /// is protected is proof in any case (`kvm_vcpu_arch.guest_state_protected`); that of a TD that
  /// is debugged is not.
  private static func isTrustDomain(
    _ machine: KernelObject, _ machineType: VirtualMachineType?, _ vcpus: [KernelObject],
    _ types: BTF
  ) throws(KernelError) -> Bool {
    guard types.structure(named: "kvm_tdx") != nil else { return false }
    switch machineType {
    case .tdx: return true
    case .standard, nil: break
    case .softwareProtected:
      if !machine.has(PrivatePages.attributes) { return true }
    case .sev, .sevES, .sevSNP, .other: return true
    }
    for vcpu in vcpus {
      let arch = try vcpu["arch"]
      if try arch.memberIfPresent("guest_state_protected")?.isTrue() == true { return true }
    }
    return false
  }

  var hidesMemory: Bool { self != .none }

  var hidesRegisters: Bool {
    switch self {
    case .none, .sev: false
    case .sevES, .sevSNP, .tdx: true
    }
  }

  /// - Parameter knowsShared: it is known which pages the guest shares with the host.
  func findings(knowsShared: Bool) -> [Finding] {
    guard hidesMemory else { return [] }
    let memory = knowsShared ? "private memory" : "memory"
    let text =
      hidesRegisters
      ? "the guest's \(memory) and registers are encrypted (\(rawValue)) and cannot be recovered"
      : "the guest's \(memory) is encrypted (\(rawValue)) and cannot be recovered; its registers can"
    return [
      Finding(
        .warning, "guest.encrypted",
        text + (knowsShared ? "; the pages that it shares with the host can" : ""))
    ]
  }
}

/// `kvm_arch.vm_type`: KVM_X86_DEFAULT_VM and so on (arch/x86/include/uapi/asm/kvm.h). Since 6.8
/// (89ea60c2c7b5).
private enum VirtualMachineType: Equatable {
  case standard
  case softwareProtected
  case sev
  case sevES
  case sevSNP
  case tdx
  case other(UInt64)

  /// Nil if the kernel's VMs have no type.
  init?(of machine: KernelObject) throws(KernelError) {
    guard let type = machine.memberIfPresent("arch")?.memberIfPresent("vm_type") else {
      return nil
    }
    self =
      switch try type.unsigned() {
      case 0: .standard
      case 1: .softwareProtected
      case 2: .sev
      case 3: .sevES
      case 4: .sevSNP
      case 5: .tdx
      case let other: .other(other)
      }
  }
}

private enum SEVFeatures {
  /// SVM_SEV_FEAT_SNP_ACTIVE (arch/x86/include/asm/svm.h).
  static let snpActive: UInt64 = 1
}
