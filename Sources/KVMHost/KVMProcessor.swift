import Guest
import LinuxKernel
import Memory
import X86

/// One `struct kvm_vcpu`: decides which of the copies of its registers are current.
///
/// After each exit KVM saves the general registers, and the processor the rest in its control
/// block, before anything else can run on that host processor: an NMI that stops a crashing host
/// is such an exit. Two cases differ. A host that was dumped from outside stood still with its
/// processors in guest mode, and their registers are those of the dump's own notes. And a host
/// processor that never answered the NMI saved nothing.
struct KVMProcessor {
  let processor: VirtualProcessor
  private(set) var findings: [Finding] = []

  init(
    _ vcpu: KernelObject, index: Int, on host: KVMHost, protection: Protection,
    _ structures: ControlStructures
  ) throws(KernelError) {
    guard protection != .sevES else {
      processor = VirtualProcessor(
        index: index, state: .exited, registers: .unreadable(because: "encrypted by SEV-ES"))
      return
    }
    var registers = try KVMRegisters(vcpu, types: host.types).read()
    do throws(KernelError) {
      findings += try Self.readControlBlock(
        of: vcpu, index, host, structures, into: &registers)
    } catch {
      // KVM's own copies are still good, but for CR3, which changes without an exit.
      registers[.cr3] = .unknown(reason: "the control block, which is newer, cannot be read")
      findings.append(
        Finding(
          .warning, "vcpu.no-control-block",
          "vCPU \(index): registers kept in the processor's control block are not known:"
            + " \(error.problem)"))
    }
    let isInGuestMode = try vcpu["mode"].signed() == Self.inGuestMode(host.types)
    guard isInGuestMode else {
      processor = VirtualProcessor(index: index, state: .exited, registers: registers)
      return
    }
    let hostCPU = Int(clamping: try vcpu["cpu"].signed())
    if let live = host.processors.guestRegisters(onProcessor: hostCPU, of: host.kernel) {
      registers.override(with: live)
      processor = VirtualProcessor(index: index, state: .running, registers: registers)
      findings.append(
        Finding(
          .note, "vcpu.running",
          "vCPU \(index) was running on host CPU \(hostCPU) when the host was stopped: its"
            + " registers are those of that CPU in the host dump's notes"))
    } else if host.processors.wereStoppedFromOutside || Self.wasStopped(vcpu, host.processors) {
      processor = VirtualProcessor(index: index, state: .exited, registers: registers)
    } else {
      processor = VirtualProcessor(index: index, state: .stale, registers: registers)
      findings.append(
        Finding(
          .warning, "vcpu.stale",
          "vCPU \(index) was in guest mode on host CPU \(hostCPU), which did not answer when the"
            + " host crashed: its registers are those of its last exit"))
    }
  }

  /// Adds what the processor's control block has, and what the module that drives it keeps.
  private static func readControlBlock(
    of vcpu: KernelObject, _ index: Int, _ host: KVMHost, _ structures: ControlStructures,
    into registers: inout RegisterFile
  ) throws(KernelError) -> [Finding] {
    var findings: [Finding] = []
    let runsNestedGuest: Bool
    switch host.vendor {
    case .svm(let types):
      let svm = try SVMProcessor(vcpu, types: types)
      try svm.read(into: &registers)
      runsNestedGuest = try svm.runsNestedGuest()
    case .vmx(let types):
      guard let (vmx, reading, told) = structures.reading(of: vcpu) else {
        // Tells why.
        _ = try VMXProcessor(vcpu, on: host, types: types)
        throw .noMember(type: "vcpu_vmx", anyOf: ["loaded_vmcs"])
      }
      let merged = VMXRegisters(of: vmx)
      try merged.readCopies(into: &registers)
      runsNestedGuest = try vmx.runsNestedGuest()
      if case .current(let vmcs, _, _) = reading { try merged.read(vmcs, into: &registers) }
      findings += told
    case .unknown:
      throw .noSymbol("kvm_x86_ops", module: "kvm")
    }
    if runsNestedGuest {
      findings.append(
        Finding(
          .warning, "vcpu.nested",
          "vCPU \(index) was running a guest of its own: its registers are that guest's"))
    }
    return findings
  }

  /// IN_GUEST_MODE of the enumeration in include/linux/kvm_host.h.
  private static func inGuestMode(_ types: BTF) -> Int64 {
    types.enumerator(named: "IN_GUEST_MODE") ?? 1
  }

  /// True if the vCPU's thread is one of those that the crash stopped, by the dump's notes.
  private static func wasStopped(_ vcpu: KernelObject, _ processors: HostProcessors) -> Bool {
    guard !processors.stoppedTasks.isEmpty else { return false }
    // kvm_vcpu.pid (since 4.x a struct pid) of the thread that runs the vCPU.
    guard let pid = try? vcpu.memberIfPresent("pid")?.dereferenced(),
      let number = try? pid["numbers"].element(0)["nr"].unsigned()
    else { return false }
    return processors.stoppedTasks.contains(UInt32(truncatingIfNeeded: number))
  }
}

extension RegisterFile {
  fileprivate static func unreadable(because reason: String) -> RegisterFile {
    var file = RegisterFile()
    for register in Register.allCases { file[register] = .unknown(reason: reason) }
    for register in SegmentRegister.allCases { file[register] = .unknown(reason: reason) }
    for register in TableRegister.allCases { file[register] = .unknown(reason: reason) }
    return file
  }

  /// Takes what `live` knows. Of the rest only registers whose every change makes the guest exit
  /// are still current; the others are given up.
  fileprivate mutating func override(with live: RegisterFile) {
    let intercepted: Set<Register> = [.efer, .pat, .apicBase, .xcr0]
    for register in Register.allCases {
      if live[register].value != nil {
        self[register] = live[register]
      } else if !intercepted.contains(register) {
        self[register] = .unknown(
          reason: "the vCPU was running; what KVM has is from before it entered the guest")
      }
    }
    for register in SegmentRegister.allCases { self[register] = live[register] }
    for register in TableRegister.allCases { self[register] = live[register] }
  }
}
