import Memory

/// The core of a process is of no use here.
public enum QEMUError: Error, Hashable, Sendable {
  /// The process is something else than a QEMU: it has no RAM blocks, nor the name of one.
  case notQEMU(program: String?)
  /// A QEMU that emulates another machine than x86-64.
  case otherTarget(program: String)
  /// A QEMU whose RAM blocks cannot be found: their list is not in the core.
  case noRAMBlocks(program: String?, isTruncated: Bool)
  /// The RAM blocks are known, and not where the guest has them.
  case noLayout
  /// The file given as QEMU's program is not the one that the process ran.
  case otherProgram(path: String, buildID: String?, wanted: String)
}

extension QEMUError: Diagnosis {
  public var name: String {
    switch self {
    case .notQEMU: "qemu.not-qemu"
    case .otherTarget: "qemu.other-target"
    case .noRAMBlocks: "qemu.no-ram"
    case .noLayout: "qemu.no-layout"
    case .otherProgram: "qemu.other-program"
    }
  }

  public var problem: String {
    switch self {
    case .notQEMU(let program):
      "the core of a process that is no QEMU" + (program.map { ": \($0)" } ?? "")
    case .otherTarget(let program):
      "the core of a QEMU for machines other than x86-64: \(program)"
    case .noRAMBlocks(let program, let isTruncated):
      "the list of RAM blocks of QEMU \(program ?? "") is not in the core"
        + (isTruncated ? ", which is truncated" : "")
    case .noLayout:
      "QEMU's view of the guest's physical memory is not in the core, nor are KVM's slots, and the"
        + " command line does not tell the machine"
    case .otherProgram(let path, let id, let wanted):
      "\(path) is not the program of the core: "
        + (id.map { "its build ID is \($0), not \(wanted)" } ?? "it has no build ID \(wanted)")
    }
  }

  public var advice: String? {
    switch self {
    case .notQEMU: "name the core of the guest's qemu-system-x86_64 or qemu-kvm, or a host's vmcore"
    case .otherTarget: nil
    case .noRAMBlocks(_, let isTruncated):
      isTruncated
        ? "systemd-coredump cuts cores at ExternalSizeMax, ulimit -c does too: raise them"
        : "the process's private memory must be in the core: bit 0 of /proc/PID/coredump_filter"
    case .noLayout: "the core was cut when it was made: make it again"
    case .otherProgram: "install the package that the process ran, or leave --qemu-binary out"
    }
  }
}
