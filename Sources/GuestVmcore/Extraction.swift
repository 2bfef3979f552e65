import DumpFiles
import FoundationEssentials
import Guest
import LinuxKernel
import Memory
import Output
import SystemPackage
import X86

/// What a guest's vmcore is stored as.
public enum VmcoreForm: Hashable, Sendable {
  case elf
  /// makedumpfile's format.
  case kdump(KdumpCompression)
}

/// Writes one guest's vmcore.
public struct Extraction: Sendable {
  private let guest: Guest
  private let kernel: GuestKernel?
  private let survey: MemorySurvey
  private let provenance: Provenance
  private let source: any FrameSource
  private let threads: Int
  private let progress: MoveProgress

  /// What an extraction did.
  public struct Summary: Sendable {
    /// Bytes of the file as readers see it.
    public let fileSize: UInt64
    /// Pages that the dump names but could not deliver.
    public let lost: [MemoryRun]
  }

  /// - Parameters:
  ///   - threads: how many read, compress and write.
  ///   - progress: counts ``MemorySurvey/pages`` up.
  public init(
    _ guest: Guest, kernels: GuestKernels, survey: MemorySurvey, source: any FrameSource,
    provenance: Provenance, threads: Int, progress: MoveProgress
  ) {
    self.guest = guest
    kernel = kernels.kernels.first
    self.survey = survey
    self.source = source
    self.provenance = provenance
    self.threads = threads
    self.progress = progress
  }

  public func write(
    to file: OutputFile, as form: VmcoreForm
  ) throws(ExtractionError) -> Summary {
    switch form {
    case .elf:
      do throws(OutputError) {
        return try writeELF(to: file)
      } catch {
        throw .output(error)
      }
    case .kdump(let compression):
      let summary = try writeKdump(
        to: file.fileDescriptor, path: file.path, isFlattened: false, compression)
      do throws(OutputError) {
        try file.finish()
      } catch {
        throw .output(error)
      }
      return summary
    }
  }

  /// Writes without a step back, for a pipe: the same bytes as to a file; of the kdump form, its
  /// flattened form.
  ///
  /// The notes of an ELF file come before the memory: pages that prove to be damaged when they are
  /// read are zeros there, and only the summary tells of them.
  public func write(
    to stream: OutputStream, as form: VmcoreForm
  ) throws(ExtractionError) -> Summary {
    switch form {
    case .elf:
      do throws(OutputError) {
        return try writeELF(to: stream)
      } catch {
        throw .output(error)
      }
    case .kdump(let compression):
      return try writeKdump(
        to: stream.fileDescriptor, path: "standard output", isFlattened: true, compression)
    }
  }

  private func writeELF(to file: OutputFile) throws(OutputError) -> Summary {
    let (header, layout) = elfParts()
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
    return Summary(fileSize: layout.fileSize, lost: lost)
  }

  private func writeELF(to stream: OutputStream) throws(OutputError) -> Summary {
    let (header, layout) = elfParts()
    try stream.write(header.encoded(for: layout, provenance: provenance.encoded()))
    let pages = OrderedPages(
      of: guest.memory, in: source, threads: threads, progress: progress
    ) { PlainPages() }
    var lost: [MemoryRun] = []
    try pages.forEachWindow { window throws(OutputError) in
      var index = 0
      while index < window.count {
        guard let place = layout.loads.place(of: window.start + UInt64(index) << pageShift) else {
          index += 1
          continue
        }
        let end = min(window.count, index + Int(clamping: max(1, place.rest >> pageShift)))
        unsafe try stream.write(window.plainBytes(index..<end))
        index = end
      }
      lost += window.lost
    }
    return Summary(fileSize: layout.fileSize, lost: lost)
  }

  private func elfParts() -> (VmcoreHeader, VmcoreLayout) {
    let header = header
    let layout = VmcoreLayout(
      guest.memory, survey: survey,
      noteRoom: header.noteSize(provenanceSize: provenanceRoom),
      pageOffsetBase: kernel?.pageOffsetBase)
    return (header, layout)
  }

  /// Pages that turn out to be damaged are left out as those that are missing.
  private func writeKdump(
    to descriptor: FileDescriptor, path: FilePath, isFlattened: Bool,
    _ compression: KdumpCompression
  ) throws(ExtractionError) -> Summary {
    let header = header
    let room = provenanceRoom
    let pages = OrderedPages(
      of: guest.memory, in: source, threads: threads, progress: progress
    ) { KdumpPageEncoder(compression) }
    var lost: [MemoryRun] = []
    do throws(KdumpWriterError) {
      var writer = try KdumpWriter(
        descriptor, path: path, isFlattened: isFlattened, compression: compression,
        system: SystemName(of: kernel, in: GuestMemory(guest.memory, in: source)),
        vmcoreinfo: kernel?.vmcoreinfo.text,
        notes: header.notes(provenance: provenance.encoded(), room: room), dumpLevel: [],
        ram: guest.memory.frameRanges, capacity: survey.pages - survey.missingPages)
      try pages.forEachWindow { window throws(KdumpWriterError) in
        try writer.append(window)
        lost += window.lost
      }
      let size = try writer.finish(
        notes: header.notes(provenance: provenance.adding(lost: lost).encoded(), room: room))
      return Summary(fileSize: size, lost: lost)
    } catch {
      guard case .writeFailed(_, _, let error) = error else { throw .kdump(error) }
      throw .output(
        isFlattened
          ? .cannotStream(errno: error.rawValue) : .cannotWrite(path, errno: error.rawValue))
    }
  }

  private var header: VmcoreHeader {
    VmcoreHeader(guest, kernel: kernel, canTrustTables: tablesLeadSomewhere)
  }

  /// Leaves room for pages that turn out to be damaged only when they are read.
  private var provenanceRoom: Int { (provenance.encoded().count + 16384 + 3) & ~3 }

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

extension KdumpPageEncoder: PageEncoder {}

extension KdumpWriter {
  /// Appends the pages of a window that are not missing.
  fileprivate mutating func append(
    _ window: PageWindow<GuestPhysicalAddress>
  ) throws(KdumpWriterError) {
    let first = PageFrameNumber(window.start.rawValue >> pageShift)
    for index in 0..<window.count {
      let frame = first + UInt64(index)
      switch window[index] {
      case .zero: try appendZeros(frame)
      case .stored(let size, let flags):
        unsafe try append(frame, stored: window.stored(index, size: size), flags: flags)
      case .missing, .lost: break
      }
    }
  }
}

/// A guest's vmcore could not be written.
public enum ExtractionError: Error, Sendable {
  case output(OutputError)
  case kdump(KdumpWriterError)
}

extension ExtractionError: Diagnosis {
  private var cause: any Diagnosis {
    switch self {
    case .output(let error): error
    case .kdump(let error): error
    }
  }

  public var name: String { cause.name }
  public var problem: String { cause.problem }
  public var advice: String? { cause.advice }
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
