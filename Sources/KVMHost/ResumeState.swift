import LinuxKernel
import X86

/// Where a guest goes on when the guest that it runs itself exits. While a vCPU runs such a nested
/// guest, its registers are that guest's; those of the guest that owns the vCPU are what the exit
/// loads, and what the nested guest leaves in the registers that no exit changes.
protocol ResumeState {
  /// Registers that the exit leaves as they are.
  static var passing: Set<Register> { get }
  static var passingSegments: Set<SegmentRegister> { get }

  /// Registers that belong to the owner at all times; what the nested guest sees is the owner's to
  /// know.
  static var owned: Set<Register> { get }

  /// Adds the registers that the exit loads. `nested` has what the nested guest leaves.
  func read(into file: inout RegisterFile, after nested: RegisterFile) throws(KernelError)
}

extension ResumeState {
  /// The registers that the owner of the vCPU resumes with, and why some could not be read.
  func registers(after nested: RegisterFile) -> (registers: RegisterFile, failure: KernelError?) {
    var file = RegisterFile()
    for register in Self.passing { file[register] = nested[register].passedOn }
    for register in Self.passingSegments { file[register] = nested[register].passedOn }
    for register in Self.owned { file[register] = nested[register] }
    do throws(KernelError) {
      try read(into: &file, after: nested)
      return (file, nil)
    } catch {
      let kept = Self.passing.union(Self.owned)
      for register in Register.allCases where !kept.contains(register) {
        file[register] = .unknown(reason: error.problem)
      }
      for register in SegmentRegister.allCases where !Self.passingSegments.contains(register) {
        file[register] = .unknown(reason: error.problem)
      }
      for register in TableRegister.allCases { file[register] = .unknown(reason: error.problem) }
      return (file, error)
    }
  }

  /// The nested guest's registers.
  func nestedRegisters(_ current: RegisterFile) -> RegisterFile {
    var file = current
    for register in Self.owned {
      file[register] = .unknown(reason: "the guest's own hypervisor keeps it")
    }
    return file
  }
}

extension Reading {
  /// As the owner of the vCPU finds it.
  var passedOn: Reading {
    guard case .known(let value, let source) = self else { return self }
    return .known(
      value, RegisterSource(source.kind, source.location + ", as the nested guest left it"))
  }
}
