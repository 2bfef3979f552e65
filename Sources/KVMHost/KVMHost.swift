import Guest
import LinuxKernel
import Memory
import X86

/// A Linux host with KVM, in a dump: finds its guests.
public struct KVMHost: Sendable {
  let kernel: LinuxKernel
  let source: any FrameSource
  let processors: HostProcessors
  /// KVM's own types: its module's, or the kernel's when it is built in.
  let types: BTF
  let vendor: Vendor
  private let list: VirtualAddress

  /// - Parameters:
  ///   - kernel: the host's kernel.
  ///   - source: the dump's memory.
  ///   - processors: what the dump's own notes say of the host's processors.
  public init(
    _ kernel: LinuxKernel, in source: any FrameSource, processors: HostProcessors
  ) throws(KVMError) {
    self.kernel = kernel
    self.source = source
    self.processors = processors
    let list: VirtualAddress?
    do throws(KernelError) {
      let module = try kernel.module("kvm")
      types = module?.types ?? kernel.types
      list = try module?.address(of: "vm_list") ?? kernel.symbols.address(of: "vm_list")
      vendor = try Vendor(of: kernel, kvm: module)
    } catch {
      throw .kernel(error)
    }
    guard let list else { throw .noKVM(release: kernel.vmcoreinfo.release) }
    self.list = list
  }

  /// Every VM on `vm_list`. One that cannot be read is reported and does not keep the others from
  /// being found.
  public func guests() throws(KVMError) -> (guests: [Guest], failures: [KVMError]) {
    let machines: [KernelObject]
    do throws(KernelError) {
      let head = KernelObject(
        in: kernel.memory, at: list, type: try structure("list_head"), path: "vm_list")
      machines = try head.listElements(
        of: try structure("kvm"), link: "vm_list", limit: 1 << 16)
    } catch {
      throw .kernel(error)
    }
    guard !machines.isEmpty else { throw .noGuests(release: kernel.vmcoreinfo.release) }
    let filter = FilteredPages(on: self)
    var guests: [Guest] = []
    var failures: [KVMError] = []
    for machine in machines {
      do throws(KernelError) {
        guests.append(try VirtualMachine(machine, on: self).guest(filter: filter))
      } catch {
        failures.append(.machine(at: machine.address, error))
      }
    }
    return (guests, failures)
  }

  func structure(_ name: String) throws(KernelError) -> BTFType {
    guard let type = types.structure(named: name) else { throw .noType(name) }
    return type
  }
}

/// Whose virtualisation the host's KVM drives, with the types of that module.
enum Vendor: Sendable {
  case svm(BTF)
  case vmx
  case unknown

  /// `kvm_x86_ops.name` tells (since 6.1, 08a9d59c6a0e); before that, which module is loaded.
  init(of kernel: LinuxKernel, kvm: KernelModule?) throws(KernelError) {
    let amd = try kernel.module("kvm_amd")
    var name = Self.operationsName(kernel, kvm)
    if name == nil, amd != nil { name = "kvm_amd" }
    if name == nil, try kernel.module("kvm_intel") != nil { name = "kvm_intel" }
    self =
      switch name {
      case "kvm_amd": .svm(amd?.types ?? kernel.types)
      case "kvm_intel": .vmx
      default: .unknown
      }
  }

  private static func operationsName(_ kernel: LinuxKernel, _ kvm: KernelModule?) -> String? {
    let types = kvm?.types ?? kernel.types
    guard
      let address = (try? kvm?.address(of: "kvm_x86_ops"))
        ?? kernel.symbols.address(of: "kvm_x86_ops"),
      let type = types.structure(named: "kvm_x86_ops"),
      let name = KernelObject(in: kernel.memory, at: address, type: type).memberIfPresent("name"),
      let text = try? name.pointer()
    else { return nil }
    return try? kernel.memory.string(text)
  }

  var backend: String {
    switch self {
    case .svm: "KVM (AMD SVM)"
    case .vmx: "KVM (Intel VMX)"
    case .unknown: "KVM"
    }
  }
}
