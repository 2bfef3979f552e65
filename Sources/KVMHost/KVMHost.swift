import ControlBlocks
import Guest
import LinuxKernel
import Memory
import X86

/// A Linux host with KVM, in a dump: finds its guests.
public struct KVMHost: Sendable {
  let kernel: LinuxKernel
  let source: any FrameSource
  /// What the host has swapped out.
  public let swap: HostSwap
  /// The host's memory, with what it has swapped out behind it: what the guests' maps name.
  public var memory: HostMemory { HostMemory(source, swap) }
  let frames: PageFrames?
  let processors: HostProcessors
  /// KVM's own types: its module's, or the kernel's when it is built in.
  private(set) var types: BTF
  private(set) var vendor: Vendor
  /// Where layouts of Intel's VMCS come from.
  private let vmcsLayouts: VMCSLayoutSources
  /// What every VMCS of the host must hold.
  let vmcsFacts: VMCSHostFacts
  private let module: KernelModule?
  private let vendorModule: KernelModule?
  private let list: VirtualAddress
  /// AMD's control blocks, where no types tell where they are.
  private(set) var controlBlocks: FoundControlBlocks?
  /// What is to be said of what was found without types.
  private(set) var foundWithoutTypes: Finding?

  /// - Parameters:
  ///   - kernel: the host's kernel.
  ///   - source: the dump's memory.
  ///   - processors: what the dump's own notes say of the host's processors.
  ///   - vmcsLayouts: where layouts of Intel's VMCS come from besides those known.
  ///   - swapImages: images of the host's swap devices.
  public init(
    _ kernel: LinuxKernel, in source: any FrameSource, processors: HostProcessors,
    vmcsLayouts: VMCSLayoutSources = VMCSLayoutSources(), swapImages: SwapImages = SwapImages()
  ) throws(KVMError) {
    self.kernel = kernel
    self.source = source
    frames = try? PageFrames(kernel)
    swap = HostSwap(of: kernel, in: source, frames, images: swapImages)
    self.processors = processors
    self.vmcsLayouts = vmcsLayouts
    let list: VirtualAddress?
    do throws(KernelError) {
      module = try kernel.module("kvm")
      types = module?.types ?? kernel.types
      list = try module?.address(of: "vm_list") ?? kernel.symbol("vm_list")
      (vendor, vendorModule) = try Vendor.find(in: kernel, kvm: module)
    } catch {
      throw .kernel(error)
    }
    guard let list else { throw .noKVM(release: kernel.vmcoreinfo.release) }
    self.list = list
    let modules = [vendorModule, module].compactMap { $0 }
    vmcsFacts = VMCSHostFacts(kernel) { Self.symbol($0, in: modules, kernel) }
    findMembers()
  }

  /// What was found of a host's guests.
  public struct Guests: Sendable {
    public fileprivate(set) var guests: [Guest] = []
    /// VMs that cannot be read.
    public fileprivate(set) var failures: [KVMError] = []
    /// Intel's control structures of all vCPUs, in the order of the guests.
    package fileprivate(set) var controlStructures: [ControlStructure] = []
  }

  /// Every VM on `vm_list`. One that cannot be read is reported and does not keep the others from
  /// being found.
  ///
  /// - Parameter searchingForVMCSs: search the host's memory for VMCSs that no vCPU leads to. Then it
  ///   is no error if there is no VM.
  public func guests(searchingForVMCSs: Bool = false) throws(KVMError) -> Guests {
    var machines: [VirtualMachine] = []
    var found = Guests()
    do throws(KVMError) {
      (machines, found.failures) = try self.machines()
    } catch {
      guard searchingForVMCSs else { throw error }
      found.failures = [error]
    }
    let structures = ControlStructures(
      of: machines, on: self, vmcsLayouts, searches: searchingForVMCSs)
    for machine in machines {
      do throws(KernelError) {
        found.guests.append(try machine.guest(structures))
        found.controlStructures += structures.of(machine)
      } catch {
        found.failures.append(.machine(at: machine.object.address, error))
      }
    }
    found.controlStructures += structures.unowned
    return found
  }

  /// The VMs as far as their structures are the same for all processors.
  func machines() throws(KVMError) -> (machines: [VirtualMachine], failures: [KVMError]) {
    let objects: [KernelObject]
    let failure: KernelError?
    do throws(KernelError) {
      (objects, failure) = try machineObjects()
    } catch {
      throw .kernel(error)
    }
    guard !objects.isEmpty else {
      throw failure.map(KVMError.kernel) ?? .noGuests(release: kernel.vmcoreinfo.release)
    }
    let filter = FilteredPages(on: self)
    var machines: [VirtualMachine] = []
    var failures = failure.map { [KVMError.kernel($0)] } ?? []
    let numbers = Self.numbers(of: objects)
    for (object, number) in zip(objects, numbers) {
      do throws(KernelError) {
        machines.append(try VirtualMachine(object, number: number, on: self, filter: filter))
      } catch {
        failures.append(.machine(at: object.address, error))
      }
    }
    return (machines, failures)
  }

  /// Which of its process's VMs each one is, from 1. `vm_list` has the newest first.
  private static func numbers(of machines: [KernelObject]) -> [Int] {
    var counts: [Int64: Int] = [:]
    return Array(
      machines.reversed().map { machine in
        guard let process = try? VirtualMachine.process(of: machine) else { return 1 }
        counts[process, default: 0] += 1
        return counts[process, default: 1]
      }.reversed())
  }

