import ArgumentParser
import ControlBlocks
import DumpFiles
import Guest
import KVMHost
import Memory
import Output
import SystemPackage

struct VMCS: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "vmcs",
    abstract: "Show the vCPUs' VMCSs (Intel), field by field.",
    discussion: """
      Fields are grouped as in Intel's manual. Each is shown with its place in the VMCS and with \
      what is known of its value without it.
      """)

  @OptionGroup var common: CommonOptions
  @OptionGroup var core: CoreOptions
  @OptionGroup var report: ReportOptions

  @Option(
    name: .customLong("vcpu"),
    help: ArgumentHelp(
      "Only the vCPU of this number. May be given several times.", valueName: "n"))
  var processors: [Int] = []

  @Flag(name: .long, help: "Search all memory for VMCSs that no vCPU leads to.")
  var scan = false

  @Flag(name: .long, help: "Show the bytes of the VMCS too.")
  var raw = false

  @Option(
    name: .customLong("export-vmcsinfo"),
    help: ArgumentHelp(
      "Write the layout used, for dumps of other hosts with the same processor.",
      valueName: "file"),
    completion: .file())
  var export: String?

  @Flag(name: .long, help: "Replace the file of --export-vmcsinfo if it exists.")
  var force = false

  func run() throws {
    try DumpFile.open(common, core, writing: export.map { FilePath($0).directory }) {
      try run(on: SourceAnalysis(of: $0, common, core, searchesForVMCSs: scan))
    }
  }

  private func run(on source: SourceAnalysis) throws {
    let structures = source.controlStructures.filter {
      processors.isEmpty || $0.owner.map { processors.contains($0.processor) } ?? false
    }
    for failure in source.failures { Console.error(failure) }
    guard !structures.isEmpty else { throw Failure(VMCSError.none) }
    if let export { try write(layoutUsed(by: structures), to: FilePath(export)) }
    if report.json {
      try printJSON(VMCSReport(structures, showsBytes: raw))
    } else if !(common.quiet && export != nil) {
      for structure in structures { show(structure) }
    }
    if structures.contains(where: { $0.layout == nil }) || !source.failures.isEmpty {
      throw ExitStatus.findings
    }
  }

  // MARK: Text

  private func show(_ structure: ControlStructure) {
    let owner =
      structure.owner.map { "\($0.guest.displayName) vCPU \($0.processor)" } ?? "no vCPU's"
    print(
      printable(
        "\(owner): VMCS"
          + (structure.address.map { " at physical address \($0)" } ?? "") + ", revision "
          + hexadecimal(UInt64(structure.revision))
          + (structure.runsNestedGuest ? ", of the guest's own guest" : "")
          + (structure.hostProcessor.map { ", last loaded on host CPU \($0)" } ?? "")))
    print(printable("  " + structure.summary))
    for area in ControlStructure.Area.allCases {
      let fields = structure.fields.filter { $0.area == area }
      if fields.isEmpty { continue }
      print("  \(area.rawValue)")
      var table = TextTable()
      for field in fields {
        table.add([
          "    \(hexadecimal(UInt64(field.encoding), digits: 4))", field.name,
          field.value.map { hexadecimal($0) } ?? "unknown", field.place, field.remark,
        ])
      }
      print(table.text, terminator: "")
    }
    if raw { print(Self.dump(structure.region), terminator: "") }
  }

  /// Sixteen bytes a line; equal lines are shown once, then `*`.
  private static func dump(_ bytes: [UInt8]) -> String {
    var text = "  bytes\n"
    var last: ArraySlice<UInt8>?
    var isRepeating = false
    for start in stride(from: 0, to: bytes.count, by: 16) {
      let line = bytes[start..<min(start + 16, bytes.count)]
      if let last, last.elementsEqual(line) {
        if !isRepeating { text += "    *\n" }
        isRepeating = true
        continue
      }
      isRepeating = false
      last = line
      let digits = line.map { hexadecimal(UInt64($0), digits: 2).dropFirst(2) }
      text += "    \(hexadecimal(UInt64(start), digits: 4))  \(digits.joined(separator: " "))\n"
    }
    return text
  }

  // MARK: Export

  private func layoutUsed(by structures: [ControlStructure]) throws -> VMCSLayout {
    let layouts = structures.compactMap(\.layout)
    guard let layout = layouts.first else { throw Failure(VMCSError.noLayout) }
    guard layouts.allSatisfy({ $0.revision == layout.revision }) else {
      throw Failure(VMCSError.severalLayouts)
    }
    return layout
  }

  private func write(_ layout: VMCSLayout, to path: FilePath) throws {
    do throws(OutputError) {
      let file = try OutputFile(path, force: force)
      try file.write(Array(layout.text.utf8), at: 0)
      try file.finish()
    } catch {
      throw Failure(error)
    }
  }
}

