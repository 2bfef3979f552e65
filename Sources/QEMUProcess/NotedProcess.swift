import ControlBlocks
import DumpFiles
import Guest
import Memory
import X86

/// A VMM, QEMU or another, in a process core that carries what the host's KVM knew of the guest: its
/// memory slots and the registers of its vCPUs. Of the VMM's own structures none is needed.
package struct NotedProcess: Sendable {
  private let image: ProcessImage
  private let notes: ControlBlockNotes
  private let info: KVMInfo
  /// The program that the process ran.
  package let executable: Executable?

  /// Nil if the core has no such note.
  package init?(_ core: ProcessCore, in source: any FrameSource, notes: ControlBlockNotes) {
    guard let info = notes.info, !info.slots.isEmpty else { return nil }
    image = ProcessImage(core, in: source)
    self.notes = notes
    self.info = info
    executable = Executable(startedIn: image)
  }

  package func guest() -> Guest {
    let commandLine = CommandLine(of: image)
    let (processors, findings) = processors()
    return Guest(
      identity: commandLine.identity(of: image.core, backend: info.backend),
      memory: MemoryMap(
        info.slots.map {
          GuestMapping(region: $0.region, host: $0.userspaceAddress, isPrivate: false)
        }, of: image.core, in: image.source, isEncrypted: info.isEncrypted),
      processors: processors,
      findings: info.findings + findings + commandLine.findings)
  }

  private func processors() -> ([VirtualProcessor], [Finding]) {
    var findings: [Finding] = []
    let processors = info.processors.map { processor in
      let (checked, differing) = notes.checked(processor)
      if !differing.isEmpty {
        findings.append(.notesDiffer(processor.index, differing))
      }
      return checked
    }
    return (processors, findings)
  }
}

extension Finding {
  fileprivate static func notesDiffer(_ index: Int, _ registers: [String]) -> Finding {
    Finding(
      .warning, "vcpu.notes-differ",
      "vCPU \(index): the core's notes disagree on \(registers.joined(separator: ", ")): what its"
        + " control block holds is taken")
  }
}

extension QEMUProcess {
  /// Puts registers that the core's control blocks hold in place of QEMU's old copies, with what is
  /// to be said of it. A copy that is not old is newer than the block: KVM emulates instructions
  /// behind it, and QEMU may have set registers since.
  func withControlBlocks(
    _ processors: [VirtualProcessor]
  ) -> (processors: [VirtualProcessor], findings: [Finding]) {
    var findings: [Finding] = []
    let withoutLayout = notes.blocks.filter {
      $0.kind == .vmcs && $0.isCurrent && notes.layout(of: $0) == nil
    }
    if let block = withoutLayout.first {
      let revision = VMCSLayout.revision(of: block.block)
      findings.append(
        Finding(
          .warning, "vcpu.vmcs-unreadable",
          "vCPU \(block.processor): the core has its VMCS (revision"
            + " \(hexadecimal(UInt64(revision)))) and not the layout of it; give it with --vmcsinfo"
        ))
    }
    var replaced: [Int] = []
    let result = processors.map { processor in
      guard processor.state == .stale else { return processor }
      let own = notes.registers(of: processor.index, runningNestedGuest: false)
      let nested = notes.registers(of: processor.index, runningNestedGuest: true)
      guard own != nil || nested != nil else { return processor }
      replaced.append(processor.index)
      return VirtualProcessor(
        index: processor.index, state: .exited,
        registers: own.map { processor.registers.overridden(by: $0) } ?? processor.registers,
        nested: nested)
    }
    if !replaced.isEmpty {
      let names = replaced.map(String.init).joined(separator: ", ")
      findings.append(
        Finding(
          .note, "vcpu.control-block-notes",
          "vCPUs \(names): KVM had the registers when the core was taken; those that the control block"
            + " in the core's notes holds are taken from there"))
    }
    return (result, findings)
  }
}

extension RegisterFile {
  /// With what `newer` knows in place of what is here.
  fileprivate func overridden(by newer: RegisterFile) -> RegisterFile {
    var file = self
    for register in Register.allCases where newer[register].value != nil {
      file[register] = newer[register]
    }
    for register in SegmentRegister.allCases where newer[register].value != nil {
      file[register] = newer[register]
    }
    for register in TableRegister.allCases where newer[register].value != nil {
      file[register] = newer[register]
    }
    return file
  }
}
