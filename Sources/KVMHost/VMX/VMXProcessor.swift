import LinuxKernel
import Memory
import X86

/// The part of a vCPU that kvm_intel keeps: `struct vcpu_vmx` and its control structure (VMCS).
///
/// A VMCS may be in the processor instead of in memory until VMCLEAR. A crashing host's kernel
/// does that on every processor that answers (since 3.8, f23d1f4a1160); a host dumped otherwise has
/// whatever was written back. So a region is used only where it agrees with what KVM remembers of
/// it, and so is a layout.
struct VMXProcessor {
  let vcpu: KernelObject
  let vmx: KernelObject
  let loaded: KernelObject
  let host: KVMHost
  let region: [UInt8]

  /// How the control structure could be read.
  enum Decoding {
    case decoded(VMCSLayout, agreeing: Int)
    /// No layout at hand fits; `tried` had been for this revision.
    case noLayout(revision: UInt32, tried: Int)
  }

  init(_ vcpu: KernelObject, on host: KVMHost, types: BTF) throws(KernelError) {
    guard let type = types.structure(named: "vcpu_vmx") else { throw .noType("vcpu_vmx") }
    self.vcpu = vcpu
    self.host = host
    vmx = try vcpu.container(of: type, member: "vcpu")
    loaded = try vmx["loaded_vmcs"].required()
    let address = try loaded["vmcs"].pointer()
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

  // MARK: Choosing the layout

  /// The revision identifier: the region's first 31 bits (SDM vol. 3C 24.2).
  private var revision: UInt32 { (region.load(UInt32.self, at: 0) ?? 0) & 0x7fff_ffff }

  func decoding() -> Decoding {
    let candidates =
      host.vmcsLayouts.filter { $0.revision == nil || $0.revision == revision }
      + VMCSLayoutDatabase.layouts(for: revision)
    let known = facts()
    for layout in candidates {
      let compared = known.compactMap { value in
        layout.value(of: value.field, in: region).map {
          $0 & value.mask == value.value & value.mask
        }
      }
      let agreeing = compared.count { $0 }
      // Either nearly all agree or nearly none does. A field or two that KVM was about to write
      // may differ.
      if agreeing >= 4, agreeing * 10 >= compared.count * 8 {
        return .decoded(layout.withAccessRights(fitting: region), agreeing: agreeing)
      }
    }
    return .noLayout(revision: revision, tried: candidates.count)
  }
}
