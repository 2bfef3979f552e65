/// What the structures of a host have that lead to its guests: Linux 6.1 to 6.15. Tests change it
/// into what other kernels have.
extension KernelTypes {
  public static func host(seed: UInt64) -> KernelTypes {
    KernelTypes(
      linux.merging(kvm) { first, _ in first }.merging(svm) { first, _ in first }
        .merging(vmx) { first, _ in first }, seed: seed)
  }

  private static let linux: [String: CStructure] = [
    "list_head": CStructure(["next": .pointer(to: "list_head"), "prev": .pointer(to: "list_head")]),
    "hlist_head": CStructure(["first": .pointer(to: "hlist_node")]),
    "hlist_node": CStructure([
      "next": .pointer(to: "hlist_node"), "pprev": .pointer(.pointer(to: "hlist_node")),
    ]),
    "atomic_t": CStructure(["counter": .s32]),
    "xarray": CStructure(["xa_flags": .u32, "xa_head": .pointer(.void)]),
    "xa_node": CStructure([
      "shift": .u8, "offset": .u8, "count": .u8, "slots": .array(.pointer(.void), 64),
    ]),
    "module": CStructure([
      "state": .u32, "list": .named("list_head"), "name": .array(.char, 56),
      "kallsyms": .pointer(to: "mod_kallsyms"), "core_kallsyms": .named("mod_kallsyms"),
    ]),
    "mod_kallsyms": CStructure([
      "symtab": .pointer(.void), "num_symtab": .u32, "strtab": .pointer(.char),
    ]),
    "btf_module": CStructure([
      "list": .named("list_head"), "btf": .pointer(to: "btf"), "module": .pointer(to: "module"),
    ]),
    "btf": CStructure(["data": .pointer(.void), "data_size": .u32, "id": .u32]),
    "task_struct": CStructure([
      "flags": .u32, "tasks": .named("list_head"), "mm": .pointer(to: "mm_struct"),
      "active_mm": .pointer(to: "mm_struct"), "comm": .array(.char, 16), "pid": .s32,
      "tgid": .s32, "group_leader": .pointer(to: "task_struct"),
      "real_parent": .pointer(to: "task_struct"), "signal": .pointer(to: "signal_struct"),
      "thread_node": .named("list_head"), "stack": .pointer(.void), "on_cpu": .s32,
      "thread_info": .named("thread_info"), "thread": .named("thread_struct"),
      "cred": .pointer(to: "cred"), "static_prio": .s32, "__state": .u32, "utime": .u64,
      "stime": .u64,
    ]),
    "thread_info": CStructure(["flags": .u64, "cpu": .u32]),
    "thread_struct": CStructure([
      "sp": .u64, "es": .u16, "ds": .u16, "fsindex": .u16, "gsindex": .u16, "fsbase": .u64,
      "gsbase": .u64,
    ]),
    "signal_struct": CStructure([
      "thread_head": .named("list_head"), "pids": .array(.pointer(to: "pid"), 4),
    ]),
    "cred": CStructure(["uid": .named("kuid_t"), "gid": .named("kgid_t")]),
    "kuid_t": CStructure(["val": .u32]),
    "kgid_t": CStructure(["val": .u32]),
    "pt_regs": CStructure(
      [
        "r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si",
        "di", "orig_ax", "ip", "cs", "flags", "sp", "ss",
      ].map { CMember($0, .u64) }),
    "mm_struct": CStructure([
      "": .anonymous(
        CStructure([
          "pgd": .pointer(.void), "arg_start": .u64, "arg_end": .u64, "env_start": .u64,
          "owner": .pointer(to: "task_struct"), "mm_mt": .named("maple_tree"),
          "saved_auxv": .array(.u64, 8), "context": .named("mm_context_t"),
          "mm_users": .named("atomic_t"),
        ]))
    ]),
    "mm_context_t": CStructure([
      "ctx_id": .u64, "vdso": .pointer(.void), "vdso_image": .pointer(to: "vdso_image"),
    ]),
    "vdso_image": CStructure(["data": .pointer(.void), "size": .u64]),
    "maple_tree": CStructure(["ma_flags": .u32, "ma_root": .pointer(.void)]),
    "maple_node": CStructure(
      [
        "": .anonymous(
          CStructure(["parent": .pointer(.void), "slot": .array(.pointer(.void), 31)])),
        "mr64": .named("maple_range_64"), "ma64": .named("maple_arange_64"),
      ], isUnion: true),
    "maple_range_64": CStructure([
      "parent": .pointer(.void), "pivot": .array(.u64, 15), "slot": .array(.pointer(.void), 16),
    ]),
    "maple_arange_64": CStructure([
      "parent": .pointer(.void), "pivot": .array(.u64, 9), "slot": .array(.pointer(.void), 10),
      "gap": .array(.u64, 10),
    ]),
    "vm_area_struct": CStructure([
      "vm_start": .u64, "vm_end": .u64, "vm_mm": .pointer(to: "mm_struct"),
      "": .anonymous(CStructure(["vm_flags": .u64, "__vm_flags": .u64], isUnion: true)),
      "vm_ops": .pointer(.void), "vm_pgoff": .u64, "vm_file": .pointer(to: "file"),
    ]),
    "file": CStructure([
      "f_path": .named("path"), "f_mapping": .pointer(to: "address_space"), "f_flags": .u32,
    ]),
    "path": CStructure(["mnt": .pointer(to: "vfsmount"), "dentry": .pointer(to: "dentry")]),
    "vfsmount": CStructure(["mnt_root": .pointer(to: "dentry"), "mnt_flags": .s32]),
    "mount": CStructure([
      "mnt_parent": .pointer(to: "mount"), "mnt_mountpoint": .pointer(to: "dentry"),
      "mnt": .named("vfsmount"),
    ]),
    "dentry": CStructure([
      "d_hash": .named("hlist_bl_node"), "d_parent": .pointer(to: "dentry"),
      "d_name": .named("qstr"), "d_op": .pointer(to: "dentry_operations"),
    ]),
    "hlist_bl_node": CStructure([
      "next": .pointer(to: "hlist_bl_node"), "pprev": .pointer(.pointer(to: "hlist_bl_node")),
    ]),
    "qstr": CStructure(["hash": .u32, "len": .u32, "name": .pointer(.char)]),
    "dentry_operations": CStructure(["d_dname": .pointer(.void), "d_release": .pointer(.void)]),
    "page": CStructure([
      "flags": .u64,
      "": .anonymous(
        CStructure(
          [
            "": .anonymous(
              CStructure([
                "lru": .named("list_head"), "mapping": .pointer(to: "address_space"),
                "index": .u64, "private": .u64,
              ]))
          ], isUnion: true)),
      "compound_head": .u64, "_refcount": .named("atomic_t"),
    ]),
    "address_space": CStructure(["i_pages": .named("xarray"), "a_ops": .pointer(.void)]),
    "upid": CStructure(["nr": .s32]),
    "pid": CStructure(["level": .u32, "numbers": .array(.named("upid"), 1)]),
  ]

