import Guest
import LinuxKernel
import Memory
import X86

/// The vCPUs of a VM.
struct VirtualProcessors: Sendable {
  /// Every `struct kvm_vcpu`, in the order of their index.
  let objects: [KernelObject]
  let host: KVMHost
  private let protection: Protection

  init(_ objects: [KernelObject], on host: KVMHost, protection: Protection) {
    self.objects = objects
    self.host = host
    self.protection = protection
  }

  /// - Parameter structures: the VMCSs of the host, where it is Intel's.
  func read(
    _ structures: ControlStructures
  ) -> (processors: [VirtualProcessor], findings: [Finding]) {
    var processors: [VirtualProcessor] = []
    var findings: [Finding] = []
    for object in objects {
      let index = processors.count
      do throws(KernelError) {
        let vcpu = try KVMProcessor(
          object, index: index, on: host, protection: protection, structures)
        processors.append(vcpu.processor)
        findings += vcpu.findings
      } catch {
        let error = host.explained(error)
        processors.append(
          VirtualProcessor(index: index, state: .stale, registers: RegisterFile()))
        findings.append(
          Finding(
            .warning, "vcpu.unreadable",
            "vCPU \(index) cannot be read: \(error.problem)"
              + (error.advice.map { "; \($0)" } ?? "")))
      }
    }
    return (processors, findings)
  }

  /// Since 5.17 (c5b077549136) vCPUs are in an xarray, before in an array of pointers.
  static func objects(
    of machine: KernelObject, _ host: KVMHost
  ) throws(KernelError) -> [KernelObject] {
    let type = try host.structure("kvm_vcpu")
    let limit = 1 << 14
    if let array = machine.memberIfPresent("vcpu_array") {
      return try XArray(array).pointers(limit: limit)
        .map { KernelObject(in: machine.memory, at: $0, type: type) }
    }
    let array = try machine["vcpus"]
    let online = try machine["online_vcpus.counter"].unsigned()
    let count = min(online, array.type.elementCount ?? 0, UInt64(limit))
    var objects: [KernelObject] = []
    for index in 0..<Int(count) {
      if let vcpu = try array.element(index).dereferenced() { objects.append(vcpu) }
    }
    return objects
  }
}
