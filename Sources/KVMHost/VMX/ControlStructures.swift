import ControlBlocks
import Guest
import LinuxKernel
import Memory
import X86

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
    for machine in machines where !machine.protection.hidesRegisters {
      for (index, vcpu) in machine.processors.objects.enumerated() {
        guard let processor = try? VMXProcessor(vcpu, on: host, types: types) else {
          lost.append((machine, index, vcpu))
          continue
        }
        let memory = GuestMemory(machine.memory, in: host.memory)
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
            sample: processor.sample(in: GuestMemory(machine.memory, in: host.memory)),
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
      let reading = reader.reading(of: sample, revision: hit.revision)
      return ControlStructure(
        owner: nil, address: hit.address, runsNestedGuest: false, hostProcessor: nil,
        region: hit.region, state: reading.state, known: reading.known(by: sample.facts))
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
    let isOfKVM = used.contains { $0.layout.revision == VMCSLayoutDatabase.vmcs12?.revision }
    return rejections.map(\.finding) + (isOfKVM ? [.keptByKVM] : [])
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

extension Finding {
  /// KVM writes the copy that it works on (`cached_vmcs12`) to the guest's memory at VMCLEAR, or when
  /// the guest loads another (`nested_release_vmcs12` of arch/x86/kvm/vmx/nested.c).
  fileprivate static let keptByKVM = Finding(
    .note, "vcpu.vmcs-kept-by-kvm",
    "the host is itself a guest of KVM, which writes a VMCS to the host's memory only when the host"
      + " clears it, as it does when it crashes, or loads another: what was read of VMCSs may be older"
      + " than the last exit")
}

extension ControlStructures.Entry {
  fileprivate var structure: ControlStructure {
    ControlStructure(
      owner: (guest, index), address: processor.address,
      runsNestedGuest: processor.structures.runsNestedGuest,
      hostProcessor: processor.structures.hostProcessor, region: processor.region,
      state: reading.state, known: reading.known(by: sample.facts))
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

  /// What facts say of the fields that the structure holds.
  fileprivate func known(
    by facts: [VMCSFact]
  ) -> [VMCSField: (origin: String, agrees: Bool)] {
    guard case .current(let vmcs, _, _) = self else { return [:] }
    return facts.reduce(into: [:]) { known, fact in
      guard let value = vmcs.value(fact.field) else { return }
      known[fact.field] = (fact.origin, fact.agrees(with: value))
    }
  }
}
