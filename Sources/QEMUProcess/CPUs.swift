import Guest
import X86

extension QEMUProcess {
  /// The guest's vCPUs, and what is to be known of their registers.
  func processors() -> (processors: [VirtualProcessor], findings: [Finding]) {
    ([], [])
  }
}
