import Guest
import Memory
import X86

/// What the core of a VMM carries of the host's view of its guest: the notes `KVMINFO`, `VMCSINFO`,
/// `VMCS` and `VMCB` (docs/VMCSINFO.md, section 8).
package struct ControlBlockNotes: Sendable {
  /// What KVM knew, if its note is there and whole.
  package let info: KVMInfo?
  package let blocks: [ControlBlockNote]
  private let layouts: [VMCSLayout]

  /// - Parameters:
  ///   - notes: those of the core.
  ///   - layouts: layouts of the VMCS from elsewhere, used if the core has none that fits.
  package init(
    _ notes: [(name: String, type: UInt32, description: [UInt8])], layouts: [VMCSLayout] = []
  ) {
    let own = notes.filter { $0.type == ControlBlockNote.type }
    info = own.first { $0.name == KVMInfo.noteName }.flatMap {
      KVMInfo(text: String(decoding: $0.description, as: UTF8.self))
    }
    blocks = own.compactMap { ControlBlockNote(name: $0.name, description: $0.description) }
    self.layouts =
      own.filter { $0.name == VMCSLayout.noteName }.compactMap {
        VMCSLayout(contents: $0.description, origin: "the core's VMCSINFO note")
      } + layouts
  }

  /// The layout that a VMCS has, as far as that can be told by its revision.
  package func layout(of block: ControlBlockNote) -> VMCSLayout? {
    let revision = VMCSLayout.revision(of: block.block)
    return layouts.first { $0.revision == nil || $0.revision == revision }
  }

  /// The VMCSs, for those who want to see them whole.
  package func structures(of guest: GuestIdentity) -> [ControlStructure] {
    blocks.filter { $0.kind == .vmcs }.map { block in
      ControlStructure(
        owner: (guest, block.processor), address: block.address,
        runsNestedGuest: block.runsNestedGuest, hostProcessor: nil, region: block.block,
        state: !block.isCurrent
          ? .stale("the core's note says so")
          : layout(of: block).map { .current($0, agreeing: 0, compared: 0) } ?? .noLayout)
    }
  }

  /// The registers that a vCPU's control blocks hold; nil if there is none that is current and can
  /// be read.
  package func registers(of processor: Int, runningNestedGuest: Bool) -> RegisterFile? {
    blocks.lazy.filter {
      $0.processor == processor && $0.isCurrent && $0.runsNestedGuest == runningNestedGuest
    }.compactMap { block in
      switch block.kind {
      case .vmcb: VMCB(block.block)?.registers()
      case .vmcs:
        layout(of: block).map { DecodedVMCS(layout: $0, region: block.block).registers() }
      }
    }.first
  }

  /// A vCPU as the host's KVM had it, with the registers out of its control block read anew, and
  /// the names of those that differ from what was read in the host: none, unless the core is
  /// damaged.
  package func checked(
    _ processor: VirtualProcessor
  ) -> (processor: VirtualProcessor, differing: [String]) {
    // The control block in use holds the registers of the nested guest, if one ran.
    let isNested = processor.nested != nil
    guard let decoded = registers(of: processor.index, runningNestedGuest: isNested) else {
      return (processor, [])
    }
    var file = processor.nested ?? processor.registers
    var differing: [String] = []
    func settle<Value>(_ name: String, _ told: inout Reading<Value>, _ read: Reading<Value>) {
      // Only what has one source: others were merged of several.
      guard case .known(let value, let source) = told, case .known(let other, source) = read,
        value != other
      else { return }
      told = read
      differing.append(name)
    }
    for register in Register.allCases {
      settle(register.rawValue, &file[register], decoded[register])
    }
    for register in SegmentRegister.allCases {
      settle(register.rawValue, &file[register], decoded[register])
    }
    for register in TableRegister.allCases {
      settle(register.rawValue, &file[register], decoded[register])
    }
    let checked = VirtualProcessor(
      index: processor.index, state: processor.state,
      registers: isNested ? processor.registers : file, nested: isNested ? file : nil)
    return (checked, differing)
  }
}
