import LinuxKernel
import Memory
import X86

/// The part of a vCPU that kvm_intel keeps: `struct vcpu_vmx` and its control structure (VMCS).
struct VMXProcessor: Sendable {
  let vcpu: KernelObject
  let vmx: KernelObject
  let loaded: KernelObject
  let host: KVMHost
  let address: VirtualAddress
  let region: [UInt8]

  init(_ vcpu: KernelObject, on host: KVMHost, types: BTF) throws(KernelError) {
    guard let type = types.structure(named: "vcpu_vmx") else { throw .noType("vcpu_vmx") }
    self.vcpu = vcpu
    self.host = host
    vmx = try vcpu.container(of: type, member: "vcpu")
    loaded = try vmx["loaded_vmcs"].required()
    address = try loaded["vmcs"].pointer()
    do throws(MemoryError) {
      region = try vcpu.memory.read(address, count: Int(pageSize))
    } catch {
      throw .unreadable(what: "VMCS at \(address)", error)
    }
  }

  /// True if the structure in use is that of a guest of the guest.
  func runsNestedGuest() throws(KernelError) -> Bool {
    guard let nested = try vmx["nested"].memberIfPresent("vmcs02") else { return false }
    return loaded.address == nested.address
  }

  /// The revision identifier: the region's first 31 bits (SDM vol. 3C 24.2).
  var revision: UInt32 { (region.load(UInt32.self, at: 0) ?? 0) & 0x7fff_ffff }

  /// - Parameter guest: the memory of the guest that the vCPU belongs to.
  func sample(in guest: any PhysicalMemory) -> VMCSSample {
    VMCSSample(region: region, facts: facts(), guest: side(of: guest))
  }

  /// The guest as far as it can explain values of the structure: if it runs in 64-bit mode, by page
  /// tables of its own.
  private func side(of memory: any PhysicalMemory) -> VMCSGuest? {
    guard (try? runsNestedGuest()) == false, usesExtendedPageTables,
      let efer = try? vcpu["arch.efer"].unsigned(), let cr4 = try? vcpu["arch.cr4"].unsigned(),
      efer & ControlBits.longModeActive != 0
    else { return nil }
    var file = RegisterFile()
    try? VMXRegisters(of: self).readCopies(into: &file)
    return VMCSGuest(
      memory: memory, levels: cr4 & ControlBits.fiveLevelPaging != 0 ? 5 : 4,
      lstar: file[.lstar].value)
  }
}
