import DumpFiles
import FoundationEssentials
import Guest
import LinuxKernel
import Memory
import Output
import SystemPackage
import X86

/// Writes one guest's vmcore.
public struct Extraction: Sendable {
  private let guest: Guest
  private let kernel: GuestKernel?
  private let survey: MemorySurvey
  private let provenance: Provenance
  private let source: any FrameSource

  /// What an extraction did.
  public struct Summary: Sendable {
    /// Bytes of the file as readers see it.
    public let fileSize: UInt64
    /// Bytes of guest memory written; the rest of the file is holes.
    public let written: UInt64
    /// Pages that the dump names but could not deliver.
    public let lost: [MemoryRun]
  }

  public init(
    _ guest: Guest, kernels: GuestKernels, survey: MemorySurvey, source: any FrameSource,
    provenance: Provenance
  ) {
    self.guest = guest
    kernel = kernels.kernels.first
    self.survey = survey
    self.source = source
    self.provenance = provenance
  }

  /// - Parameters:
  ///   - threads: how many read and write.
  ///   - progress: counts ``MemorySurvey/pages`` up.
  public func write(
    to file: OutputFile, threads: Int, progress: MoveProgress
  ) throws(OutputError) -> Summary {
    let header = VmcoreHeader(guest, kernel: kernel, canTrustTables: tablesLeadSomewhere)
    let layout = VmcoreLayout(
      guest.memory, survey: survey,
      // Room for pages that turn out to be damaged only when they are read.
      noteRoom: header.noteSize(provenanceSize: provenance.encoded().count + 16384),
      pageOffsetBase: kernel?.pageOffsetBase)
    try file.resize(to: layout.fileSize)
    var mover = PageMover(source: source, file: file, threads: threads, progress: progress)
    try guest.memory.forEachWindow { _, runs throws(OutputError) in
      let pieces = layout.loads.pieces(of: runs)
      let pages = runs.reduce(0) { $0 + $1.pages }
      progress.add(pages - pieces.reduce(0) { $0 + UInt64($1.pages) })
      try mover.move(pieces)
    }
    let lost = layout.runs(lost: mover.lost)
    try file.write(
      header.encoded(for: layout, provenance: provenance.adding(lost: lost).encoded()), at: 0)
    try file.finish()
    return Summary(fileSize: layout.fileSize, written: mover.written, lost: lost)
  }

  /// True if the page tables of every vCPU that has paging on lead from its RIP to memory of the
  /// guest.
  private var tablesLeadSomewhere: Bool {
    let memory = GuestMemory(guest.memory, in: source)
    let paging = guest.processors.compactMap { processor in
      processor.registers.pageTables().map { (processor, $0) }
    }
    return !paging.isEmpty
      && paging.allSatisfy { processor, tables in
        guard let rip = processor.registers[.rip].value else { return false }
        let space = VirtualMemory(physical: memory, tables: tables)
        return (try? space.translate(VirtualAddress(rip))) != nil
      }
  }
}

/// What the note in a guest's vmcore says of where it comes from.
public struct Provenance: Codable, Sendable {
  public var tool: String
  public var version: String
  public var source: Source
  public var guest: GuestReport

  public struct Source: Codable, Hashable, Sendable {
    public var path: String
    public var format: String

    public init(path: String, format: String) {
      self.path = path
      self.format = format
    }
  }

  public init(tool: String, version: String, source: Source, guest: GuestReport) {
    self.tool = tool
    self.version = version
    self.source = source
    self.guest = guest
  }

  func adding(lost: [MemoryRun]) -> Provenance {
    var copy = self
    copy.guest.memory.add(lost: lost)
    return copy
  }

  func encoded() -> [UInt8] {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    // Every member is a string or a number: there is nothing that cannot be encoded.
    return (try? encoder.encode(self)).map { Array($0) } ?? []
  }

  public init?(encoded bytes: [UInt8]) {
    guard let value = try? JSONDecoder().decode(Self.self, from: Data(bytes)) else { return nil }
    self = value
  }
}
