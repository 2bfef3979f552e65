import ControlBlocks
import Memory
import X86

/// One VMCS as evidence of its layout.
struct VMCSSample: Sendable {
  let region: [UInt8]
  let facts: [VMCSFact]
  /// The guest, where it runs in 64-bit mode with paging.
  let guest: VMCSGuest?

  /// How many of the facts' distinctive values the region holds at any place: what tells a
  /// structure that the processor wrote back from one that it did not, without a layout.
  var presence: (held: Int, of: Int) {
    let wanted = Set(facts.filter { $0.isDistinctive && !$0.isOfLastExit }.map(Masked.init))
    let held = wanted.count { wanted in
      stride(from: VMCSSolver.firstOffset, through: region.count - 8, by: 2).contains { offset in
        (region.load(UInt64.self, at: offset) ?? 0) & wanted.mask == wanted.value
      }
    }
    return (held, wanted.count)
  }

  /// True unless most of what must be in the region is not there, wherever it should be.
  var isWrittenBack: Bool {
    let (held, count) = presence
    return held * 10 >= count * 7
  }

  private struct Masked: Hashable {
    let value: UInt64
    let mask: UInt64

    init(_ fact: VMCSFact) {
      value = fact.value
      mask = fact.mask
    }
  }
}

/// Infers where an unknown processor keeps the fields of its VMCS, from what must stand in them.
///
/// There are three kinds of evidence, taken in this order. *Copies*: values that KVM or the host's
/// kernel remembers; a field lies where its value lies in every structure. *Meaning*: values that
/// the guest's memory explains, such as a CR3 that leads to page tables (`VMCSMeaning`).
/// *Regularity*: how published layouts arrange their fields, believed only as far as the places
/// found so far show it (`VMCSRegularity`). A field is placed if one place is left for it and no
/// other field lies there; evidence that contradicts itself places nothing.
struct VMCSSolver {
  let samples: [VMCSSample]
  /// Other processors' layouts.
  let known: [VMCSLayout]
  /// Fields that have one place left.
  private(set) var placed: [VMCSField: Placement] = [:]
  /// Fields that must lie at one of several places.
  private(set) var open: [VMCSField: Choice] = [:]
  /// How access rights are stored, once that is known.
  var accessRights: VMCSLayout.AccessRightsForm?
  /// Fields whose evidence contradicts that of others.
  private var disputed: Set<VMCSField> = []
  private var conflicts: Set<VMCSField> = []
  /// Which field each byte of the region belongs to.
  private var owner: [VMCSField?]
  /// The alignment of fields by their size, as far as it is known.
  private var alignment: [Int: Int] = [:]

  /// Where a field lies, and why.
  struct Placement: Hashable {
    let offset: Int
    let size: Int
    let evidence: String
  }

  /// Where a field may lie, and why.
  struct Choice: Hashable {
    var offsets: [Int]
    let size: Int
    let evidence: String
  }

  /// The first bytes are the revision identifier and the abort indicator (SDM vol. 3C 24.2).
  static let firstOffset = 8

  init(_ samples: [VMCSSample], known: [VMCSLayout] = VMCSLayoutDatabase.layouts) {
    self.samples = samples
    self.known = known
    owner = Array(repeating: nil, count: samples.map(\.region.count).min() ?? 0)
  }

  /// Infers as much as the samples tell.
  mutating func solve() {
    // Evidence that contradicts itself is left out of the next attempt.
    for _ in 0..<8 {
      addCopies()
      alignPlaces()
      VMCSMeaning(samples).add(to: &self)
      VMCSRegularity.extend(&self)
      if conflicts.isEmpty { return }
      var next = VMCSSolver(samples, known: known)
      next.disputed = disputed.union(conflicts)
      self = next
    }
  }

  // MARK: Evidence

  /// The fields' values that are known of each structure.
  private mutating func addCopies() {
    var told: [VMCSField: [Int: VMCSFact]] = [:]
    for (index, sample) in samples.enumerated() {
      for fact in sample.facts { told[fact.field, default: [:]][index] = fact }
    }
    for (field, facts) in told.sorted(by: { $0.key < $1.key }) {
      guard let origin = facts.min(by: { $0.key < $1.key })?.value.origin else { continue }
      // KVM may have been about to write one of them, but nothing that never changes.
      let tolerance = facts.values.contains(where: \.isConstant) ? 0 : 1
      match(field, size: field.size, "equals \(origin)", tolerance: tolerance) { index, value in
        facts[index].map { $0.agrees(with: value) }
      }
    }
  }

  /// Narrows a field to the places at which its value is right in the structures of which that can
  /// be told, but for `tolerance` of every five.
  mutating func match(
    _ field: VMCSField, size: Int, _ evidence: String, tolerance: Int = 1,
    isRight: (Int, UInt64) -> Bool?
  ) {
    narrow(field, size: size, evidence) { right, wrong in
      right > 0 && wrong <= tolerance * (right + wrong) / 5
    } judge: {
      isRight($0, $1)
    }
  }

  /// Narrows a field to the places whose values make sense in at least one structure, and no sense
  /// in few: a guest may do strange things, and memory may be missing.
  mutating func explain(
    _ field: VMCSField, size: Int? = nil, _ evidence: String, makesSense: (Int, UInt64) -> Bool?
  ) {
    narrow(field, size: size ?? field.size, evidence) { sense, nonsense in
      sense > 0 && nonsense <= (sense + nonsense) / 3
    } judge: {
      makesSense($0, $1)
    }
  }