extension ControlStructure {
  fileprivate var summary: String {
    switch state {
    case .current(let layout, let agreeing, let compared):
      "read by \(layout.origin)"
        + (compared > 0 ? "; \(agreeing) of \(compared) values that are known of it agree" : "")
    case .stale(let reason): "not current: \(reason)"
    case .noLayout: "its layout is not known"
    }
  }
}

extension ControlStructure.Field {
  fileprivate var place: String {
    guard let first = offsets.first else { return "scattered bits" }
    return "at \(hexadecimal(UInt64(clamping: first), digits: 3))"
      + (offsets.count > 1 ? " or \(offsets.count - 1) other places" : "")
  }

  fileprivate var remark: String {
    if let known, !known.agrees { return "differs from \(known.origin)" }
    return evidence ?? known.map { "equals \($0.origin)" } ?? ""
  }
}

/// What `vmcs --json` prints.
private struct VMCSReport: Encodable {
  struct Structure: Encodable {
    /// Nil for one that no vCPU leads to.
    var guest: String?
    var processor: Int?
    /// Nil if a core does not tell it.
    var physicalAddress: String?
    var revision: String
    var runsNestedGuest: Bool
    var hostProcessor: Int64?
    /// `current`, `stale` or `no-layout`.
    var state: String
    var stateReason: String?
    var layout: String?
    var valuesCompared: Int?
    var valuesAgreeing: Int?
    var fields: [Field]
    var bytes: String?
  }

  struct Field: Encodable {
    var encoding: String
    var name: String
    var area: String
    var size: Int
    var value: String?
    var offsets: [Int]
    var evidence: String?
    var known: String?
    var agrees: Bool?
  }

  var schema = 1
  var structures: [Structure]

  init(_ structures: [ControlStructure], showsBytes: Bool) {
    self.structures = structures.map { structure in
      var report = Structure(
        guest: structure.owner?.guest.displayName, processor: structure.owner?.processor,
        physicalAddress: structure.address.map { "\($0)" },
        revision: hexadecimal(UInt64(structure.revision)),
        runsNestedGuest: structure.runsNestedGuest, hostProcessor: structure.hostProcessor,
        state: "no-layout", fields: structure.fields.map(Self.field))
      switch structure.state {
      case .current(let layout, let agreeing, let compared):
        report.state = "current"
        report.layout = layout.origin
        report.valuesAgreeing = compared > 0 ? agreeing : nil
        report.valuesCompared = compared > 0 ? compared : nil
      case .stale(let reason):
        report.state = "stale"
        report.stateReason = reason
      case .noLayout: break
      }
      if showsBytes {
        report.bytes = structure.region.map { hexadecimal(UInt64($0), digits: 2).dropFirst(2) }
          .joined()
      }
      return report
    }
  }

  private static func field(_ field: ControlStructure.Field) -> Field {
    Field(
      encoding: hexadecimal(UInt64(field.encoding), digits: 4), name: field.name,
      area: field.area.rawValue, size: field.size, value: field.value.map { hexadecimal($0) },
      offsets: field.offsets, evidence: field.evidence, known: field.known?.origin,
      agrees: field.known?.agrees)
  }
}

/// There is no VMCS to show, or no layout to write.
enum VMCSError: Diagnosis {
  case none
  case noLayout
  case severalLayouts

  var name: String {
    switch self {
    case .none: "vmcs.none"
    case .noLayout: "vmcs.no-layout"
    case .severalLayouts: "vmcs.several-layouts"
    }
  }

  var problem: String {
    switch self {
    case .none:
      "no VMCS was found: the host is not Intel's, its vCPUs cannot be read, or a core has none"
    case .noLayout: "no layout of a VMCS is known, so none is written"
    case .severalLayouts: "the host's processors have several layouts of the VMCS"
    }
  }

  var advice: String? {
    switch self {
    case .none: "`vmcore-split registers` tells more of what is missing"
    case .noLayout: nil
    case .severalLayouts: "choose a vCPU with --guest and --vcpu"
    }
  }
}
