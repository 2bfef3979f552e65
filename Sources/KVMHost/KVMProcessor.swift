import ControlBlocks
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
    guard !protection.hidesRegisters else {
      processor = VirtualProcessor(
        index: index, state: .exited,
        registers: .unknown(because: "encrypted by \(protection.rawValue)"))
      return
    }
    var registers = try KVMRegisters(vcpu, types: host.types).read()
    var resume: (any ResumeState)?
    do throws(KernelError) {
      (findings, resume) = try Self.readControlBlock(
        of: vcpu, index, host, structures, into: &registers)
    } catch {
      // KVM's own copies are still good, but for CR3, which changes without an exit.
      registers[.cr3] = .unknown(reason: "the control block, which is newer, cannot be read")
      findings.append(.noControlBlock(index, host.explained(error)))
    }
    var state = VirtualProcessor.State.exited
    let isInGuestMode = try vcpu["mode"].signed() == Self.inGuestMode(host.types)
    let hostCPU = Int(clamping: try vcpu["cpu"].signed())
    if isInGuestMode {
      if let live = host.processors.guestRegisters(onProcessor: hostCPU, of: host.kernel) {
        registers.override(with: live)
        state = .running
        findings.append(
          Finding(
            .note, "vcpu.running",
            "vCPU \(index) was running on host CPU \(hostCPU) when the host was stopped: its"
              + " registers are those of that CPU in the host dump's notes"))
      } else if !host.processors.wereStoppedFromOutside, !Self.wasStopped(vcpu, host.processors) {
        state = .stale
        findings.append(
          Finding(
            .warning, "vcpu.stale",
            "vCPU \(index) was in guest mode on host CPU \(hostCPU), of which the dump has no"
              + " registers: it did not answer when the host crashed, or nothing asked it; the vCPU's"
              + " registers are those of its last exit"))
      }
    }
    guard let resume else {
      processor = VirtualProcessor(index: index, state: state, registers: registers)
      return
    }
    let (owner, failure) = resume.registers(after: registers)
    processor = VirtualProcessor(
      index: index, state: state, registers: owner, nested: resume.nestedRegisters(registers))
    findings.append(.nested(index, failure.map(host.explained)))
  }

  /// Adds what the processor's control block has, and what the module that drives it keeps. If the
  /// registers are those of a nested guest, gives also what the guest resumes with after it.
  private static func readControlBlock(
    of vcpu: KernelObject, _ index: Int, _ host: KVMHost, _ structures: ControlStructures,
    into registers: inout RegisterFile
  ) throws(KernelError) -> ([Finding], (any ResumeState)?) {
    switch host.vendor {
    case .svm(let types):
      if let blocks = host.controlBlocks {
        try blocks.read(vcpu, into: &registers)
        return ([], try blocks.resumeState(of: vcpu, on: host))
      }
      let svm = try SVMProcessor(vcpu, types: types)
      try svm.read(into: &registers)
      return ([], try svm.resumeState())
    case .vmx(let types):
      let merged = try VMXRegisters(VMXStructures(vcpu, types: types), on: host)
      var structure: DecodedVMCS?
      let findings: [Finding]
      if let (reading, told) = structures.reading(of: vcpu) {
        if case .current(let vmcs, _, _) = reading { structure = vmcs }
        findings = told
      } else {
        findings = [Self.noStructure(vcpu, index, host, types)]
      }
      try merged.read(structure, into: &registers)
      return (findings, try merged.resumeState())
    case .unknown:
      throw .noSymbol("kvm_x86_ops", module: "kvm")
    }
  }

  /// Why there is no control structure.
  private static func noStructure(
    _ vcpu: KernelObject, _ index: Int, _ host: KVMHost, _ types: BTF
  ) -> Finding {
    do throws(KernelError) {
      _ = try VMXProcessor(vcpu, on: host, types: types)
      return .noControlBlock(index, .noMember(type: "vcpu_vmx", anyOf: ["loaded_vmcs"]))
    } catch {
      return .noControlBlock(index, host.explained(error))
    }
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

extension Finding {
  fileprivate static func noControlBlock(_ index: Int, _ error: KernelError) -> Finding {
    Finding(
      .warning, "vcpu.no-control-block",
      "vCPU \(index): registers kept in the processor's control block are not known:"
        + " \(error.problem)" + (error.advice.map { "; \($0)" } ?? ""))
  }

  /// - Parameter failure: why the registers of the owner of the vCPU are not all known.
  fileprivate static func nested(_ index: Int, _ failure: KernelError?) -> Finding {
    Finding(
      failure == nil ? .note : .warning, "vcpu.nested",
      "vCPU \(index) was running a guest of its own: its registers are those that it resumes with"
        + " when that nested guest exits; the nested guest's are told besides"
        + (failure.map { "; not all are known: \($0.problem)" } ?? ""))
  }
}

extension RegisterFile {
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
