import SyntheticDumps

/// How kernels in the field differ from the one that ``KernelTypes/host(seed:)`` describes.
enum Variant {
  /// vCPUs in an array of pointers. Until 5.16, and RHEL 8's 4.18.
  static func vcpuArray(_ types: inout KernelTypes) {
    types["kvm"].remove("vcpu_array")
    types["kvm"].add("vcpus", .array(.pointer(to: "kvm_vcpu"), 288))
  }

  /// Memory slots in an array behind the set, sorted by descending guest address. 5.7 to 5.16.
  static func slotArray(_ types: inout KernelTypes) { slotArray(&types, declared: 0) }

  /// The same with a declared length. Until 5.6, and RHEL 8's 4.18.
  static func fixedSlotArray(_ types: inout KernelTypes) { slotArray(&types, declared: 512) }

  private static func slotArray(_ types: inout KernelTypes, declared: Int) {
    types["kvm_memslots"] = CStructure([
      "generation": .u64, "id_to_index": .array(.s16, 512), "lru_slot": .named("atomic_t"),
      "used_slots": .s32, "memslots": .array(.named("kvm_memory_slot"), declared),
    ])
    types["kvm_memory_slot"].remove("id_node")
  }

  /// No CONFIG_MEMCG: an address space does not know its process.
  static func noOwner(_ types: inout KernelTypes) {
    types["mm_struct"] = CStructure([
      "pgd": .pointer(.void), "arg_start": .u64, "arg_end": .u64, "env_start": .u64,
    ])
  }

  /// A module's symbol table in the module itself. Before 4.5.
  static func symbolsInModule(_ types: inout KernelTypes) {
    types["module"].remove("kallsyms", "core_kallsyms")
    types["module"].add("symtab", .pointer(.void))
    types["module"].add("num_symtab", .u32)
    types["module"].add("strtab", .pointer(.char))
  }

  /// The build-id in the module. Since 5.14, if stack traces show it.
  static func buildIDInModule(_ types: inout KernelTypes) {
    types["module"].add("build_id", .array(.u8, 20))
  }

  /// The build-id in the notes that sysfs shows.
  static func buildIDInNotes(_ types: inout KernelTypes) {
    types["module"].add("notes_attrs", .pointer(to: "module_notes_attrs"))
    types["module_notes_attrs"] = CStructure([
      "dir": .pointer(.void), "notes": .u32, "attrs": .array(.named("bin_attribute"), 0),
    ])
    types["bin_attribute"] = CStructure(["size": .u64, "private": .pointer(.void), "read": .u64])
  }

  /// The same in a list of pointers. Since 6.14.
  static func buildIDInNoteList(_ types: inout KernelTypes) {
    buildIDInNotes(&types)
    types["module_notes_attrs"] = CStructure(["grp": .named("attribute_group")])
    types["attribute_group"] = CStructure([
      "name": .pointer(.char), "bin_attrs": .pointer(.pointer(to: "bin_attribute")),
    ])
  }

  /// One control block, no others by name. Until 5.11.
  static func oneControlBlock(_ types: inout KernelTypes) {
    types["vcpu_svm"].remove("vmcb01", "current_vmcb")
    types["svm_nested_state"] = CStructure(["hsave": .pointer(to: "vmcb"), "vmcb": .u64])
  }

  /// A member for each word of intercepts. Until 5.9.
  static func interceptWords(_ types: inout KernelTypes) {
    types["vmcb_control_area"] = CStructure([
      "intercept_cr": .u32, "intercept_dr": .u32, "intercept_exceptions": .u32, "intercept": .u64,
      "nested_ctl": .u64,
    ])
  }

  /// The controls of nested paging under the name that the architecture's manual gives them. By 7.2.
  static func miscellaneousControls(_ types: inout KernelTypes) {
    types["vmcb_control_area"].rename("nested_ctl", to: "misc_ctl")
  }

  /// KVM does not say whose virtualisation it drives. Until 6.0.
  static func noName(_ types: inout KernelTypes) { types["kvm_x86_ops"].remove("name") }

  /// A page's index under another name. Since 6.16.
  static func folioIndex(_ types: inout KernelTypes) {
    types["page"] = CStructure([
      "flags": .u64, "mapping": .pointer(to: "address_space"), "__folio_index": .u64,
      "compound_head": .u64,
    ])
  }

  /// Its flags in a structure of their own. Since 6.18.
  static func pageFlags(_ types: inout KernelTypes) {
    folioIndex(&types)
    types["page"].add("flags", .named("memdesc_flags_t"))
    types["memdesc_flags_t"] = CStructure(["f": .u64])
  }

  /// What tails of a compound page have under another name. By 7.2.
  static func compoundInformation(_ types: inout KernelTypes) {
    pageFlags(&types)
    types["page"].rename("compound_head", to: "compound_info")
  }

  /// Everything as in 5.4, and in RHEL 8's 4.18 up to 8.3.
  static func linux5_4(_ types: inout KernelTypes) {
    linux5_10(&types)
    fixedSlotArray(&types)
  }

