import Memory

/// The registers of a logical processor that a dump carries or that a reader of one may ask for.
public enum Register: String, CaseIterable, Hashable, Sendable {
  case rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp
  case r8, r9, r10, r11, r12, r13, r14, r15
  case rip, rflags
  case cr0, cr2, cr3, cr4, cr8
  case efer
  case dr0, dr1, dr2, dr3, dr6, dr7
  case kernelGSBase = "kernel_gs_base"
  case star, lstar, cstar, sfmask
  case sysenterCS = "sysenter_cs"
  case sysenterESP = "sysenter_esp"
  case sysenterEIP = "sysenter_eip"
  case pat, xcr0
  case apicBase = "apic_base"

  /// RAX to RDX, RSI, RDI, RSP, RBP and R8 to R15.
  public static let general: [Register] = [
    .rax, .rbx, .rcx, .rdx, .rsi, .rdi, .rsp, .rbp,
    .r8, .r9, .r10, .r11, .r12, .r13, .r14, .r15,
  ]
}

/// The segment registers, LDTR and TR among them, in the order of QEMU's notes.
public enum SegmentRegister: String, CaseIterable, Hashable, Sendable {
  case cs, ds, es, fs, gs, ss, ldtr, tr
}

/// The descriptor-table registers.
public enum TableRegister: String, CaseIterable, Hashable, Sendable {
  case gdtr, idtr
}

/// Where the value of a register was read.
public struct RegisterSource: Hashable, Sendable {
  public enum Kind: String, Hashable, Sendable, CaseIterable {
    /// The save area of AMD's virtual machine control block.
    case vmcb
    /// Intel's virtual machine control structure.
    case vmcs
    /// A copy that KVM keeps in `struct kvm_vcpu`.
    case kvm
    /// The registers of the host's processor, as the host dump's own notes have them, taken while
    /// that processor was in the guest.
    case hostProcessor = "host-processor"
    /// QEMU's own copy, `struct CPUX86State`, where it is current.
    case qemu
    /// What the guest's kernel saved of its CPU when it crashed.
    case guestKernel = "guest-kernel"
    /// The memory of the guest's kernel: not what the vCPU had, but what leads to the kernel.
    case derived
  }

  public let kind: Kind
  /// The member or note, as a reader would look it up: `arch.regs[16]`, `save.cr3`.
  public let location: String

  public init(_ kind: Kind, _ location: String) {
    self.kind = kind
    self.location = location
  }
}

/// A register's value with its source, or the reason why there is none.
public enum Reading<Value: Hashable & Sendable>: Hashable, Sendable {
  case known(Value, RegisterSource)
  case unknown(reason: String)

  public var value: Value? {
    if case .known(let value, _) = self { value } else { nil }
  }
}

/// The registers of one logical processor. A register that was never set reads as unknown.
public struct RegisterFile: Hashable, Sendable {
  private var registers: [Register: Reading<UInt64>] = [:]
  private var segments: [SegmentRegister: Reading<Segment>] = [:]
  private var tables: [TableRegister: Reading<DescriptorTable>] = [:]

  public init() {}

  /// Nothing known, and why.
  public static func unknown(because reason: String) -> RegisterFile {
    var file = RegisterFile()
    for register in Register.allCases { file[register] = .unknown(reason: reason) }
    for register in SegmentRegister.allCases { file[register] = .unknown(reason: reason) }
    for register in TableRegister.allCases { file[register] = .unknown(reason: reason) }
    return file
  }

  private static var notRead: String { "not kept by this source" }

  public subscript(register: Register) -> Reading<UInt64> {
    get { registers[register] ?? .unknown(reason: Self.notRead) }
    set { registers[register] = newValue }
  }

  public subscript(segment: SegmentRegister) -> Reading<Segment> {
    get { segments[segment] ?? .unknown(reason: Self.notRead) }
    set { segments[segment] = newValue }
  }

  public subscript(table: TableRegister) -> Reading<DescriptorTable> {
    get { tables[table] ?? .unknown(reason: Self.notRead) }
    set { tables[table] = newValue }
  }

  /// True if the registers that say where the processor was are all known.
  public var isComplete: Bool {
    Register.general.allSatisfy { self[$0].value != nil }
      && [Register.rip, .rflags, .cr0, .cr3, .cr4].allSatisfy { self[$0].value != nil }
      && SegmentRegister.allCases.allSatisfy { self[$0].value != nil }
      && TableRegister.allCases.allSatisfy { self[$0].value != nil }
  }

  /// Registers without a value, by name.
  public var unknown: [String] {
    Register.allCases.filter { self[$0].value == nil }.map(\.rawValue)
      + SegmentRegister.allCases.filter { self[$0].value == nil }.map(\.rawValue)
      + TableRegister.allCases.filter { self[$0].value == nil }.map(\.rawValue)
  }

  /// The page tables in use, or nil while paging is off, not in long mode, or not known.
  public func pageTables(encryptionMask: UInt64 = 0) -> PageTables? {
    guard let cr0 = self[.cr0].value, let cr3 = self[.cr3].value, let cr4 = self[.cr4].value,
      let efer = self[.efer].value, cr0 & ControlBits.paging != 0,
      efer & ControlBits.longModeActive != 0
    else { return nil }
    return PageTables(
      root: PhysicalAddress(cr3), levels: cr4 & ControlBits.fiveLevelPaging != 0 ? 5 : 4,
      encryptionMask: encryptionMask)
  }
}

/// Bits of control registers and EFER.
public enum ControlBits {
  /// CR0.MP and CR0.TS: those that a guest may change without an exit (APM vol. 2, 15.9).
  public static let monitorAndTaskSwitched: UInt64 = 1 << 1 | 1 << 3
  /// CR0.PE.
  public static let protection: UInt64 = 1
  /// CR0.PG.
  public static let paging: UInt64 = 1 << 31
  /// CR4.LA57.
  public static let fiveLevelPaging: UInt64 = 1 << 12
  /// EFER.LME.
  public static let longModeEnabled: UInt64 = 1 << 8
  /// EFER.LMA.
  public static let longModeActive: UInt64 = 1 << 10
}
