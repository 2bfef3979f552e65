import Memory
import X86

/// A virtual machine as it was when the dump was taken: a plain value, whatever it was found in.
public struct Guest: Sendable {
  public let identity: GuestIdentity
  public let memory: MemoryMap
  public let processors: [VirtualProcessor]
  /// What is missing, stale or doubtful.
  public var findings: [Finding]

  public init(
    identity: GuestIdentity, memory: MemoryMap, processors: [VirtualProcessor], findings: [Finding]
  ) {
    self.identity = identity
    self.memory = memory
    self.processors = processors
    self.findings = findings
  }
}

/// What a guest is called, and by whom it was run.
public struct GuestIdentity: Hashable, Sendable {
  /// The name from the VMM's command line.
  public let name: String?
  public let uuid: String?
  /// The VMM's process.
  public let pid: Int64
  /// Which of the VMs of that process it is, from 1 in the order in which they were made.
  public let number: Int
  /// The VMM's `comm`.
  public let command: String?
  /// How the guest runs: `KVM (AMD SVM)`.
  public let backend: String

  public init(
    name: String?, uuid: String?, pid: Int64, number: Int = 1, command: String?, backend: String
  ) {
    self.name = name
    self.uuid = uuid
    self.pid = pid
    self.number = number
    self.command = command
    self.backend = backend
  }

  /// The name to show and to select by: the guest's own, else `<comm>-<pid>`; with a number if it
  /// is not its process's first.
  public var displayName: String {
    let first = if let name, !name.isEmpty { name } else { "\(command ?? "guest")-\(pid)" }
    return number > 1 ? "\(first)-\(number)" : first
  }
}

/// One vCPU with its registers.
public struct VirtualProcessor: Hashable, Sendable {
  public let index: Int
  /// What the vCPU was doing, in the host's terms.
  public let state: State
  /// Those of the guest that owns the vCPU. If it runs a guest of its own, they are what it resumes
  /// with when that exits.
  public let registers: RegisterFile
  /// The registers of the nested guest that the vCPU runs, if it does.
  public let nested: RegisterFile?

  public enum State: String, Hashable, Sendable {
    /// The vCPU had left guest mode: the host's copies of its registers are current.
    case exited
    /// A host processor was executing the guest when the dump was taken.
    case running
    /// The vCPU was in guest mode and nothing saved its registers: copies are from its last exit.
    case stale
  }

  public init(index: Int, state: State, registers: RegisterFile, nested: RegisterFile? = nil) {
    self.index = index
    self.state = state
    self.registers = registers
    self.nested = nested
  }
}

/// Something a user must know before acting on what was extracted.
public struct Finding: Codable, Hashable, Sendable {
  public enum Severity: String, Codable, Hashable, Sendable {
    /// Good to know; nothing is missing.
    case note
    /// Something is missing, stale or doubtful.
    case warning
  }

  public let severity: Severity
  /// A stable name, for scripts: `memory.filtered`.
  public let name: String
  public let text: String

  public init(_ severity: Severity, _ name: String, _ text: String) {
    self.severity = severity
    self.name = name
    self.text = text
  }
}