  static let linuxRoots =
    [
      "module", "btf_module", "task_struct", "mm_struct", "page", "address_space", "xa_node", "pid",
      "list_head", "hlist_head", "pt_regs", "fred_frame", "maple_node", "vm_area_struct", "mount",
    ] + swapRoots

  private static let kvm: [String: CStructure] = [
    "kvm": CStructure([
      "vm_list": .named("list_head"), "mm": .pointer(to: "mm_struct"), "userspace_pid": .s32,
      "memslots": .array(.pointer(to: "kvm_memslots"), 2), "vcpu_array": .named("xarray"),
      "online_vcpus": .named("atomic_t"),
    ]),
    "kvm_memslots": CStructure([
      "id_hash": .array(.named("hlist_head"), 128), "node_idx": .s32, "generation": .u64,
    ]),
    "kvm_memory_slot": CStructure([
      "id_node": .array(.named("hlist_node"), 2), "base_gfn": .u64, "npages": .u64,
      "userspace_addr": .u64, "flags": .u32, "id": .s16, "as_id": .u16,
    ]),
    "kvm_vcpu": CStructure([
      "arch": .named("kvm_vcpu_arch"), "mode": .s32, "cpu": .s32, "pid": .pointer(to: "pid"),
      "vcpu_id": .s32,
    ]),
    "kvm_vcpu_arch": CStructure([
      "regs": .array(.u64, 17), "regs_avail": .u32, "cr0": .u64, "cr2": .u64, "cr3": .u64,
      "cr4": .u64, "cr8": .u64,
      "efer": .u64, "apic_base": .u64, "xcr0": .u64, "pat": .u64, "dr6": .u64, "dr7": .u64,
      "db": .array(.u64, 4), "regs_dirty": .u32, "hflags": .u32, "tsc_offset": .u64,
      "cr0_guest_owned_bits": .u64, "cr4_guest_owned_bits": .u64,
      "apic": .pointer(to: "kvm_lapic"),
    ]),
    "kvm_lapic": CStructure([
      "base_address": .u64, "regs": .pointer(.void), "sw_enabled": .u8,
      "vcpu": .pointer(to: "kvm_vcpu"),
    ]),
    "kvm_x86_ops": CStructure(["name": .pointer(.char), "hardware_enable": .pointer(.void)]),
  ]

  static let kvmRoots = ["kvm", "kvm_memory_slot", "kvm_vcpu", "kvm_x86_ops"]

