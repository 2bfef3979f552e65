import ControlBlocks
import Guest
import LinuxKernel
import Memory
import X86

/// One `struct kvm`.
struct VirtualMachine: Sendable {
  let object: KernelObject
  let identity: GuestIdentity
  let memory: MemoryMap
  let processors: VirtualProcessors
  let protection: Protection
  let slots: [MemorySlot]
  private let hasCommandLine: Bool

  init(_ object: KernelObject, on host: KVMHost, filter: FilteredPages) throws(KernelError) {
    self.object = object
    let mm = try object["mm"].required()
    let tables = try host.kernel.pageTables(of: mm)
    let process = try host.kernel.identity(of: mm) { address throws(MemoryError) in
      try filter.page(at: address, of: tables)
    }
    let commandLine = VMMCommandLine(process.arguments)
    hasCommandLine = !process.arguments.isEmpty
    identity = GuestIdentity(
      name: commandLine.name, uuid: commandLine.uuid,
      pid: try object["userspace_pid"].signed(), command: process.command,
      backend: host.vendor.backend)
    let vcpus = try VirtualProcessors.objects(of: object, host)
    protection = try Protection(of: object, vcpus, on: host)
    slots = try MemorySlot.active(of: object)
    memory = MemoryMap(
      regions: slots.map(\.noted.region),
      backing: KVMMemory(
        slots: slots, of: VMMMappings(mm, of: host.kernel), tables: tables, filter: filter,
        isEncrypted: protection != .none))
    processors = VirtualProcessors(vcpus, on: host, protection: protection)
  }

  func guest(_ structures: ControlStructures) throws(KernelError) -> Guest {
    let read = processors.read(structures)
    var findings = protection.findings + structures.findings(of: self) + read.findings
    if let found = processors.host.foundWithoutTypes { findings.append(found) }
    if !hasCommandLine {
      findings.append(
        Finding(
          .note, "guest.no-command-line",
          "the VMM's command line is not in the dump: the guest is named by process and pid"))
    }
    return Guest(
      identity: identity, memory: memory, processors: read.processors, findings: findings)
  }
}