  private mutating func narrow(
    _ field: VMCSField, size: Int, _ evidence: String, accept: (Int, Int) -> Bool,
    judge: (Int, UInt64) -> Bool?
  ) {
    guard placed[field] == nil, !disputed.contains(field) else { return }
    let before = open[field]
    let places = before?.offsets ?? offsets(for: size).filter { isFree($0, size: size) }
    var most = 0
    let left = places.filter { offset in
      var right = 0
      var wrong = 0
      for (index, sample) in samples.enumerated() {
        guard let value = Self.load(sample.region, offset, size),
          let verdict = judge(index, value)
        else { continue }
        if verdict { right += 1 } else { wrong += 1 }
      }
      most = max(most, right)
      return accept(right, wrong)
    }
    // Meaning may fail where copies do not; copies that nothing agrees with tell nothing.
    guard !left.isEmpty else { return }
    let evidence =
      (before.map { $0.evidence + "; " } ?? "") + "\(evidence) in \(most) of \(samples.count) VMCSs"
    open[field] = Choice(offsets: left, size: size, evidence: evidence)
    settle()
  }

  /// Takes a place that the layout's regularity predicts, if nothing speaks against it.
  mutating func place(_ field: VMCSField, at offset: Int, size: Int, _ evidence: String) {
    guard placed[field] == nil, !disputed.contains(field), isFree(offset, size: size) else {
      return
    }
    if let choice = open[field] {
      guard choice.offsets.contains(offset) else { return }
      open[field] = Choice(
        offsets: [offset], size: size, evidence: "\(choice.evidence); \(evidence)")
    } else {
      open[field] = Choice(offsets: [offset], size: size, evidence: evidence)
    }
    settle()
  }

  // MARK: Places

  /// Places fields of which one place is left, and takes that place from the others.
  private mutating func settle() {
    var isChanging = true
    while isChanging {
      isChanging = false
      for (field, choice) in open.sorted(by: { $0.key < $1.key }) {
        let left = choice.offsets.filter { isFree($0, size: choice.size) }
        if left.isEmpty {
          conflicts.insert(field)
          for offset in choice.offsets {
            conflicts.formUnion(owner[offset..<(offset + choice.size)].compactMap { $0 })
          }
          open[field] = nil
        } else if left.count == 1 {
          placed[field] = Placement(
            offset: left[0], size: choice.size, evidence: choice.evidence)
          for byte in left[0]..<(left[0] + choice.size) { owner[byte] = field }
          open[field] = nil
          isChanging = true
        } else if left.count < choice.offsets.count {
          open[field]?.offsets = left
        }
      }
    }
  }

  /// Every published layout aligns fields to their size. That is believed of this one if it is so
  /// of all that are placed, and they are too many for chance.
  private mutating func alignPlaces() {
    for size in [4, 8] {
      let offsets = placed.values.filter { $0.size == size }.map(\.offset)
      guard offsets.count >= 8 else { continue }
      alignment[size] = [8, 4].first { step in
        step <= size && offsets.allSatisfy { $0 % step == 0 }
      }
    }
    for (field, choice) in open {
      guard let step = alignment[choice.size] else { continue }
      let left = choice.offsets.filter { $0 % step == 0 }
      if !left.isEmpty { open[field]?.offsets = left }
    }
    settle()
  }

  private func offsets(for size: Int) -> StrideThrough<Int> {
    stride(from: Self.firstOffset, through: owner.count - size, by: alignment[size] ?? 2)
  }

  /// True if nothing else is known to lie there.
  func isFree(_ offset: Int, size: Int) -> Bool {
    offset >= Self.firstOffset && offset + size <= owner.count
      && owner[offset..<(offset + size)].allSatisfy { $0 == nil }
  }

  /// A field's value in a sample, if all of its places have the same.
  func value(of field: VMCSField, in sample: Int) -> UInt64? {
    let region = samples[sample].region
    if let place = placed[field] { return Self.load(region, place.offset, place.size) }
    guard let choice = open[field] else { return nil }
    let values = Set(choice.offsets.map { Self.load(region, $0, choice.size) })
    return values.count == 1 ? values.first ?? nil : nil
  }

  static func load(_ region: [UInt8], _ offset: Int, _ size: Int) -> UInt64? {
    switch size {
    case 2: region.load(UInt16.self, at: offset).map(UInt64.init)
    case 4: region.load(UInt32.self, at: offset).map(UInt64.init)
    default: region.load(UInt64.self, at: offset)
    }
  }
}

extension VMCSLayout {
  /// The layout that VMCSs of one processor have, inferred from them; nil if it shows too little.
  init?(inferredFrom samples: [VMCSSample], revision: UInt32) {
    var solver = VMCSSolver(Self.some(of: samples, limit: 128))
    solver.solve()
    // The fields that are known in any host are more than these.
    guard solver.placed.count >= 12 else { return nil }
    var places: [VMCSField: Place] = [:]
    var evidence: [VMCSField: String] = [:]
    for (field, place) in solver.placed {
      places[field] = .bytes(offset: place.offset, size: place.size)
      evidence[field] = place.evidence
    }
    for (field, choice) in solver.open where choice.offsets.count <= 32 {
      places[field] = .oneOf(offsets: choice.offsets.sorted(), size: choice.size)
      evidence[field] = choice.evidence
    }
    self.init(
      origin: "a layout inferred from this dump", revision: revision, places: places,
      accessRights: solver.accessRights ?? .plain, evidence: evidence)
  }

  /// More of them would take time and tell nothing new. They come in the order of their VMs: those
  /// at equal distances are of the most different ones.
  private static func some(of samples: [VMCSSample], limit: Int) -> [VMCSSample] {
    guard samples.count > limit else { return samples }
    return (0..<limit).map { samples[$0 * samples.count / limit] }
  }
}
