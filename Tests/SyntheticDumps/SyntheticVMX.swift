import Memory

/// What kvm_intel has of a vCPU.
extension SyntheticHost {
  /// The value that a field of a VMCS has if no test sets it: tells the field and the vCPU.
  public static func fieldValue(_ encoding: UInt32, _ index: Int) -> UInt64 {
    let size = SyntheticVMCSLayout.size(of: encoding)
    let value = self.value("vmcs \(encoding)", index)
    switch encoding {
    case 0x2800: return .max
    // Access rights of code, LDTR (unusable), TR, and of data.
    case 0x4816: return 0xa09b
    case 0x4820: return 0x1_0082
    case 0x4822: return 0x8b
    case 0x4814...0x4822: return 0xc093
    // Secondary controls, MSR bitmap, TSC offset; extended page tables, VPID; PAT is loaded.
    case 0x4002: return 1 << 31 | 1 << 28 | 1 << 3
    case 0x401e: return 1 << 5 | 1 << 1
    case 0x4012: return value & 0x13_ffff | 1 << 14
    // What KVM writes of its copies: the host forces NE; MCE and VMXE.
    case 0x6800: return self.value("cr0", index) & ~(3 << 29) | 1 << 5
    case 0x6804: return self.value("cr4", index) | 1 << 13 | 1 << 6
    case 0x6000, 0x6002: return .max
    case 0x6004: return self.value("cr0", index)
    case 0x6006: return self.value("cr4", index)
    case 0x681a: return self.value("dr7", index)
    case 0x2804: return self.value("pat", index)
    // The host's segments and CR0.
    case 0x0c02, 0x4c00: return 0x10
    case 0x0c04: return 0x18
    case 0x0c0c: return 0x40
    case 0x0c00, 0x0c06: return 0
    case 0x6c00: return 0x8005_0033
    default: return size == 8 ? value : value & (1 << UInt64(size * 8) - 1)
    }
  }

  /// Where the processor starts KVM's code at an exit.
  var exitHandler: VirtualAddress { vmxRoom + 0x100 }

  /// MSRs that are loaded lazily, in an order of this kernel's.
  var lazyRegisters: [UInt32] {
    var generator = SeededGenerator(seed: options.seed &+ 5)
    return [
      0xc000_0084, 0xc000_0082, 0xc000_0083, 0xc000_0080, 0xc000_0103, 0xc000_0081, 0x122,
    ].shuffled(using: &generator)
  }

  // MARK: Control structures

  /// A control structure whose values tell the field and the vCPU.
  public mutating func makeVMCS(_ index: Int) -> VirtualAddress {
    let frame = kernel.machine.allocate(1, filledWith: 0)
    let region = kernel.direct(frame.address)
    kernel.store(options.vmcs.revision, at: region)
    for encoding in options.vmcs.places.keys {
      set(encoding, of: region, to: Self.fieldValue(encoding, index))
    }
    set(0x6c16, of: region, to: exitHandler.rawValue)
    return region
  }

  /// Sets a field of a VMCS.
  public mutating func set(_ encoding: UInt32, of vmcs: VirtualAddress, to value: UInt64) {
    guard let (offset, bytes) = options.vmcs.encode(value, as: encoding) else { return }
    kernel.write(bytes, at: vmcs + UInt64(offset))
  }

  /// Makes KVM's copies of a control structure equal to it.
  private mutating func fill(_ loaded: SyntheticObject, _ vmcs: VirtualAddress, _ index: Int) {
    kernel.set(loaded, "vmcs", vmcs)
    kernel.set(loaded, "cpu", UInt64(index))
    let bitmap = kernel.machine.allocate(1, filledWith: 0)
    kernel.set(loaded, "msr_bitmap", kernel.direct(bitmap.address))
    set(0x2004, of: vmcs, to: bitmap.address.rawValue)
    for (member, encoding) in [
      ("cr3", UInt32(0x6c02)), ("cr4", 0x6c04), ("fs_base", 0x6c06), ("gs_base", 0x6c08),
      ("rsp", 0x6c14),
    ] {
      kernel.set(loaded, "host_state.\(member)", Self.fieldValue(encoding, index))
    }
    guard kernel.has(loaded, "controls_shadow") else { return }
    for (member, encoding) in [
      ("pin", UInt32(0x4000)), ("exec", 0x4002), ("secondary_exec", 0x401e), ("vm_exit", 0x400c),
      ("vm_entry", 0x4012),
    ] {
      kernel.set(loaded, "controls_shadow.\(member)", Self.fieldValue(encoding, index))
    }
  }

