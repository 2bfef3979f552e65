import DumpFiles
import Guest
import Memory
import Output
import SystemPackage

/// What a guest's vmcore is stored as.
public enum VmcoreForm: Hashable, Sendable {
  case elf
  /// makedumpfile's format.
  case kdump(KdumpCompression)
}

/// Writes the vmcores of guests.
public struct Extraction: Sendable {
  private let source: any FrameSource
  private let hasChecksums: Bool
  private let threads: Int
  private let progress: MoveProgress

  /// What was written of a guest.
  public struct Summary: Sendable {
    /// Bytes of the file as readers see it.
    public let fileSize: UInt64
    /// Pages that the dump names but could not deliver.
    public let lost: [MemoryRun]

    public var lostPages: UInt64 { lost.reduce(0) { $0 + $1.pages } }
  }

  /// - Parameters:
  ///   - hasChecksums: note the sums of what a file holds; the contents have room for them.
  ///   - threads: how many read, compress and write.
  ///   - progress: counts ``VmcoreContents/pages`` of all guests up.
  public init(
    source: any FrameSource, hasChecksums: Bool = false, threads: Int, progress: MoveProgress
  ) {
    self.source = source
    self.hasChecksums = hasChecksums
    self.threads = threads
    self.progress = progress
  }

  /// Writes a file for each guest. ELF files are made all in one pass over the source; of the kdump
  /// form, in which a page has no place before those in front of it, one after the other.
  ///
  /// A guest that fails does not keep the others from being written.
  public func write(
    _ guests: [(contents: VmcoreContents, file: OutputFile)], as form: VmcoreForm
  ) -> [Result<Summary, ExtractionError>] {
    switch form {
    case .elf: writeELF(guests)
    case .kdump(let compression):
      guests.map { contents, file in
        Result { () throws(ExtractionError) in
          let summary = try writeKdump(
            contents, to: file.fileDescriptor, path: file.path, isFlattened: false, compression)
          try outputErrors { () throws(OutputError) in try file.finish() }
          return summary
        }
      }
    }
  }

  /// Writes without a step back, for a pipe: the same bytes as to a file; of the kdump form, its
  /// flattened form.
  ///
  /// The notes of an ELF file come before the memory: pages that prove to be damaged when they are
  /// read are zeros there, and only the summary tells of them.
  public func write(
    _ contents: VmcoreContents, to stream: OutputStream, as form: VmcoreForm
  ) throws(ExtractionError) -> Summary {
    switch form {
    case .elf:
      try outputErrors { () throws(OutputError) in try writeELF(contents, to: stream) }
    case .kdump(let compression):
      try writeKdump(
        contents, to: stream.fileDescriptor, path: "standard output", isFlattened: true,
        compression)
    }
  }

  private func writeELF(
    _ guests: [(contents: VmcoreContents, file: OutputFile)]
  ) -> [Result<Summary, ExtractionError>] {
    var mover = PageMover(
      source: source, to: guests.map(\.file), threads: threads, progress: progress)
    var failures: [Int: OutputError] = [:]
    for (index, (contents, file)) in guests.enumerated() {
      do throws(OutputError) {
        try file.resize(to: contents.layout.fileSize)
      } catch {
        failures[index] = error
        continue
      }
      contents.memory.forEachWindow { _, runs in
        mover.add(runs, in: contents.layout.loads, to: index)
      }
    }
    return zip(guests, mover.finish()).enumerated().map { index, guest in
      let ((contents, file), moved) = guest
      return Result { () throws(ExtractionError) in
        try outputErrors { () throws(OutputError) in
          if let failure = failures[index] { throw failure }
          let lost = contents.layout.runs(lost: try moved.get().lost)
          let sums = try checksums(
            of: file.fileDescriptor, contents.layout.headerSize..<contents.layout.fileSize,
            file.path)
          try file.write(contents.elfHeader(lost: lost, sums), at: 0)
          try file.finish()
          return Summary(fileSize: contents.layout.fileSize, lost: lost)
        }
      }
    }
  }

  /// Of what was written, as it reads back; nil if they are not wanted.
  private func checksums(
    of file: FileDescriptor, _ range: Range<UInt64>, _ path: FilePath
  ) throws(OutputError) -> Checksums? {
    guard hasChecksums else { return nil }
    do throws(Errno) {
      return try Checksums(of: file.rawValue, range, threads: threads)
    } catch {
      throw .cannotWrite(path, errno: error.rawValue)
    }
  }

  private func writeELF(
    _ contents: VmcoreContents, to stream: OutputStream
  ) throws(OutputError) -> Summary {
    try stream.write(contents.elfHeader())
    let pages = OrderedPages(
      of: contents.memory, in: source, threads: threads, progress: progress
    ) { PlainPages() }
    let loads = contents.layout.loads
    var lost: [MemoryRun] = []
    try pages.forEachWindow { window throws(OutputError) in
      var index = 0
      while index < window.count {
        guard let place = loads.place(of: window.start + UInt64(index) << pageShift) else {
          index += 1
          continue
        }
        let end = min(window.count, index + Int(clamping: max(1, place.rest >> pageShift)))
        unsafe try stream.write(window.plainBytes(index..<end))
        index = end
      }
      lost += window.lost
    }
    return Summary(fileSize: contents.layout.fileSize, lost: lost)
  }

  /// Pages that turn out to be damaged are left out as those that are missing.
  private func writeKdump(
    _ contents: VmcoreContents, to descriptor: FileDescriptor, path: FilePath, isFlattened: Bool,
    _ compression: KdumpCompression
  ) throws(ExtractionError) -> Summary {
    let pages = OrderedPages(
      of: contents.memory, in: source, threads: threads, progress: progress
    ) { KdumpPageEncoder(compression) }
    var lost: [MemoryRun] = []
    var failure: OutputError?
    let size: UInt64
    do throws(KdumpWriterError) {
      var writer = try KdumpWriter(
        descriptor, path: path, isFlattened: isFlattened, compression: compression,
        system: contents.system, vmcoreinfo: contents.vmcoreinfo, notes: contents.notes(),
        dumpLevel: [], ram: contents.memory.frameRanges, capacity: contents.storedPages)
      try pages.forEachWindow { window throws(KdumpWriterError) in
        try writer.append(window)
        lost += window.lost
      }
      size = try writer.finish { range in
        var sums: Checksums?
        if !isFlattened {
          do throws(OutputError) {
            sums = try checksums(of: descriptor, range, path)
          } catch {
            failure = error
          }
        }
        return contents.notes(lost: lost, sums)
      }
    } catch {
      guard case .writeFailed(_, _, let error) = error else { throw .kdump(error) }
      throw .output(
        isFlattened
          ? .cannotStream(errno: error.rawValue) : .cannotWrite(path, errno: error.rawValue))
    }
    if let failure { throw .output(failure) }
    return Summary(fileSize: size, lost: lost)
  }
}

private func outputErrors<Value>(
  _ body: () throws(OutputError) -> Value
) throws(ExtractionError) -> Value {
  do throws(OutputError) {
    return try body()
  } catch {
    throw .output(error)
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
