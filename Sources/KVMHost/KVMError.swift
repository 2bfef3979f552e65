import LinuxKernel
import Memory

/// The guests of a host could not be found.
public enum KVMError: Error, Sendable {
  /// The host's kernel has no KVM: neither a module `kvm` nor KVM built in.
  case noKVM(release: String)
  /// KVM is there, and runs no VM.
  case noGuests(release: String)
  /// The process that ran a VM had ended, or was ending.
  case processEnded(id: Int64)
  /// One VM could not be read.
  case machine(at: VirtualAddress, KernelError)
  /// The host's kernel could not be read far enough.
  case kernel(KernelError)
}

extension KVMError: Diagnosis {
  public var name: String {
    switch self {
    case .noKVM: "kvm.not-a-host"
    case .noGuests: "kvm.no-guests"
    case .processEnded: "kvm.process-ended"
    case .machine: "kvm.machine"
    case .kernel(let error): error.name
    }
  }

  public var problem: String {
    switch self {
    case .noKVM(let release):
      "the dump's kernel \(release) is not a KVM host: the module kvm is not loaded"
    case .noGuests(let release):
      "the KVM host (kernel \(release)) was running no guest when the dump was taken"
    case .processEnded(let id):
      "the process that ran the guest (pid \(id)) had ended, or was ending: there is nothing left of it"
    case .machine(let address, let error):
      "the VM at \(address) cannot be read: \(error.problem)"
    case .kernel(let error): error.problem
    }
  }

  public var advice: String? {
    switch self {
    case .noKVM: "is it perhaps a guest's own dump, or another machine's?"
    case .noGuests: nil
    case .processEnded: "the guest's registers are there: vmcore-split registers"
    case .machine(_, let error), .kernel(let error): error.advice
    }
  }
}