  /// Everything as in 5.10.
  static func linux5_10(_ types: inout KernelTypes) {
    vcpuArray(&types)
    slotArray(&types)
    oneControlBlock(&types)
    interceptWords(&types)
    noName(&types)
  }

  /// Everything as in 5.14 and 5.15, and in the first of RHEL 9.
  static func linux5_14(_ types: inout KernelTypes) {
    vcpuArray(&types)
    slotArray(&types)
    noName(&types)
  }

  /// Everything as in 6.8 to 6.15. What 6.6 has is as in 6.1.
  static func linux6_8(_ types: inout KernelTypes) {
    machineTypes(&types)
    privateMemory(&types)
  }

  /// Everything as in 6.16.
  static func linux6_16(_ types: inout KernelTypes) {
    linux6_8(&types)
    folioIndex(&types)
  }

  /// Everything as in 7.2.
  static func linux7_2(_ types: inout KernelTypes) {
    linux6_8(&types)
    compoundInformation(&types)
    miscellaneousControls(&types)
  }

  /// RHEL 8's 4.18, whose later builds have the control blocks of 5.14.
  static func el8(_ types: inout KernelTypes) {
    vcpuArray(&types)
    fixedSlotArray(&types)
    interceptWords(&types)
    noName(&types)
  }

  // MARK: Protected guests

  /// VMs have types. Since 6.8.
  static func machineTypes(_ types: inout KernelTypes) {
    types["kvm"].add("arch", .named("kvm_arch"))
    types["kvm_arch"] = CStructure(["vm_type": .u8, "has_private_mem": .u8])
    types["kvm_vcpu_arch"].add("guest_state_protected", .u8)
  }

  /// Guests have memory that the VMM does not map. Since 6.8.
  static func privateMemory(_ types: inout KernelTypes) {
    types["kvm"].add("mem_attr_array", .named("xarray"))
    types["kvm_memory_slot"].add("gmem", .named("gmem_binding"))
    // In the kernel it has no name.
    types["gmem_binding"] = CStructure(["file": .pointer(to: "file"), "pgoff": .u64])
  }

  /// Intel's TDX. Since 6.16.
  static func trustDomains(_ types: inout KernelTypes) {
    types["kvm_tdx"] = CStructure(["kvm": .named("kvm"), "hkid": .s32, "attributes": .u64])
    types["vcpu_tdx"] = CStructure(["vcpu": .named("kvm_vcpu"), "tdvpr": .u64, "state": .u32])
  }

  // MARK: kvm_intel

  /// Entries of lazily loaded MSRs tell their place in a list. 5.10 to 5.12.
  static func registersBySlot(_ types: inout KernelTypes) {
    types["vmx_uret_msr"] = CStructure(["slot": .u32, "data": .u64, "mask": .u64])
    types["vcpu_vmx"].add("nr_uret_msrs", .s32)
  }

  /// The same under other names. Until 5.9, and RHEL 8's 4.18 up to 8.3.
  static func sharedRegisters(_ types: inout KernelTypes) {
    types["shared_msr_entry"] = CStructure(["index": .u32, "data": .u64, "mask": .u64])
    types["vcpu_vmx"].remove("guest_uret_msrs")
    types["vcpu_vmx"].add("guest_msrs", .array(.named("shared_msr_entry"), 7))
    types["vcpu_vmx"].add("nmsrs", .s32)
  }

  /// What TDX shares with VMX is in a structure of its own. Since 6.16.
  static func sharedWithTDX(_ types: inout KernelTypes) {
    types["vcpu_vmx"].remove("guest_state_loaded", "msr_host_kernel_gs_base")
    types["vcpu_vmx"].add("vt", .named("vcpu_vt"))
  }

  /// A pointer says whether the guest's state is loaded. 4.19 to 5.1.
  static func loadedState(_ types: inout KernelTypes) {
    types["vcpu_vmx"].remove("guest_state_loaded")
    types["vcpu_vmx"].add("loaded_cpu_state", .pointer(to: "loaded_vmcs"))
  }

  /// No copies of controls. Until 5.1.
  static func noControls(_ types: inout KernelTypes) {
    types["loaded_vmcs"].remove("controls_shadow")
  }

  /// What is found without types lies in the order of the kernel's sources, and APICs are known by
  /// name alone. Until 5.10 modules have no types.
  static func untyped(_ types: inout KernelTypes) {
    for name in ["vcpu_vmx", "loaded_vmcs", "vmx_uret_msr", "shared_msr_entry"] {
      types[name].isOrdered = true
    }
    if let index = types["vcpu_vmx"].members.firstIndex(where: { $0.name == "guest_msrs" }) {
      let registers = types["vcpu_vmx"].members.remove(at: index)
      types["vcpu_vmx"].members.insert(registers, at: 1)
    }
    types["kvm_vcpu_arch"].add("apic", .pointer(.void))
  }
}
