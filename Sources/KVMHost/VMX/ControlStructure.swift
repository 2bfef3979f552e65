import Guest
import LinuxKernel
import Memory
import X86

/// One vCPU's VMCS, for those who want to see it whole.
public struct ControlStructure: Sendable {
  public let guest: GuestIdentity
  public let processor: Int
  /// Where it lies in the host.
  public let address: PhysicalAddress?
  /// The revision identifier in its head.
  public let revision: UInt32
  /// True if it is that of a guest's guest: vmcs02.
  public let runsNestedGuest: Bool
  /// The host's processor that it was loaded on last.
  public let hostProcessor: Int64?
  public let region: [UInt8]
  public let state: State
  let facts: [VMCSFact]

  public enum State: Sendable {
    /// It is current: `agreeing` of the `compared` values that are known of it are in it.
    case current(VMCSLayout, agreeing: Int, compared: Int)
    /// It is not, for the reason given.
    case stale(String)
    /// No layout is known that it has.
    case noLayout
  }

  /// A field with what is known about it.
  public struct Field: Sendable {
    /// As VMREAD takes it.
    public let encoding: UInt32
    /// Linux's name, where it has one.
    public let name: String
    public let area: Area
    /// Bytes of the value.
    public let size: Int
    /// Nil if the places where it may lie hold different values.
    public let value: UInt64?
    /// Where the layout has it: offsets in bytes, more than one if it is one of them.
    public let offsets: [Int]
    /// Why the layout has it there, if it was inferred.
    public let evidence: String?
    /// What KVM or the host's kernel knows of the value, and whether that agrees.
    public let known: (origin: String, agrees: Bool)?
  }

  /// The groups that the SDM has fields in (vol. 3C 24.3).
  public enum Area: String, Sendable, CaseIterable {
    case guest = "guest-state area"
    case host = "host-state area"
    case control = "control fields"
    case readOnly = "VM-exit information fields"
  }

  /// The fields that the layout has, in the order of the SDM's areas.
  public var fields: [Field] {
    guard case .current(let layout, _, _) = state else { return [] }
    return layout.fields.map { field in
      let value = layout.value(of: field, in: region)
      let fact = facts.last { $0.field == field }
      return Field(
        encoding: field.encoding, name: field.label, area: field.area,
        size: field.size, value: value, offsets: layout.offsets(of: field),
        evidence: layout.evidence[field],
        known: value.flatMap { value in
          fact.map { ($0.origin, $0.agrees(with: value)) }
        })
    }
  }
}

/// All VMCSs of a host, read.
struct ControlStructures: Sendable {
  private var structures: [VirtualAddress: Entry] = [:]
  /// What must be said of layouts to the user of any guest.
  private(set) var findings: [Finding] = []

  fileprivate struct Entry: Sendable {
    let guest: GuestIdentity
    let index: Int
    let processor: VMXProcessor
    let sample: VMCSSample
    let reading: VMCSReader.Reading
  }

  init(of machines: [VirtualMachine], on host: KVMHost, _ sources: VMCSLayoutSources) {
    guard case .vmx(let types) = host.vendor else { return }
    var found: [(VirtualMachine, Int, VMXProcessor, VMCSSample)] = []
    for machine in machines {
      let memory = GuestMemory(machine.memory, in: host.source)
      for (index, vcpu) in machine.processors.objects.enumerated() {
        guard let processor = try? VMXProcessor(vcpu, on: host, types: types) else { continue }
        found.append((machine, index, processor, processor.sample(in: memory)))
      }
    }
    let reader = VMCSReader(found.map { ($0.2.revision, $0.3) }, sources)
    for (machine, index, processor, sample) in found {
      structures[processor.vcpu.address] = Entry(
        guest: machine.identity, index: index, processor: processor, sample: sample,
        reading: reader.reading(of: sample, revision: processor.revision))
    }
    findings = reader.rejections.map {
      Finding(
        .note, "vcpu.vmcs-layout-rejected",
        "\($0.layout.origin) is for this processor's revision and is not used: only \($0.agreeing)"
          + " of \($0.compared) values that are known of the VMCSs are where it says")
    }
  }

  /// A vCPU's structure with how it could be read; nil if it cannot be found.
  func reading(
    of vcpu: KernelObject
  ) -> (processor: VMXProcessor, reading: VMCSReader.Reading)? {
    structures[vcpu.address].map { ($0.processor, $0.reading) }
  }

  /// Those of a VM's vCPUs.
  func of(_ machine: VirtualMachine) -> [ControlStructure] {
    machine.processors.objects.compactMap { structures[$0.address]?.structure }
  }
}

extension ControlStructures.Entry {
  fileprivate var structure: ControlStructure {
    ControlStructure(
      guest: guest, processor: index,
      address: try? processor.vcpu.memory.translate(processor.address),
      revision: processor.revision,
      runsNestedGuest: (try? processor.runsNestedGuest()) ?? false,
      hostProcessor: try? processor.loaded["cpu"].signed(), region: processor.region,
      state: state, facts: sample.facts)
  }

  private var state: ControlStructure.State {
    switch reading {
    case .current(let vmcs, let agreeing, let compared):
      .current(vmcs.layout, agreeing: agreeing, compared: compared)
    case .stale(let reason): .stale(reason)
    case .noLayout: .noLayout
    }
  }
}

extension VMCSField {
  /// Bits 11:10 of the encoding (SDM vol. 3C 24.11.2).
  fileprivate var area: ControlStructure.Area {
    switch group & 3 {
    case 0: .control
    case 1: .readOnly
    case 2: .guest
    default: .host
    }
  }
}
