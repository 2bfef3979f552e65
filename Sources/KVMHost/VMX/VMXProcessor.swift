import ControlBlocks
import LinuxKernel
import Memory
import X86

/// The part of a vCPU that kvm_intel keeps, without the control structure itself.
struct VMXStructures: Sendable {
  let vcpu: KernelObject
  let vmx: KernelObject
  /// `struct loaded_vmcs` of the control structure in use.
  let loaded: KernelObject

  init(_ vcpu: KernelObject, types: BTF) throws(KernelError) {
    guard let type = types.structure(named: "vcpu_vmx") else { throw .noType("vcpu_vmx") }
    self.vcpu = vcpu
    vmx = try vcpu.container(of: type, member: "vcpu")
    let own = vmx.memberIfPresent("vmcs01")
    let nested = vmx.memberIfPresent("nested")?.memberIfPresent("vmcs02")
    let pointer = try vmx["loaded_vmcs"].pointer()
    // It leads to one of the two that vcpu_vmx has itself; anything else is damage.
    loaded =
      if let nested, nested.address == pointer {
        nested
      } else if let own {
        own
      } else {
        try vmx["loaded_vmcs"].required()
      }
  }

  /// True if the structure in use is that of a guest of the guest.
  var runsNestedGuest: Bool {
    guard let second = vmx.memberIfPresent("nested")?.memberIfPresent("vmcs02") else {
      return false
    }
    return loaded.address == second.address
  }

  /// The host processor that the control structure in use was loaded on last.
  var hostProcessor: Int64? {
    try? (loaded.memberIfPresent("cpu") ?? vcpu.memberIfPresent("cpu"))?.signed()
  }

  /// Whether a load of CR3 makes the guest exit, so that the control structure's CR3 is not the
  /// guest's; nil if it is not known. Without `loaded_vmcs.controls_shadow` (since 5.2, 09e226cf07cd)
  /// that can be told of the vCPU's own structure: with shadow paging all exit, without it none while
  /// the guest's paging is on (`ept_update_paging_mode_cr0`).
  func loadsOfCR3Exit(on host: KVMHost) -> Bool? {
    if let controls = loaded.memberIfPresent("controls_shadow")?.memberIfPresent("exec") {
      return (try? controls.unsigned()).map { $0 & VMCSField.cr3LoadExiting != 0 }
    }
    guard !runsNestedGuest, let usesTwoLevels = host.usesTwoLevelPaging else { return nil }
    if !usesTwoLevels { return true }
    guard let cr0 = try? vcpu["arch.cr0"].unsigned() else { return nil }
    return cr0 & ControlBits.paging != 0 ? false : nil
  }
}

/// The part of a vCPU that kvm_intel keeps: `struct vcpu_vmx` and its control structure (VMCS).
struct VMXProcessor: Sendable {
  let structures: VMXStructures
  let host: KVMHost
  let address: PhysicalAddress
  let region: [UInt8]

  init(_ vcpu: KernelObject, on host: KVMHost, types: BTF) throws(KernelError) {
    let structures = try VMXStructures(vcpu, types: types)
    let pointer = try structures.loaded["vmcs"].pointer()
    let address: PhysicalAddress
    let region: [UInt8]
    do throws(MemoryError) {
      address = try vcpu.memory.translate(pointer)
      region = try vcpu.memory.physical.read(address, count: Int(pageSize))
    } catch {
      throw .unreadable(what: "VMCS at \(pointer)", error)
    }
    self.init(structures, on: host, at: address, region)
  }

  /// - Parameters:
  ///   - address: where the control structure was found.
  ///   - region: its bytes.
  init(
    _ structures: VMXStructures, on host: KVMHost, at address: PhysicalAddress, _ region: [UInt8]
  ) {
    self.structures = structures
    self.host = host
    self.address = address
    self.region = region
  }

  var vcpu: KernelObject { structures.vcpu }
  var vmx: KernelObject { structures.vmx }
  var loaded: KernelObject { structures.loaded }

  var revision: UInt32 { VMCSLayout.revision(of: region) }

  /// - Parameter guest: the memory of the guest that the vCPU belongs to.
  func sample(in guest: any PhysicalMemory) -> VMCSSample {
    VMCSSample(region: region, facts: facts(), guest: side(of: guest))
  }

  /// The guest as far as it can explain values of the structure: if it runs in 64-bit mode, by page
  /// tables of its own.
  private func side(of memory: any PhysicalMemory) -> VMCSGuest? {
    guard !structures.runsNestedGuest, let efer = try? vcpu["arch.efer"].unsigned(),
      let cr4 = try? vcpu["arch.cr4"].unsigned(), efer & ControlBits.longModeActive != 0
    else { return nil }
    let root = structures.loadsOfCR3Exit(on: host) == true ? try? vcpu["arch.cr3"].unsigned() : nil
    var file = RegisterFile()
    try? VMXRegisters(structures, on: host).readSystemCallRegisters(into: &file)
    return VMCSGuest(
      memory: CachedMemory(memory, pages: 64),
      levels: cr4 & ControlBits.fiveLevelPaging != 0 ? 5 : 4, root: root,
      lstar: file[.lstar].value)
  }
}
