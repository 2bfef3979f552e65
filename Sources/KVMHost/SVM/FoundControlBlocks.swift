import ControlBlocks
import Guest
import LinuxKernel
import Memory
import X86

/// AMD's control blocks where no types tell where a vCPU has them: kernels before 5.11 have no types
/// of their modules in memory.
///
/// kvm_amd's `struct vcpu_svm` begins with `struct kvm_vcpu`, and has somewhere behind it the address
/// of the control block with its physical address directly behind that: `vmcb` and `vmcb_pa`, since
/// 5.12 `vmcb01` (4995a3685f1b). A place is believed only if in every vCPU of the host it leads to
/// what the processor would run.
struct FoundControlBlocks: Sendable {
  /// Bytes from the start of a `struct kvm_vcpu`.
  let offset: UInt64

  /// `struct vcpu_svm` is not longer behind its `struct kvm_vcpu`.
  private static let searched: UInt64 = 16 << 10

  init?(of vcpus: [KernelObject]) {
    guard let first = vcpus.first, let size = first.type.size else { return nil }
    let start = (size + 7) & ~7
    let offset = stride(from: start, to: start &+ Self.searched, by: 8).first { offset in
      vcpus.allSatisfy { Self.block(of: $0, at: offset)?.block.canRun == true }
    }
    guard let offset else { return nil }
    self.offset = offset
  }

  func block(of vcpu: KernelObject) -> (address: PhysicalAddress, block: VMCB)? {
    Self.block(of: vcpu, at: offset).map { ($0.address, $0.block) }
  }

  private static func block(
    of vcpu: KernelObject, at offset: UInt64
  ) -> (address: PhysicalAddress, block: VMCB)? {
    let memory = vcpu.memory
    guard let pair = try? memory.read(vcpu.address + offset, count: 16),
      let pointer: UInt64 = pair.load(at: 0), let told: UInt64 = pair.load(at: 8),
      pointer != 0, pointer & (pageSize - 1) == 0
    else { return nil }
    let address = PhysicalAddress(told & ~memory.tables.encryptionMask)
    guard (try? memory.translate(VirtualAddress(pointer))) == address,
      let page = try? memory.physical.page(address.frame), let block = VMCB(page)
    else { return nil }
    return (address, block)
  }

  /// What the guest resumes with, if the vCPU runs a guest of its own. Until 5.11 one control block
  /// serves both, and where the guest's own registers are kept meanwhile only types tell.
  func resumeState(of vcpu: KernelObject, on host: KVMHost) throws(KernelError) -> UntoldState? {
    guard try vcpu["arch.hflags"].unsigned() & SVMProcessor.guestMode != 0 else { return nil }
    return UntoldState(reason: host.explained(.noType("vcpu_svm")))
  }

  /// Adds what the control block has, as ``SVMProcessor`` does.
  func read(_ vcpu: KernelObject, into file: inout RegisterFile) throws(KernelError) {
    guard let block = block(of: vcpu)?.block else {
      throw .unexpectedKind(type: vcpu.path, needed: "a vCPU with a control block")
    }
    let found = block.registers()
    for register in [
      Register.rflags, .cr3, .kernelGSBase, .star, .lstar, .cstar, .sfmask, .sysenterCS,
      .sysenterESP, .sysenterEIP,
    ] where found[register].value != nil {
      file[register] = found[register]
    }
    for register in SegmentRegister.allCases { file[register] = found[register] }
    for register in TableRegister.allCases { file[register] = found[register] }
    if !block.interceptsWritesOfCR0, let kept = file[.cr0].value, let live = found[.cr0].value {
      file[.cr0] = SVMProcessor.merged(kept: kept, live: live)
    }
  }

  func protection(of vcpus: [KernelObject]) -> Protection {
    let blocks = vcpus.compactMap { block(of: $0)?.block }
    if blocks.contains(where: \.encryptsRegisters) { return .sevES }
    return blocks.contains(where: \.encryptsMemory) ? .sev : .none
  }

  /// What lies where, as it is told to the user.
  var places: [String] { ["the control block's address +\(offset)"] }
}

/// What a guest resumes with, where nothing tells where KVM keeps it.
struct UntoldState: ResumeState {
  let reason: KernelError

  static let passing = VMCBResumeState.passing
  static let passingSegments = VMCBResumeState.passingSegments
  static let owned = VMCBResumeState.owned

  func read(into file: inout RegisterFile, after nested: RegisterFile) throws(KernelError) {
    throw reason
  }
}
