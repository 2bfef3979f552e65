import DumpFiles
import Guest
import LinuxKernel
import Memory
import Output

/// Writes the ELF core of a process, as the kernel's core dumper would have.
///
/// All that can be had of the process's memory is written, whatever `coredump_filter` and
/// MADV_DONTDUMP say of it: the host is gone, and no second dump will be made.
public struct ProcessCoreWriter: Sendable {
  private let process: UserProcess
  private let memory: PageMap<VirtualAddress>
  private let source: any FrameSource
  private let notes: [UInt8]
  private var layout: ProcessCoreLayout

  /// What was written.
  public struct Summary: Sendable {
    /// Bytes of the file as readers see it.
    public let fileSize: UInt64
    /// Bytes of memory written; the rest of the file is holes.
    public let written: UInt64
    /// Pages that the dump names but could not deliver.
    public let lost: [MissingReason: UInt64]
    /// Missing pages that read as zero, as the core cannot say of so many that they are missing.
    public let unmarkedPages: UInt64
  }

  /// - Parameters:
  ///   - process: what the host's kernel tells of the process.
  ///   - memory: where its memory is: a region for each mapping that has any.
  ///   - source: the dump of the host.
  ///   - notes: to be added behind those that Linux writes.
  public init(
    _ process: UserProcess, memory: PageMap<VirtualAddress>, in source: any FrameSource,
    adding notes: [Note] = []
  ) {
    self.process = process
    self.memory = memory
    self.source = source
    self.notes = (ProcessNotes(process).notes + notes).flatMap(\.encoded)
    layout = ProcessCoreLayout(
      process.mappings, memory, noteSize: UInt64(self.notes.count))
  }

  /// How much of the process's memory is at hand, and what is missing why.
  public var survey: PageSurvey<VirtualAddress> { layout.survey }

  /// - Parameter progress: counts the pages of ``survey`` up.
  public consuming func write(
    to file: OutputFile, threads: Int, progress: MoveProgress
  ) throws(OutputError) -> Summary {
    try file.resize(to: layout.fileSize)
    var mover = PageMover(source: source, to: [file], threads: threads, progress: progress)
    for region in memory.regions {
      memory.forEachWindow(of: region) { runs in
        mover.add(runs, in: layout.segments, to: 0)
      }
    }
    let moved = try mover.finish()[0].get()
    layout.cut(moved.lost.sorted { $0.fileOffset < $1.fileOffset })
    try writeHeaders(to: file)
    try file.finish()
    return Summary(
      fileSize: layout.fileSize, written: moved.written,
      lost: moved.lost.reduce(into: [:]) { $0[$1.reason, default: 0] += $1.pages },
      unmarkedPages: layout.unmarkedPages)
  }

  /// In pieces, as there may be hundreds of thousands.
  private func writeHeaders(to file: OutputFile) throws(OutputError) {
    var bytes = ELFCoreHeader.encoded(
      programHeaders: layout.programHeaderCount, sectionHeaderOffset: layout.loadsEnd)
    ProgramHeader(.note, offset: layout.noteOffset, fileSize: UInt64(notes.count))
      .append(to: &bytes)
    var offset: UInt64 = 0
    for segment in layout.segments {
      segment.programHeader.append(to: &bytes)
      if bytes.count >= 1 << 20 {
        try file.write(bytes, at: offset)
        offset += UInt64(bytes.count)
        bytes.removeAll(keepingCapacity: true)
      }
    }
    try file.write(bytes, at: offset)
    try file.write(notes, at: layout.noteOffset)
    if layout.needsSectionHeader {
      try file.write(
        ELFCoreHeader.sectionHeader(programHeaders: layout.programHeaderCount),
        at: layout.loadsEnd)
    }
  }
}
