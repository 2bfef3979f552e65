import LinuxKernel
import Memory
import X86

/// A guest as it is told to programs: the JSON of `--json` and of the provenance note.
///
/// Addresses and register values are hexadecimal strings, as JSON's numbers cannot hold 64 bits;
/// counts and sizes are numbers. Members are only ever added.
public struct GuestReport: Codable, Hashable, Sendable {
  public var name: String
  public var uuid: String?
  public var pid: Int64
  /// Which of the VMs of that process it is, if not the first.
  public var number: Int?
  public var command: String?
  public var backend: String
  /// The kernels found in the guest, the one chosen first.
  public var kernels: [Kernel]
  public var memory: Memory
  public var processors: [Processor]
  public var findings: [Finding]

  /// True if something is missing, stale or doubtful.
  public var hasWarnings: Bool {
    findings.contains { $0.severity == .warning }
  }

  public struct Kernel: Codable, Hashable, Sendable {
    public var release: String
    public var buildID: String?
    /// Guest-physical address of its VMCOREINFO note.
    public var note: String
    public var crashed: Bool
    /// vCPUs whose page tables lead to it.
    public var processors: [Int]
  }

  public struct Memory: Codable, Hashable, Sendable {
    public var bytes: UInt64
    public var pages: UInt64
    public var present: UInt64
    /// Those of them that the host had swapped out, by what had their bytes.
    public var swapped: [String: UInt64]?
    /// Pages by the reason why they are known to be zero.
    public var zero: [String: UInt64]
    /// Pages by the reason why they are missing.
    public var missing: [String: UInt64]
    /// Those of them that are on swap devices of the host.
    public var onDevice: [DevicePages]?
    public var missingRuns: [Run]
    /// Missing runs too many to be listed.
    public var unlistedRuns: UInt64
    public var regions: [Region]
  }

  public struct DevicePages: Codable, Hashable, Sendable {
    public var device: String
    public var reason: String
    public var pages: UInt64
  }

  public struct Run: Codable, Hashable, Sendable {
    public var start: String
    public var pages: UInt64
    public var reason: String
  }

  public struct Region: Codable, Hashable, Sendable {
    public var start: String
    public var bytes: UInt64
    public var readOnly: Bool
    public var origin: String
  }

  public struct Processor: Codable, Hashable, Sendable {
    public var index: Int
    public var state: String
    /// The symbol that RIP lies in, where the guest's own symbols tell.
    public var location: String?
    public var registers: [String: RegisterReport]
    /// Those of the guest that the guest itself runs there; `registers` are then what it resumes
    /// with when that exits.
    public var nestedRegisters: [String: RegisterReport]?
  }

  /// A register: `value`, or the parts of a segment or table; with `source` and `location`, or
  /// `unknown` with the reason.
  public struct RegisterReport: Codable, Hashable, Sendable {
    public var value: String?
    public var selector: String?
    public var base: String?
    public var limit: String?
    public var attributes: String?
    public var source: String?
    public var location: String?
    public var unknown: String?
  }
}

extension GuestReport {
  /// - Parameter deviceName: what the swap devices of the host are called.
  public init(
    _ guest: Guest, kernels: GuestKernels, survey: MemorySurvey,
    deviceName: (UInt8) -> String = { "swap device \($0)" }
  ) {
    name = guest.identity.displayName
    uuid = guest.identity.uuid
    pid = guest.identity.pid
    number = guest.identity.number > 1 ? guest.identity.number : nil
    command = guest.identity.command
    backend = guest.identity.backend
    self.kernels = kernels.kernels.map {
      Kernel(
        release: $0.vmcoreinfo.release, buildID: $0.vmcoreinfo.buildID,
        note: $0.noteAddress.description, crashed: $0.hasCrashed, processors: $0.processors)
    }
    memory = Memory(guest.memory, survey, deviceName)
    let symbols = kernels.kernels.first?.symbols
    processors = guest.processors.map { Processor($0, symbols) }
    findings = guest.findings
  }
}