  /// Makes the guest's loads of CR3 exit, in the VMCS and in KVM's copy.
  public mutating func interceptCR3Loads(_ processor: Processor) {
    guard let vmx = processor.vmx, let vmcs = processor.vmcs else { return }
    let controls = Self.fieldValue(0x4002, 0) | 1 << 15
    set(0x4002, of: vmcs, to: controls)
    if kernel.types.has("loaded_vmcs", "controls_shadow") {
      kernel.set(vmx, "vmcs01.controls_shadow.exec", controls)
    }
  }

  // MARK: Processors

  /// A vCPU after an exit of which KVM has read nothing.
  mutating func addVMX(_ index: Int, to vmx: SyntheticObject) -> VirtualAddress {
    let vcpu = kernel.member(vmx, "vcpu")
    for name in ["rip", "rsp"] {
      setRegister(vcpu, name, to: Self.value("old \(name)", index))
      setAvailable(vcpu, name, false)
    }
    for name in ["RFLAGS", "SEGMENTS", "CR0", "CR3", "CR4"] { setAvailable(vcpu, name, false) }
    kernel.set(vcpu, "arch.tsc_offset", Self.fieldValue(0x2010, index))
    kernel.set(vmx, "vpid", Self.fieldValue(0x0000, index))
    kernel.set(vmx, "rflags", Self.value("old rflags", index))
    kernel.set(vmx, "msr_guest_kernel_gs_base", Self.value("kernel_gs_base", index))
    setGuestStateLoaded(vmx, false)
    kernel.set(vmx, "rmode.vm86_active", 0)
    kernel.set(vmx, "segment_cache.bitmask", 0)
    kernel.set(vmx, "nested.cached_vmcs12", 0)
    setLazyRegisters(vmx, index)
    let vmcs = makeVMCS(index)
    let first = kernel.member(vmx, "vmcs01")
    fill(first, vmcs, index)
    kernel.set(vmx, "loaded_vmcs", first.address)
    return vmcs
  }

  public mutating func setGuestStateLoaded(_ vmx: SyntheticObject, _ isLoaded: Bool) {
    if kernel.has(vmx, "vt") {
      kernel.set(vmx, "vt.guest_state_loaded", isLoaded ? 1 : 0)
    } else if kernel.has(vmx, "loaded_cpu_state") {
      kernel.set(vmx, "loaded_cpu_state", isLoaded ? 0xffff_9a40_0000_1000 : 0)
    } else {
      kernel.set(vmx, "guest_state_loaded", isLoaded ? 1 : 0)
    }
  }

  /// Values of MSRs by number: `value("msr c0000081", index)`.
  private mutating func setLazyRegisters(_ vmx: SyntheticObject, _ index: Int) {
    let array = kernel.has(vmx, "guest_msrs") ? "guest_msrs" : "guest_uret_msrs"
    let entry = kernel.has(vmx, "guest_msrs") ? "shared_msr_entry" : "vmx_uret_msr"
    let all = lazyRegisters
    let place = ["slot", "index"].first { kernel.types.has(entry, $0) }
    // Where entries tell their places they are in another order, and the last is not in use: the
    // processor lacks MSR_IA32_TSX_CTRL.
    let order =
      place == nil ? Array(all.indices) : all.indices.reversed().filter { all[$0] != 0x122 }
    for slot in all.indices {
      let isUsed = slot < order.count
      let number = all[isUsed ? order[slot] : 0]
      let value = Self.value("msr \(String(number, radix: 16))", index)
      kernel.set(vmx, "\(array)[\(slot)].data", isUsed ? value : 0)
      if let place {
        kernel.set(vmx, "\(array)[\(slot)].\(place)", isUsed ? UInt64(order[slot]) : 0)
      }
    }
    for counter in ["nr_uret_msrs", "nmsrs"] where kernel.has(vmx, counter) {
      kernel.set(vmx, counter, UInt64(order.count))
    }
  }