  /// Every `struct kvm` on `vm_list` that can be reached, and why it is not known to be all.
  private func machineObjects() throws(KernelError) -> ([KernelObject], KernelError?) {
    let head = KernelObject(
      in: kernel.memory, at: list, type: try structure("list_head"), path: "vm_list")
    return head.reachableListElements(of: try structure("kvm"), link: "vm_list", limit: 1 << 16)
  }

  /// More vCPUs than these prove nothing more of where members lie, and their bytes take room.
  private static let mostExamined = 4096

  /// The vCPUs of a VM without those that damage leads to: each knows its VM.
  private func soundVCPUs(of machine: KernelObject) -> [KernelObject] {
    let all = (try? VirtualProcessors.objects(of: machine, self)) ?? []
    return all.filter { vcpu in
      guard let owner = vcpu.memberIfPresent("kvm") else { return true }
      return (try? owner.pointer()) == machine.address
    }
  }

  /// Finds by structure what no types tell of what KVM's modules keep of vCPUs.
  private mutating func findMembers() {
    guard let needed = vendor.neededType else { return }
    let lacksAPIC = types.structure(named: "kvm_lapic") == nil
    guard needed.isMissing || lacksAPIC, let machines = try? machineObjects().0 else { return }
    let vcpus = Array(machines.lazy.flatMap(soundVCPUs).prefix(Self.mostExamined))
    var places: [String] = []
    if lacksAPIC, let found = FoundMembers.apic(of: vcpus, types: types) {
      types = found.types
      places += found.places
    }
    if needed.isMissing {
      switch vendor {
      case .svm:
        controlBlocks = FoundControlBlocks(of: vcpus)
        places += controlBlocks?.places ?? []
      case .vmx(let own):
        if let found = FoundMembers.vmx(of: vcpus, types: own, symbol: { symbol($0) }) {
          vendor = .vmx(found.types)
          places += found.places
        }
      case .unknown: break
      }
    }
    guard !places.isEmpty else { return }
    let reason = (needed.isMissing ? vendorModule : module)?.missingTypes ?? .noType(needed.name)
    foundWithoutTypes = Finding(
      .note, "vcpu.found-by-structure",
      "what KVM's modules keep of vCPUs was found by what it holds, at the same places in all"
        + " \(vcpus.count) vCPUs of the host (\(places.joined(separator: ", "))), as \(reason.problem)"
        + (reason.advice.map { "; \($0)" } ?? ""))
  }

  /// Whether the processor translates guests' addresses by page tables of its own (EPT, NPT), as
  /// kvm's `tdp_enabled` says.
  var usesTwoLevelPaging: Bool? {
    symbol("tdp_enabled").flatMap { try? kernel.memory.load($0, as: UInt8.self) }.map { $0 != 0 }
  }

  /// A symbol of KVM, be it a module or built in.
  func symbol(_ name: String) -> VirtualAddress? {
    Self.symbol(name, in: [module, vendorModule].compactMap { $0 }, kernel)
  }

  private static func symbol(
    _ name: String, in modules: [KernelModule], _ kernel: LinuxKernel
  ) -> VirtualAddress? {
    for module in modules {
      if let address = try? module.address(of: name) { return address }
    }
    return kernel.symbol(name)
  }

  func structure(_ name: String) throws(KernelError) -> BTFType {
    guard let type = types.structure(named: name) else {
      throw module?.missingTypes ?? .noType(name)
    }
    return type
  }

  /// Why a type of the module that drives the processor's virtualisation is not known, if that is
  /// what the error says.
  func explained(_ error: KernelError) -> KernelError {
    if case .noType = error, let reason = vendorModule?.missingTypes { reason } else { error }
  }
}

/// Whose virtualisation the host's KVM drives, with the types of that module.
enum Vendor: Sendable {
  case svm(BTF)
  case vmx(BTF)
  case unknown

  /// `kvm_x86_ops.name` tells (since 6.1, 08a9d59c6a0e); before that, which module is loaded.
  static func find(
    in kernel: LinuxKernel, kvm: KernelModule?
  ) throws(KernelError) -> (vendor: Vendor, module: KernelModule?) {
    let told = operationsName(kernel, kvm)
    for name in ["kvm_amd", "kvm_intel"] where told == nil || told == name {
      if let module = try kernel.module(name) { return (Vendor(name, module.types), module) }
      // Built in.
      if told != nil { return (Vendor(name, kernel.types), nil) }
    }
    return (.unknown, nil)
  }

  /// The structure that tells of everything that the module keeps of a vCPU, and whether there are no
  /// types that know it.
  fileprivate var neededType: (name: String, isMissing: Bool)? {
    switch self {
    case .svm(let types): ("vcpu_svm", types.structure(named: "vcpu_svm") == nil)
    case .vmx(let types): ("vcpu_vmx", types.structure(named: "vcpu_vmx") == nil)
    case .unknown: nil
    }
  }

  private init(_ module: String, _ types: BTF) {
    self = module == "kvm_amd" ? .svm(types) : .vmx(types)
  }

  private static func operationsName(_ kernel: LinuxKernel, _ kvm: KernelModule?) -> String? {
    let types = kvm?.types ?? kernel.types
    guard
      let address = (try? kvm?.address(of: "kvm_x86_ops"))
        ?? kernel.symbol("kvm_x86_ops"),
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
