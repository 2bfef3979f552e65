import DumpFiles
import Guest
import LinuxKernel
import Memory
import SystemPackage
import Testing
import X86

@testable import ControlBlocks
@testable import KVMHost

/// The six VMCSs of the sample of an Intel host, whose layout was measured there: written anew in
/// other layouts, they must be solved again.
private struct MeasuredHost: Sendable {
  let samples: [VMCSSample]
  let layout: VMCSLayout
  /// By vCPU: true if nobody had read its registers out of KVM before the host was dumped.
  let isUnread: [Bool]

  static let shared = Result { try MeasuredHost() }

  private init() throws {
    let folder = FilePath(#filePath).removingLastComponent().removingLastComponent()
      .removingLastComponent().appending("Samples")
    let dump = try DumpFile.open(folder.appending("intel-host.kdump"))
    let text = try #require(dump.vmcoreinfo.flatMap(Vmcoreinfo.init(text:)))
    let notes = dump.notes.map { ($0.name, $0.type, $0.description) }
    let host = try KVMHost(
      try LinuxKernel(text, in: dump), in: dump, processors: HostProcessors(notes: notes))
    guard case .vmx(let types) = host.vendor else { throw Errno.invalidArgument }
    samples = try host.machines().machines.flatMap { machine in
      try machine.processors.objects.map { vcpu in
        try VMXProcessor(vcpu, on: host, types: types)
          .sample(in: GuestMemory(machine.memory, in: dump))
      }
    }
    layout = try #require(VMCSINFOSearch(dump, threads: 2).layouts().first)
    // vmB, vmA, vmR, vmL: the first vCPUs of the last three had been stopped and read.
    isUnread = [true, false, true, false, false, true]
  }

  /// The samples as a processor with another layout would have written them.
  func written(in other: VMCSLayout, _ chosen: [Int]? = nil) -> [VMCSSample] {
    (chosen ?? Array(samples.indices)).map { index in
      let sample = samples[index]
      var region = [UInt8](repeating: 0, count: 4096)
      region.replaceSubrange(0..<8, with: sample.region[..<8])
      for field in other.fields {
        guard let value = layout.value(of: field, in: sample.region),
          let offset = other.offset(of: field), let size = other.storedSize(of: field)
        else { continue }
        let stored =
          field.isAccessRights
          ? UInt64(other.accessRights.encode(UInt32(truncatingIfNeeded: value))) : value
        for byte in 0..<size {
          region[offset + byte] = UInt8(truncatingIfNeeded: stored >> (8 * UInt64(byte)))
        }
      }
      return VMCSSample(region: region, facts: sample.facts, guest: sample.guest)
    }
  }

  /// What a solver makes of the samples: fields by whether their place is the right one.
  func solve(
    _ other: VMCSLayout, _ chosen: [Int]? = nil, known: [VMCSLayout] = []
  ) -> (right: [VMCSField], wrong: [VMCSField], open: Int, excluded: [VMCSField]) {
    var solver = VMCSSolver(written(in: other, chosen), known: known)
    solver.solve()
    // A field that was not written has no right place.
    let placed = solver.placed.filter {
      layout.place(of: $0.key) != nil && other.place(of: $0.key) != nil
    }
    let right = placed.filter { other.offset(of: $0.key) == $0.value.offset }
    let wrong = placed.filter { other.offset(of: $0.key) != $0.value.offset }
    let excluded = solver.open.filter { field, choice in
      other.offset(of: field).map { !choice.offsets.contains($0) } ?? false
    }
    return (
      right.keys.sorted(), wrong.keys.sorted(), solver.open.count, excluded.keys.sorted()
    )
  }
}

@Suite struct VMCSSolverTests {
  fileprivate let host: MeasuredHost

  init() throws { host = try MeasuredHost.shared.get() }

  @Test func `the measured layout is inferred without a mistake`() {
    let result = host.solve(host.layoutInBytes)
    #expect(result.wrong.isEmpty && result.excluded.isEmpty)
    #expect(result.right.count >= 90)
  }

  @Test func `vCPUs that nobody stopped are enough`() {
    let chosen = host.isUnread.indices.filter { host.isUnread[$0] }
    let result = host.solve(host.layoutInBytes, chosen)
    #expect(result.wrong.isEmpty && result.excluded.isEmpty)
    #expect(result.right.count >= 86)
  }

  @Test(arguments: VMCSLayoutDatabase.layouts)
  func `a published layout is inferred as if it were not known`(_ layout: VMCSLayout) {
    let others = VMCSLayoutDatabase.layouts.filter { $0.origin != layout.origin }
    for known in [[], others] {
      for chosen in [nil, host.isUnread.indices.filter { host.isUnread[$0] }] as [[Int]?] {
        let result = host.solve(layout, chosen, known: known)
        #expect(result.wrong.isEmpty && result.excluded.isEmpty)
        #expect(result.right.count >= 43)
      }
    }
  }

  @Test(arguments: 0..<40)
  func `a layout without any order is inferred without a mistake`(seed: Int) {
    var random = SplitMix(state: UInt64(seed))
    let layout = host.layoutInBytes.shuffled(isAligned: seed % 2 == 0, &random)
    for chosen in [nil, host.isUnread.indices.filter { host.isUnread[$0] }] as [[Int]?] {
      let result = host.solve(layout, chosen, known: VMCSLayoutDatabase.layouts)
      #expect(result.wrong.isEmpty && result.excluded.isEmpty)
      #expect(result.right.count >= 30)
    }
  }
}

extension MeasuredHost {
  /// The measured layout, which tells access rights bit by bit, in bytes.
  fileprivate var layoutInBytes: VMCSLayout {
    var places: [VMCSField: VMCSLayout.Place] = [:]
    for field in layout.fields {
      if let offset = layout.offset(of: field) {
        places[field] = .bytes(offset: offset, size: field.size)
      } else if case .bits(let bits) = layout.place(of: field),
        let first = bits.compactMap({ $0 }).min()
      {
        places[field] = .bytes(offset: Int(first) / 8, size: 4)
      }
    }
    return VMCSLayout(origin: "measured", revision: nil, places: places, accessRights: .rotated)
  }
}

extension VMCSLayout {
  /// The same fields one after the other in any order.
  fileprivate func shuffled(
    isAligned: Bool, _ random: inout some RandomNumberGenerator
  ) -> VMCSLayout {
    let form = AccessRightsForm.allCases.randomElement(using: &random) ?? .plain
    var places: [VMCSField: Place] = [:]
    var offset = 16
    for field in fields.shuffled(using: &random) {
      let size = field.isAccessRights ? form.size : field.size
      if isAligned { offset = (offset + size - 1) / size * size }
      places[field] = .bytes(offset: offset, size: size)
      offset += size
    }
    return VMCSLayout(origin: "shuffled", revision: nil, places: places, accessRights: form)
  }
}

extension VMCSLayout: CustomTestStringConvertible {
  public var testDescription: String { origin }
}

/// A generator of random numbers that gives the same for the same seed.
private struct SplitMix: RandomNumberGenerator {
  var state: UInt64

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var mixed = state
    mixed = (mixed ^ mixed >> 30) &* 0xbf58_476d_1ce4_e5b9
    mixed = (mixed ^ mixed >> 27) &* 0x94d0_49bb_1331_11eb
    return mixed ^ mixed >> 31
  }
}