  /// Makes the entries of lazily loaded MSRs what they are in memory that was zero: nothing between
  /// their members, and the masks that KVM sets.
  public mutating func completeLazyRegisters(_ vmx: SyntheticObject) {
    let array = kernel.has(vmx, "guest_msrs") ? "guest_msrs" : "guest_uret_msrs"
    let entry = kernel.has(vmx, "guest_msrs") ? "shared_msr_entry" : "vmx_uret_msr"
    let place = ["slot", "index"].first { kernel.types.has(entry, $0) }
    for (index, number) in lazyRegisters.enumerated() {
      let path = "\(array)[\(index)]"
      let start = kernel.address(vmx, path)
      let slot = place.map { kernel.load(vmx, "\(path).\($0)") & 0xffff_ffff }
      kernel.store(slot ?? 1, at: start)
      let listed = slot.map { lazyRegisters[Int($0)] } ?? number
      let isUsed = index < lazyRegisters.count - (place == nil ? 0 : 1)
      kernel.set(vmx, "\(path).mask", isUsed && listed != 0x122 ? .max : 0)
    }
  }

  // MARK: Registers

  /// Sets a general register or RIP in `arch.regs`.
  public mutating func setRegister(_ vcpu: SyntheticObject, _ name: String, to value: UInt64) {
    guard let number = registers.firstIndex(of: name) else { return }
    kernel.set(vcpu, "arch.regs[\(number)]", value)
  }

  /// Says whether KVM's copy of a register is current: `rip`, or the end of VCPU_EXREG_*.
  public mutating func setAvailable(_ vcpu: SyntheticObject, _ name: String, _ isCurrent: Bool) {
    let bit =
      registers.firstIndex(of: name) ?? extraRegisters.first { $0.name == name }.map { $0.bit }
    guard let bit else { return }
    let mask = UInt64(1) << UInt64(bit)
    let old = kernel.load(vcpu, "arch.regs_avail")
    kernel.set(vcpu, "arch.regs_avail", isCurrent ? old | mask : old & ~mask)
  }

  /// Gives a vCPU an APIC of KVM's.
  public mutating func addAPIC(to processor: Processor, taskPriority: UInt32) {
    let apic = kernel.make("kvm_lapic")
    let page = kernel.machine.allocate(1, filledWith: 0)
    kernel.machine.memory.store(0x5_0014 as UInt32, at: page.address + 0x30)
    kernel.machine.memory.store(taskPriority, at: page.address + 0x80)
    kernel.set(apic, "vcpu", processor.vcpu.address)
    kernel.set(apic, "regs", kernel.direct(page.address))
    kernel.set(processor.vcpu, "arch.apic", apic.address)
  }

  /// Fills all of KVM's cache of segments: the index tells the values.
  public mutating func fillSegmentCache(_ vmx: SyntheticObject, index: Int) {
    kernel.set(vmx, "segment_cache.bitmask", 0xffff_ffff)
    // enum VCPU_SREG_*: TR before LDTR, which encodings have the other way round.
    for (place, number) in [0, 1, 2, 3, 4, 5, 7, 6].enumerated() as EnumeratedSequence<[UInt32]> {
      for (member, encoding) in [
        ("selector", 0x0800 + 2 * number), ("base", 0x6806 + 2 * number),
        ("limit", 0x4800 + 2 * number), ("ar", 0x4814 + 2 * number),
      ] {
        kernel.set(
          vmx, "segment_cache.seg[\(place)].\(member)", Self.fieldValue(encoding, index))
      }
    }
  }

  // MARK: Nested guests

  /// Makes an Intel vCPU run a nested guest, whose control structure has the values of `index`.
  /// Returns it and `struct vmcs12`.
  public mutating func enterNestedGuest(
    _ vmx: SyntheticObject, index: Int
  ) -> (vmcs: VirtualAddress, vmcs12: SyntheticObject) {
    let second = kernel.member(vmx, "nested.vmcs02")
    let vmcs = makeVMCS(index)
    fill(second, vmcs, index)
    kernel.set(vmx, "loaded_vmcs", second.address)
    kernel.set(vmx, "vpid", Self.fieldValue(0x0000, index))
    kernel.set(kernel.member(vmx, "vcpu"), "arch.tsc_offset", Self.fieldValue(0x2010, index))
    let vmcs12 = kernel.make("vmcs12")
    for member in kernel.types["vmcs12"].members {
      kernel.set(vmcs12, member.name, Self.value("vmcs12.\(member.name)", index))
    }
    kernel.set(vmcs12, "vm_exit_msr_load_count", 0)
    kernel.set(vmx, "nested.cached_vmcs12", vmcs12.address)
    return (vmcs, vmcs12)
  }
}
