import ControlBlocks
import Guest
import LinuxKernel
import Memory

/// Reads the VMCSs of a host: decides over all of them which layout they have, as that is a matter
/// of the processor, and of each whether it is current.
///
/// A structure may be in the processor instead of in memory until VMCLEAR. A crashing host's kernel
/// does that on every processor that answers (since 3.8, f23d1f4a1160); a host dumped otherwise has
/// whatever was written back. So what KVM remembers of each structure is compared with it: a layout
/// that does not lead to these values is not used, nor is a structure that does not hold them.
struct VMCSReader: Sendable {
  /// What can be read of one VMCS.
  enum Reading: Sendable {
    /// It is current, and `agreeing` of the `compared` values that are known of it are in it.
    case current(DecodedVMCS, agreeing: Int, compared: Int)
    /// It is not, for the reason given.
    case stale(String)
    /// No layout is known that it has.
    case noLayout(revision: UInt32)
  }

  /// A layout that was at hand and is not that of this host's processors.
  struct Rejection: Sendable {
    let layout: VMCSLayout
    /// False of those that this program knows, of which several share a revision.
    let wasTold: Bool
    let reason: Reason

    enum Reason: Sendable {
      /// It is for another revision than the VMCSs'.
      case revision(UInt32, insteadOf: UInt32)
      /// Too few of the values known of the VMCSs are where it says.
      case values(agreeing: Int, compared: Int)
    }

    var finding: Finding {
      let text =
        switch reason {
        case .revision(let own, let other):
          "is for VMCSs of revision \(hexadecimal(UInt64(own))), and the host's have"
            + " \(hexadecimal(UInt64(other)))"
        case .values(let agreeing, let compared):
          "leads to \(agreeing) of \(compared) values that are known of the VMCSs"
        }
      return Finding(
        wasTold ? .warning : .note, "vcpu.vmcs-layout-rejected",
        "\(layout.origin) \(text): it is not used")
    }
  }

  private(set) var rejections: [Rejection] = []
  private var layouts: [UInt32: VMCSLayout] = [:]

  init() {}

  init(
    _ structures: [(revision: UInt32, sample: VMCSSample)], _ sources: VMCSLayoutSources,
    _ kernel: LinuxKernel
  ) {
    let ofModule = structures.isEmpty ? nil : VMCSLayout(ofModuleIn: kernel)

    for (revision, group) in Dictionary(grouping: structures, by: \.revision).sorted(by: {
      $0.key < $1.key
    }) {
      let current = group.map(\.sample).filter(\.isWrittenBack)
      guard !current.isEmpty else { continue }
      layouts[revision] = choose(for: revision, current, sources, ofModule)
    }
  }

  func reading(of sample: VMCSSample, revision: UInt32) -> Reading {
    guard sample.isWrittenBack else {
      let (held, count) = sample.presence
      let isEmpty = sample.region.dropFirst(VMCSSolver.firstOffset).allSatisfy { $0 == 0 }
      return .stale(
        isEmpty
          ? "nothing but its head is in memory: the processor never wrote it back"
          : "of \(count) values that KVM wrote to it, memory holds \(held):"
            + " the processor has not written it back")
    }
    guard let layout = layouts[revision] else { return .noLayout(revision: revision) }
    let lasting = Self.compare(layout, [sample]) { !$0.isOfLastExit }
    guard lasting.agreeing >= 4, lasting.agreeing * 10 >= lasting.compared * 8 else {
      return .stale(
        "by \(layout.origin) \(lasting.agreeing) of \(lasting.compared) values that KVM wrote to"
          + " it agree, while other structures do")
    }
    let exit = Self.compare(layout, [sample], where: \.isOfLastExit)
    guard exit.compared < 2 || exit.agreeing * 2 >= exit.compared else {
      return .stale(
        "it is older than the last exit: of \(exit.compared) values that KVM read from it then,"
          + " \(exit.agreeing) agree")
    }
    return .current(
      DecodedVMCS(layout: layout, region: sample.region),
      agreeing: lasting.agreeing + exit.agreeing, compared: lasting.compared + exit.compared)
  }

