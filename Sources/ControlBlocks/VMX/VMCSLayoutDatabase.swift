/// The published layouts, compiled in. Each file of `Layouts/` tells where it comes from.
package enum VMCSLayoutDatabase {
  package static let layouts: [VMCSLayout] = [
    ("Penryn", PackageResources.rev_0x0d_penryn_txt),
    ("Nehalem", PackageResources.rev_0x0e_nehalem_txt),
    ("Westmere", PackageResources.rev_0x0f_westmere_txt),
    ("Sandy Bridge, Ivy Bridge", PackageResources.rev_0x10_sandybridge_ivybridge_txt),
    ("Haswell, Broadwell", PackageResources.rev_0x12_haswell_broadwell_txt),
    ("Skylake to Coffee Lake", PackageResources.rev_0x04_skylake_coffeelake_txt),
    ("KVM's vmcs12", PackageResources.kvm_vmcs12_txt),
    ("Hyper-V's enlightened VMCS", PackageResources.hyperv_evmcs_v1_txt),
    ("Xen's nested VMCS", PackageResources.xen_vvmcs_txt),
    ("Bochs", PackageResources.bochs_generic_txt),
  ].compactMap { name, bytes in
    VMCSLayoutText.table(
      String(decoding: bytes, as: UTF8.self), origin: "known layout (\(name))")
  }

  /// Those that carry a revision identifier.
  package static func layouts(for revision: UInt32) -> [VMCSLayout] {
    layouts.filter { $0.revision == revision }
  }

  /// That of the VMCSs of a guest's guests, as KVM gives it to the guest: revision VMCS12_REVISION of
  /// arch/x86/kvm/vmx/vmcs12.h.
  package static let vmcs12: VMCSLayout? = layouts(for: 0x11e5_7ed0).first
}