extension GuestReport.Memory {
  fileprivate init(_ map: MemoryMap, _ survey: MemorySurvey, _ deviceName: (UInt8) -> String) {
    bytes = map.size
    pages = survey.pages
    present = survey.present
    zero = Dictionary(uniqueKeysWithValues: survey.zero.map { ($0.key.rawValue, $0.value) })
    if !survey.swapped.isEmpty {
      swapped = Dictionary(uniqueKeysWithValues: survey.swapped.map { ($0.key.name, $0.value) })
    }
    if !survey.onDevice.isEmpty {
      onDevice = survey.onDevice.map { loss, pages in
        GuestReport.DevicePages(
          device: deviceName(loss.device), reason: loss.reason.rawValue, pages: pages)
      }.sorted { ($0.device, $0.reason) < ($1.device, $1.reason) }
    }
    missing = Dictionary(uniqueKeysWithValues: survey.missing.map { ($0.key.rawValue, $0.value) })
    missingRuns = survey.missingRuns.compactMap { run in
      guard let reason = run.content.missingReason else { return nil }
      return GuestReport.Run(run, reason)
    }
    unlistedRuns = survey.unlistedRuns
    regions = map.regions.map {
      GuestReport.Region(
        start: $0.start.description, bytes: $0.size, readOnly: $0.isReadOnly, origin: $0.origin)
    }
  }
}

extension GuestReport.Memory {
  /// Corrects the report by pages that the source named and could not deliver. A hundred runs at
  /// most are listed one by one; all are counted.
  public mutating func add(lost runs: [MemoryRun]) {
    var room = 100
    for run in runs {
      guard let reason = run.content.missingReason else { continue }
      missing[reason.rawValue, default: 0] += run.pages
      present -= min(present, run.pages)
      if room > 0 {
        missingRuns.append(GuestReport.Run(run, reason))
        room -= 1
      } else {
        unlistedRuns += 1
      }
    }
  }
}

extension GuestReport.Run {
  fileprivate init(_ run: MemoryRun, _ reason: MissingReason) {
    self.init(start: run.start.description, pages: run.pages, reason: reason.rawValue)
  }
}

extension GuestReport.Processor {
  fileprivate init(_ processor: VirtualProcessor, _ symbols: Kallsyms?) {
    index = processor.index
    state = processor.state.rawValue
    location = processor.registers[.rip].value.flatMap { symbols?.describe(VirtualAddress($0)) }
    registers = Self.reports(processor.registers)
    nestedRegisters = processor.nested.map(Self.reports)
  }

  private static func reports(_ file: RegisterFile) -> [String: GuestReport.RegisterReport] {
    var reports: [String: GuestReport.RegisterReport] = [:]
    for register in Register.allCases {
      reports[register.rawValue] = .init(file[register]) { report, value in
        report.value = hexadecimal(value)
      }
    }
    for register in SegmentRegister.allCases {
      reports[register.rawValue] = .init(file[register]) { report, segment in
        report.selector = hexadecimal(UInt64(segment.selector))
        report.base = hexadecimal(segment.base)
        report.limit = hexadecimal(UInt64(segment.limit))
        report.attributes = hexadecimal(UInt64(segment.attributes.rawValue))
      }
    }
    for register in TableRegister.allCases {
      reports[register.rawValue] = .init(file[register]) { report, table in
        report.base = hexadecimal(table.base)
        report.limit = hexadecimal(UInt64(table.limit))
      }
    }
    return reports
  }
}

extension GuestReport.RegisterReport {
  fileprivate init<Value>(_ reading: Reading<Value>, _ fill: (inout Self, Value) -> Void) {
    switch reading {
    case .known(let value, let source):
      fill(&self, value)
      self.source = source.kind.rawValue
      location = source.location
    case .unknown(let reason):
      unknown = reason
    }
  }
}

extension Kallsyms {
  /// `symbol+0x1b`, or nil for an address outside the kernel's image.
  fileprivate func describe(_ address: VirtualAddress) -> String? {
    guard address >= kernelImageBase, let symbol = symbol(at: address) else { return nil }
    return symbol.offset == 0 ? symbol.name : "\(symbol.name)+\(hexadecimal(symbol.offset))"
  }
}
