/// The registers of `struct user_regs_struct` (Linux arch/x86/include/asm/user_64.h), in its order:
/// those that a core tells of a thread.
public enum UserRegister: Int, CaseIterable, Sendable {
  case r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi
  /// The number of the system call that the thread is in; all ones if it is in none.
  case originalRAX
  case rip, cs, rflags, rsp, ss, fsBase, gsBase, ds, es, fs, gs
}

/// A value for each register of `struct user_regs_struct`.
public struct UserRegisters: Hashable, Sendable {
  /// In the structure's order.
  public private(set) var values = [UInt64](repeating: 0, count: UserRegister.allCases.count)

  public init() {}

  public subscript(register: UserRegister) -> UInt64 {
    get { values[register.rawValue] }
    set { values[register.rawValue] = newValue }
  }
}

extension UserRegisters {
  /// What a register file has of them; a register that is not known is 0.
  public init(_ registers: RegisterFile) {
    for register in UserRegister.allCases { self[register] = register.value(in: registers) ?? 0 }
  }
}

extension UserRegister {
  /// What a register file has of it.
  fileprivate func value(in registers: RegisterFile) -> UInt64? {
    switch self {
    case .originalRAX: 0
    case .cs: selector(.cs, registers)
    case .ss: selector(.ss, registers)
    case .ds: selector(.ds, registers)
    case .es: selector(.es, registers)
    case .fs: selector(.fs, registers)
    case .gs: selector(.gs, registers)
    case .fsBase: registers[.fs].value?.base
    case .gsBase: registers[.gs].value?.base
    default: register.flatMap { registers[$0].value }
    }
  }

  /// The register of that name in a register file; nil for segments and for what is not in one.
  var register: Register? { Register(rawValue: "\(self)") }

  private func selector(_ segment: SegmentRegister, _ registers: RegisterFile) -> UInt64? {
    (registers[segment].value?.selector).map(UInt64.init)
  }
}
