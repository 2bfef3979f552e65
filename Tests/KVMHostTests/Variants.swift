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

  /// Everything as in 5.10.
  static func linux5_10(_ types: inout KernelTypes) {
    vcpuArray(&types)
    slotArray(&types)
    oneControlBlock(&types)
    interceptWords(&types)
    noName(&types)
  }

  /// RHEL 8's 4.18, whose later builds have the control blocks of 5.14.
  static func el8(_ types: inout KernelTypes) {
    vcpuArray(&types)
    fixedSlotArray(&types)
    interceptWords(&types)
    noName(&types)
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