  // MARK: Choosing the layout

  private mutating func choose(
    for revision: UInt32, _ samples: [VMCSSample], _ sources: VMCSLayoutSources,
    _ ofModule: VMCSLayout?
  ) -> VMCSLayout? {
    func ofThisProcessor(_ layouts: [VMCSLayout]) -> [VMCSLayout] {
      layouts.filter { $0.revision == nil || $0.revision == revision }
    }
    if !sources.infersAlways {
      let told = sources.inDump + (ofModule.map { [$0] } ?? []) + sources.ofUser
      for layout in told {
        guard let other = layout.revision, other != revision else { continue }
        rejections.append(
          Rejection(
            layout: layout, wasTold: true, reason: .revision(other, insteadOf: revision)))
      }
      let layout =
        firstFitting(ofThisProcessor(told), wereTold: true, samples)
        ?? firstFitting(VMCSLayoutDatabase.layouts(for: revision), wereTold: false, samples)
        ?? firstFitting(ofThisProcessor(sources.search()), wereTold: true, samples)
      if let layout { return layout }
    }
    return VMCSLayout(inferredFrom: samples, revision: revision)
  }

  private mutating func firstFitting(
    _ layouts: [VMCSLayout], wereTold: Bool, _ samples: [VMCSSample]
  ) -> VMCSLayout? {
    for layout in layouts {
      let (agreeing, compared) = Self.compare(layout, samples) { !$0.isOfLastExit }
      if agreeing >= 4, agreeing * 10 >= compared * 8 {
        return layout.withAccessRights(fitting: samples.map(\.region))
      }
      rejections.append(
        Rejection(
          layout: layout, wasTold: wereTold,
          reason: .values(agreeing: agreeing, compared: compared)))
    }
    return nil
  }

  private static func compare(
    _ layout: VMCSLayout, _ samples: [VMCSSample], where isWanted: (VMCSFact) -> Bool
  ) -> (agreeing: Int, compared: Int) {
    var agreeing = 0
    var compared = 0
    for sample in samples {
      for fact in sample.facts where isWanted(fact) {
        guard let value = layout.value(of: fact.field, in: sample.region) else { continue }
        compared += 1
        if fact.agrees(with: value) { agreeing += 1 }
      }
    }
    return (agreeing, compared)
  }
}

/// Where layouts of the VMCS may come from besides those known.
public struct VMCSLayoutSources: Sendable {
  /// Those that the dump's notes tell: trusted most.
  let inDump: [VMCSLayout]
  /// Those that the user tells.
  let ofUser: [VMCSLayout]
  /// Searches the host's memory for more: asked only where none of the others fits.
  let search: @Sendable () -> [VMCSLayout]
  /// True to infer the layout even if one is known.
  let infersAlways: Bool
  /// Threads to search with.
  let threads: Int

  public init(
    inDump: [VMCSLayout] = [], ofUser: [VMCSLayout] = [], infersAlways: Bool = false,
    threads: Int = 1, search: @escaping @Sendable () -> [VMCSLayout] = { [] }
  ) {
    self.inDump = inDump
    self.ofUser = ofUser
    self.search = search
    self.infersAlways = infersAlways
    self.threads = threads
  }
}

extension VMCSReader.Reading {
  /// What the user must know of a vCPU's structure that could not be read.
  func finding(of processor: Int) -> Finding? {
    switch self {
    case .current: nil
    case .stale(let reason):
      Finding(
        .warning, "vcpu.vmcs-stale",
        "vCPU \(processor): its VMCS is not used, only what KVM has copies of: \(reason)")
    case .noLayout(let revision):
      Finding(
        .warning, "vcpu.vmcs-unreadable",
        "vCPU \(processor): the layout of its VMCS (revision \(hexadecimal(UInt64(revision)))) is"
          + " not known, and too few VMCSs are current to infer it; give it with --vmcsinfo")
    }
  }
}
