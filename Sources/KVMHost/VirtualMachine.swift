import ControlBlocks
import Guest
import LinuxKernel
import Memory
import X86

/// One `struct kvm`.
struct VirtualMachine: Sendable {
  let object: KernelObject
  let identity: GuestIdentity
  /// The VMM has ended, or is ending: what it had is no longer its own. The VM goes on to exist as
  /// long as its file is open somewhere.
  let processHasEnded: Bool
  let memory: MemoryMap
  let processors: VirtualProcessors
  let protection: Protection
  let slots: [MemorySlot]
  private let knowsSharedPages: Bool
  private let hasCommandLine: Bool

  /// - Parameter number: which of the VMs of its process it is, from 1.
  init(
    _ object: KernelObject, number: Int, on host: KVMHost, filter: FilteredPages
  ) throws(KernelError) {
    self.object = object
    // KVM holds on to the structure (mmgrab), not to what it describes.
    let mm = try object["mm"].dereferenced()
    processHasEnded =
      try mm.map { mm throws(KernelError) in
        try mm.memberIfPresent("mm_users")?["counter"].signed() == 0
      } ?? true
    let ofProcess = try mm.map { mm throws(KernelError) in try VMMAddressSpace(mm, of: host.kernel)
    }
    var process = ProcessIdentity(command: nil, arguments: [])
    if let mm, let ofProcess {
      process = try host.kernel.identity(of: mm) { address throws(MemoryError) in
        try filter.page(at: address, of: ofProcess.tables)
      }
    }
    let commandLine = VMMCommandLine(process.arguments)
    hasCommandLine = !process.arguments.isEmpty
    identity = GuestIdentity(
      name: commandLine.name, uuid: commandLine.uuid,
      pid: try Self.process(of: object), number: number, command: process.command,
      backend: host.vendor.backend)
    let vcpus = try VirtualProcessors.objects(of: object, host)
    protection = try Protection(of: object, vcpus, on: host)
    slots = try MemorySlot.active(of: object)
    let privatePages = try slots.contains { $0.privateFile != nil } ? PrivatePages(of: object) : nil
    knowsSharedPages = privatePages != nil
    memory = MemoryMap(
      regions: slots.map(\.noted.region),
      backing: KVMMemory(
        slots: slots, of: ofProcess, wasReleased: processHasEnded, filter: filter,
        isEncrypted: protection.hidesMemory, privatePages: privatePages))
    processors = VirtualProcessors(vcpus, on: host, protection: protection)
  }

  /// The pid of the process that made a VM.
  static func process(of object: KernelObject) throws(KernelError) -> Int64 {
    try object["userspace_pid"].signed()
  }

  func guest(_ structures: ControlStructures) throws(KernelError) -> Guest {
    let read = processors.read(structures)
    var findings =
      protection.findings(knowsShared: knowsSharedPages) + structures.findings(of: self)
      + read.findings
    if let found = processors.host.foundWithoutTypes { findings.append(found) }
    if processors.objects.isEmpty {
      findings.append(
        Finding(
          .note, "guest.no-vcpus",
          "the VM has no vCPU: it was being set up or taken down, or its VMM gave it none"))
    }
    if identity.number > 1 {
      findings.append(
        Finding(
          .note, "guest.several-in-process",
          "the VMM's process (pid \(identity.pid)) has several VMs: this is number"
            + " \(identity.number), in the order in which they were made"))
    }
    if processHasEnded {
      findings.append(
        Finding(
          .warning, "guest.process-ended",
          "the VMM's process (pid \(identity.pid)) had ended, or was ending, when the host was"
            + " stopped: of the guest's memory there is what was not given back yet"))
    } else if !hasCommandLine {
      findings.append(
        Finding(
          .note, "guest.no-command-line",
          "the VMM's command line is not in the dump: the guest is named by process and pid"))
    }
    return Guest(
      identity: identity, memory: memory, processors: read.processors, findings: findings)
  }
}