  private static let svm: [String: CStructure] = [
    "kvm_svm": CStructure([
      "kvm": .named("kvm"), "avic_vm_id": .u32, "sev_info": .named("kvm_sev_info"),
    ]),
    "kvm_sev_info": CStructure(["active": .u8, "es_active": .u8, "asid": .u32]),
    "vcpu_svm": CStructure([
      "vcpu": .named("kvm_vcpu"), "vmcb": .pointer(to: "vmcb"), "vmcb01": .named("kvm_vmcb_info"),
      "current_vmcb": .pointer(to: "kvm_vmcb_info"), "nested": .named("svm_nested_state"),
    ]),
    "kvm_vmcb_info": CStructure(["ptr": .pointer(to: "vmcb"), "pa": .u64, "cpu": .s32]),
    "svm_nested_state": CStructure(["vmcb02": .named("kvm_vmcb_info"), "hsave_msr": .u64]),
    "vmcb": CStructure([
      "control": .named("vmcb_control_area"), "save": .named("vmcb_save_area"),
    ]),
    "vmcb_control_area": CStructure(["intercepts": .array(.u32, 6), "nested_ctl": .u64]),
    "vmcb_save_area": CStructure(
      [
        "es", "cs", "ss", "ds", "fs", "gs", "gdtr", "ldtr", "idtr", "tr",
      ].map { CMember($0, .named("vmcb_seg")) }
        + [
          "efer", "cr4", "cr3", "cr0", "dr7", "dr6", "rflags", "rip", "rsp", "rax", "star", "lstar",
          "cstar", "sfmask", "kernel_gs_base", "sysenter_cs", "sysenter_esp", "sysenter_eip",
          "cr2",
        ].map { CMember($0, .u64) } + [CMember("cpl", .u8)]),
    "vmcb_seg": CStructure(["selector": .u16, "attrib": .u16, "limit": .u32, "base": .u64]),
  ]

  static let svmRoots = ["kvm_svm", "vcpu_svm"]

  private static let vmx: [String: CStructure] = [
    "vcpu_vmx": CStructure([
      "vcpu": .named("kvm_vcpu"), "guest_state_loaded": .u8, "rflags": .u64,
      "guest_uret_msrs": .array(.named("vmx_uret_msr"), 7), "msr_host_kernel_gs_base": .u64,
      "msr_guest_kernel_gs_base": .u64, "vmcs01": .named("loaded_vmcs"),
      "loaded_vmcs": .pointer(to: "loaded_vmcs"), "rmode": .named("vmx_rmode"),
      "segment_cache": .named("vmx_segment_cache"), "vpid": .s32, "nested": .named("nested_vmx"),
    ]),
    "vmx_uret_msr": CStructure(["load_into_hardware": .u8, "data": .u64, "mask": .u64]),
    // In the kernel these two have no names.
    "vmx_rmode": CStructure([
      "vm86_active": .s32, "save_rflags": .u64, "segs": .array(.named("kvm_segment"), 8),
    ]),
    "vmx_segment_cache": CStructure([
      "bitmask": .u32, "seg": .array(.named("kvm_save_segment"), 8),
    ]),
    "kvm_save_segment": CStructure(["selector": .u16, "base": .u64, "limit": .u32, "ar": .u32]),
    "kvm_segment": CStructure([
      "base": .u64, "limit": .u32, "selector": .u16, "type": .u8, "present": .u8, "dpl": .u8,
      "db": .u8, "s": .u8, "l": .u8, "g": .u8, "avl": .u8, "unusable": .u8, "padding": .u8,
    ]),
    "loaded_vmcs": CStructure([
      "vmcs": .pointer(to: "vmcs"), "shadow_vmcs": .pointer(to: "vmcs"), "cpu": .s32,
      "launched": .u8, "msr_bitmap": .pointer(.void),
      "host_state": .named("vmcs_host_state"),
      "controls_shadow": .named("vmcs_controls_shadow"),
    ]),
    "vmcs": CStructure(["hdr": .u32, "abort": .u32]),
    "vmcs_host_state": CStructure([
      "cr3": .u64, "cr4": .u64, "gs_base": .u64, "fs_base": .u64, "rsp": .u64,
    ]),
    "vmcs_controls_shadow": CStructure([
      "vm_entry": .u32, "vm_exit": .u32, "pin": .u32, "exec": .u32, "secondary_exec": .u32,
    ]),
    "nested_vmx": CStructure([
      "vmxon": .u8, "current_vmptr": .u64, "cached_vmcs12": .pointer(to: "vmcs12"),
      "vmcs02": .named("loaded_vmcs"),
    ]),
    "vmcs12": CStructure(
      [
        "host_ia32_pat", "host_ia32_efer", "host_cr0", "host_cr3", "host_cr4", "host_fs_base",
        "host_gs_base", "host_tr_base", "host_gdtr_base", "host_idtr_base",
        "host_ia32_sysenter_esp", "host_ia32_sysenter_eip", "host_rsp", "host_rip", "guest_rip",
        "guest_rsp",
      ].map { CMember($0, .u64) }
        + [
          "host_es_selector", "host_cs_selector", "host_ss_selector", "host_ds_selector",
          "host_fs_selector", "host_gs_selector", "host_tr_selector",
        ].map { CMember($0, .u16) }
        + [
          "vm_exit_controls", "vm_entry_controls", "vm_exit_msr_load_count",
          "host_ia32_sysenter_cs",
        ].map { CMember($0, .u32) }),
    // Not part of vcpu_vmx before 6.16.
    "vcpu_vt": CStructure([
      "exit_qualification": .u64, "guest_state_loaded": .u8, "msr_host_kernel_gs_base": .u64,
    ]),
  ]

  /// Kernels without TDX have the first only.
  static let vmxRoots = ["vcpu_vmx", "kvm_tdx", "vcpu_tdx"]
}
