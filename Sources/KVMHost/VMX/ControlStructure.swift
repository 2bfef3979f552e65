import ControlBlocks
import Guest
import LinuxKernel
import Memory
import X86

/// One vCPU's VMCS, for those who want to see it whole.
public struct ControlStructure: Sendable {
  /// The guest and the vCPU that it belongs to; nil if it was found in memory and no vCPU's it is.
  public let owner: (guest: GuestIdentity, processor: Int)?
  /// Where it lies in the host.
  public let address: PhysicalAddress
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
  /// Those that memory holds and no vCPU leads to.
  private(set) var unowned: [ControlStructure] = []
  private var rejections: [VMCSReader.Rejection] = []

  fileprivate struct Entry: Sendable {
    let guest: GuestIdentity
    let index: Int
    let processor: VMXProcessor
    let sample: VMCSSample
    let reading: VMCSReader.Reading
    let wasSearched: Bool
  }

  /// One vCPU before the layout is chosen.
  private struct Candidate {
    let machine: VirtualMachine
    let index: Int
    let processor: VMXProcessor
    let sample: VMCSSample
    var wasSearched = false
  }

  /// - Parameter searches: look for structures that no vCPU leads to, even if all vCPUs have one.
  init(
    of machines: [VirtualMachine], on host: KVMHost, _ sources: VMCSLayoutSources,
    searches: Bool = false
  ) {
    guard case .vmx(let types) = host.vendor else { return }
    var found: [Candidate] = []
    var lost: [(machine: VirtualMachine, index: Int, vcpu: KernelObject)] = []
    for machine in machines {
      for (index, vcpu) in machine.processors.objects.enumerated() {
        guard let processor = try? VMXProcessor(vcpu, on: host, types: types) else {
          lost.append((machine, index, vcpu))
          continue
        }
        let memory = GuestMemory(machine.memory, in: host.source)
        found.append(
          Candidate(
            machine: machine, index: index, processor: processor,
            sample: processor.sample(in: memory)))
      }
    }
    var stray: [VMCSSearch.Hit] = []
    if searches || !lost.isEmpty {
      stray = VMCSSearch(host, threads: sources.threads)
        .hits(besides: Set(found.map(\.processor.address)))
      // Damage that is wider than this leaves nothing to go by.
      for (machine, index, vcpu) in lost.prefix(256) {
        guard let structures = try? VMXStructures(vcpu, types: types) else { continue }
        let facts = VMXProcessor(structures, on: host, at: PhysicalAddress(0), []).facts()
        let own = stray.filter {
          VMCSSample(region: $0.region, facts: facts, guest: nil).isWrittenBack
        }
        // Two that fit equally are no evidence.
        guard own.count == 1, let hit = own.first else { continue }
        stray.removeAll { $0.address == hit.address }
        let processor = VMXProcessor(structures, on: host, at: hit.address, hit.region)
        found.append(
          Candidate(
            machine: machine, index: index, processor: processor,
            sample: processor.sample(in: GuestMemory(machine.memory, in: host.source)),
            wasSearched: true))
      }
    }
    let unownedSamples = stray.map {
      VMCSSample(
        region: $0.region, facts: host.vmcsFacts.facts(onProcessor: nil), guest: nil)
    }
    let reader = VMCSReader(
      found.map { ($0.processor.revision, $0.sample) }
        + zip(stray, unownedSamples).map { ($0.revision, $1) },
      sources, host.kernel)
    for candidate in found {
      structures[candidate.processor.vcpu.address] = Entry(
        guest: candidate.machine.identity, index: candidate.index,
        processor: candidate.processor, sample: candidate.sample,
        reading: reader.reading(
          of: candidate.sample, revision: candidate.processor.revision),
        wasSearched: candidate.wasSearched)
    }
    unowned = zip(stray, unownedSamples).map { hit, sample in
      ControlStructure(
        owner: nil, address: hit.address, revision: hit.revision, runsNestedGuest: false,
        hostProcessor: nil, region: hit.region,
        state: reader.reading(of: sample, revision: hit.revision).state, facts: sample.facts)
    }
    rejections = reader.rejections
  }

  /// What must be said of the layouts of a VM's structures.
  func findings(of machine: VirtualMachine) -> [Finding] {
    var used: [(layout: VMCSLayout, agreeing: Int, compared: Int)] = []
    for entry in machine.processors.objects.compactMap({ structures[$0.address] }) {
      guard case .current(let vmcs, let agreeing, let compared) = entry.reading else { continue }
      let index = used.firstIndex { $0.layout.origin == vmcs.layout.origin } ?? used.count
      if index == used.count { used.append((vmcs.layout, 0, 0)) }
      used[index].agreeing += agreeing
      used[index].compared += compared
    }
    return rejections.map(\.finding)
      + used.map {
        Finding(
          .note, $0.layout.isInferred ? "vcpu.vmcs-inferred" : "vcpu.vmcs-layout",
          "VMCSs were read by \($0.layout.origin); \($0.agreeing) of \($0.compared) values that are known of"
            + " them agree")
      }
  }

  /// A vCPU's structure with what is to be said of it; nil if it cannot be found.
  func reading(
    of processor: KernelObject
  ) -> (reading: VMCSReader.Reading, findings: [Finding])? {
    guard let entry = structures[processor.address] else { return nil }
    var findings = entry.reading.finding(of: entry.index).map { [$0] } ?? []
    if entry.wasSearched {
      findings.append(
        Finding(
          .warning, "vcpu.vmcs-searched",
          "vCPU \(entry.index): KVM's structures do not lead to its VMCS; the one at physical"
            + " address \(entry.processor.address) is taken, as it alone holds what KVM remembers"))
    }
    return (entry.reading, findings)
  }

  /// Those of a VM's vCPUs.
  func of(_ machine: VirtualMachine) -> [ControlStructure] {
    machine.processors.objects.compactMap { structures[$0.address]?.structure }
  }
}

extension ControlStructures.Entry {
  fileprivate var structure: ControlStructure {
    ControlStructure(
      owner: (guest, index), address: processor.address, revision: processor.revision,
      runsNestedGuest: (try? processor.runsNestedGuest()) ?? false,
      hostProcessor: try? processor.loaded["cpu"].signed(), region: processor.region,
      state: reading.state, facts: sample.facts)
  }
}

extension VMCSReader.Reading {
  fileprivate var state: ControlStructure.State {
    switch self {
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
