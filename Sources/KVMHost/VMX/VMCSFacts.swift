import LinuxKernel
import Memory
import X86

/// What KVM remembers of a field of a VMCS.
struct VMCSFact {
  let field: VMCSField
  let value: UInt64
  var mask: UInt64 = .max
}

extension VMXProcessor {
  /// What KVM remembers of the contents of this structure.
  func facts() -> [VMCSFact] {
    var known = [VMCSFact(field: .linkPointer, value: .max)]
    if let exit = host.symbol("vmx_vmexit") {
      known.append(VMCSFact(field: .hostRIP, value: exit.rawValue))
    }
    let members: [(VMCSField, KernelObject?)] = [
      (.vpid, vmx.memberIfPresent("vpid")),
      (.tscOffset, try? vcpu["arch.tsc_offset"]),
      (.hostCR3, try? loaded["host_state.cr3"]), (.hostCR4, try? loaded["host_state.cr4"]),
      (.hostRSP, try? loaded["host_state.rsp"]),
      (.pinControls, try? loaded["controls_shadow.pin"]),
      (.primaryControls, try? loaded["controls_shadow.exec"]),
      (.secondaryControls, try? loaded["controls_shadow.secondary_exec"]),
      (.entryControls, try? loaded["controls_shadow.vm_entry"]),
      (.exitControls, try? loaded["controls_shadow.vm_exit"]),
    ]
    for (field, member) in members {
      guard let value = try? member?.unsigned() else { continue }
      let mask = field.size == 8 ? UInt64.max : (1 << UInt64(field.size * 8)) - 1
      known.append(VMCSFact(field: field, value: value, mask: mask))
    }
    if let bitmap = try? loaded["msr_bitmap"].pointer(), bitmap.rawValue != 0,
      let physical = try? vcpu.memory.translate(bitmap)
    {
      known.append(VMCSFact(field: .msrBitmap, value: physical.rawValue))
    }
    return known
  }
}
