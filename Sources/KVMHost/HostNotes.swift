import ControlBlocks
import Guest
import LinuxKernel
import Memory
import X86

extension KVMHost {
  /// The notes by which the core of a VMM's process tells what KVM knew of its guest
  /// (docs/VMCSINFO.md, section 8); none if no VM is that guest's.
  ///
  /// - Parameter structures: the VMCSs of the guest's vCPUs, where the host is Intel's.
  package func notes(
    of guest: Guest, _ structures: [ControlStructure]
  ) throws(KVMError) -> [(name: String, type: UInt32, description: [UInt8])] {
    guard let machine = try machines().machines.first(where: { $0.identity == guest.identity })
    else { return [] }
    return machine.notes(of: guest, structures)
  }
}

extension VirtualMachine {
  fileprivate func notes(
    of guest: Guest, _ structures: [ControlStructure]
  ) -> [(name: String, type: UInt32, description: [UInt8])] {
    let info = KVMInfo(
      backend: guest.identity.backend, isEncrypted: protection.hidesMemory,
      slots: slots.map(\.noted), processors: guest.processors, findings: guest.findings)
    var notes = [(KVMInfo.noteName, Array(info.text.utf8))]
    if let layout = structures.lazy.compactMap(\.layout).first {
      notes.append((VMCSLayout.noteName, Array(layout.text.utf8)))
    }
    // A vCPU in guest mode has its registers in the processor.
    let exited = Set(guest.processors.filter { $0.state == .exited }.map(\.index))
    let blocks = structures.compactMap(\.note) + processors.controlBlocks
    notes += blocks.map { block in
      var block = block
      block.isCurrent = block.isCurrent && exited.contains(block.processor)
      return (block.kind.rawValue, block.description)
    }
    return notes.map { ($0, ControlBlockNote.type, $1) }
  }
}

extension ControlStructure {
  fileprivate var note: ControlBlockNote? {
    guard let owner else { return nil }
    return ControlBlockNote(
      kind: .vmcs, processor: owner.processor, isCurrent: layout != nil,
      runsNestedGuest: runsNestedGuest, address: address, block: region)
  }
}

extension VirtualProcessors {
  /// AMD's control blocks of all vCPUs.
  fileprivate var controlBlocks: [ControlBlockNote] {
    guard case .svm(let types) = host.vendor else { return [] }
    return objects.enumerated().flatMap { index, object in
      if let (address, block) = host.controlBlocks?.block(of: object) {
        return [
          ControlBlockNote(
            kind: .vmcb, processor: index, isCurrent: true, runsNestedGuest: false,
            address: address, block: block.bytes)
        ]
      }
      return (try? SVMProcessor(object, types: types))?.notes(of: index) ?? []
    }
  }
}
