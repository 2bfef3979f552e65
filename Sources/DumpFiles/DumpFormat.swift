/// The container that a dump comes in.
public enum DumpFormat: Hashable, Sendable {
  /// An ELF core file whose program headers name physical addresses: /proc/vmcore, makedumpfile
  /// -E, QEMU's dump-guest-memory, virsh dump --memory-only.
  case elf
  /// An ELF core file of a process: the kernel's core dumps, gdb's and crash's gcore.
  case processCore
  /// /proc/kcore: the memory of a running machine, as an ELF core file.
  case kcore
  /// makedumpfile's format: compressed pages behind a table of descriptors.
  case kdump(version: Int)
  /// The format of the diskdump facility, which makedumpfile's grew out of (Linux 2.6.9, RHEL 4).
  case diskdump(version: Int)
}

extension DumpFormat: CustomStringConvertible {
  public var description: String {
    switch self {
    case .elf: "ELF vmcore"
    case .processCore: "ELF core of a process"
    case .kcore: "memory of a running host (/proc/kcore)"
    case .kdump(let version): "kdump-compressed, header version \(version)"
    case .diskdump(let version): "diskdump, header version \(version)"
    }
  }
}
