import Guest
import LinuxKernel
import Memory
import Synchronization
import X86

/// Tells, for pages of VMMs and their guests, what the dump has of them, and why it lacks the rest.
///
/// A filtering writer (makedumpfile) leaves out pages of zeros by one bit of its dump level and
/// kinds of pages by others, and does not say of a page by which. The kernel's descriptor of the
/// frame tells its kind: a page of a kind that was not filtered can only have been left out
/// because it was zero.
struct FilteredPages: Sendable {
  /// The host's physical memory, where its page tables are, and what it has swapped out.
  let memory: HostMemory
  let entries: SwapEntries
  private let swap: HostSwap
  private let source: any FrameSource
  private let kernelMemory: VirtualMemory
  /// `struct file`.
  private let fileType: BTFType?
  private let frames: PageFrames?
  private let zeroFrame: PageFrameNumber?
  private let level: DeducedLevel

  init(on host: KVMHost) {
    memory = host.memory
    source = host.source
    kernelMemory = host.kernel.memory
    fileType = host.kernel.types.structure(named: "file")
    entries = SwapEntries(of: host.kernel, in: host.source)
    swap = host.swap
    frames = host.frames
    zeroFrame =
      host.kernel.symbol("empty_zero_page")
      .flatMap { try? host.kernel.memory.translate($0) }?.frame
    level = DeducedLevel(source, frames)
  }

  /// The page of a process that holds an address, wherever the host has it; not of a file that it does
  /// not map.
  func page(at address: VirtualAddress, of tables: PageTables) throws(MemoryError) -> [UInt8] {
    var process = ProcessMemory(tables, in: memory, swap: entries)
    var builder = PageRunBuilder<VirtualAddress>()
    append(process.lookUp(address).page, at: address, pages: 1, file: nil, to: &builder)
    switch builder.runs.first?.content {
    case .frames(let frame): return try memory.page(frame)
    case .zero(.neverTouched), .missing, nil: throw .notMapped(address, entry: 0)
    case .zero: return [UInt8](repeating: 0, count: Int(pageSize))
    }
  }

  /// Adds `count` pages that the VMM's page tables describe by `page`. `file` is what is mapped
  /// there, if that is a file.
  func append<Location>(
    _ page: ProcessPage, at start: Location, pages count: UInt64,
    file: FilePages<Location>?, to builder: inout PageRunBuilder<Location>
  ) {
    switch page {
    case .frame(let first):
      appendFrames(first, at: start, pages: count, to: &builder)
    case .unmapped:
      if let file, let frames {
        appendCached(file, frames, at: start, pages: count, to: &builder)
      } else {
        builder.append(PageRun(start: start, pages: count, content: .zero(.neverTouched)))
      }
    case .swapped(let entry):
      for index in 0..<count {
        let page = SwapEntry(device: entry.device, offset: entry.offset &+ index)
        appendSwapped(page, at: start + index << pageShift, to: &builder)
      }
    case .special(let frame):
      switch try? frames?.specialUse(of: frame) {
      case .page: appendFrames(frame, at: start, pages: count, to: &builder)
      case .poisoned:
        builder.append(PageRun(start: start, pages: count, content: .missing(.poisoned)))
      case nil:
        builder.append(PageRun(start: start, pages: count, content: .missing(.specialEntry)))
      }
    case .tableAbsent:
      builder.append(PageRun(start: start, pages: count, content: .missing(.pageTableMissing)))
    }
  }

  private func appendSwapped<Location>(
    _ entry: SwapEntry, at address: Location, to builder: inout PageRunBuilder<Location>
  ) {
    let content: PageContent
    switch swap.place(of: entry) {
    case .frame(let frame):
      appendFrames(frame, at: address, pages: 1, to: &builder)
      return
    case .zero: content = .zero(.swappedZeroPage)
    case .stored(let page): content = .frames(page.frame)
    case .missing(let reason): content = .missing(reason, device: entry.device)
    }
    builder.append(PageRun(start: address, pages: 1, content: content))
  }

  /// Pages of a file (a memfd, as a rule) that the VMM does not map: reclaim unmaps such pages
  /// without a trace in the page tables, and the page cache still has them or says that they are
  /// swapped out.
  private func appendCached<Location>(
    _ file: FilePages<Location>, _ frames: PageFrames, at start: Location, pages: UInt64,
    to builder: inout PageRunBuilder<Location>
  ) {
    var done: UInt64 = 0
    while done < pages {
      let address = start + done << pageShift
      let index = file.index(of: address)
      var content = PageContent.missing(.pageTableMissing)
      var count: UInt64 = 1
      if let (page, last) = try? frames.cachedPage(of: file.position.mapping, at: index) {
        switch page {
        case .frame(let frame):
          appendFrames(frame, at: address, pages: 1, to: &builder)
          done += 1
          continue
        case .swapped(let entry):
          appendSwapped(entry, at: address, to: &builder)
          done += 1
          continue
        case .none:
          content =
            file.position.isInMemory ? .zero(.neverTouched) : .missing(.inFile)
          count = min(last - index, pages - done - 1) + 1
        }
      }
      builder.append(PageRun(start: address, pages: count, content: content))
      done += count
    }
  }

  /// The file that a frame of a slot belongs to, if any.
  func file(
    of frame: PageFrameNumber, at address: GuestPhysicalAddress
  ) -> FilePages<GuestPhysicalAddress>? {
    guard let position = try? frames?.cachePosition(of: frame) else { return nil }
    return FilePages(position: position, address: address)
  }

  /// The pages of a file from `index` on, mapped at `address`.
  func pages(
    of file: MappedFile, from index: UInt64, at address: VirtualAddress
  ) -> FilePages<VirtualAddress>? {
    guard let position = try? frames?.cachePosition(in: file.pages, at: index) else { return nil }
    return FilePages(position: position, address: address)
  }

  /// The file that has a slot's private pages; what is not in its page cache was never touched.
  func pages(
    of file: MemorySlot.PrivateFile, at address: GuestPhysicalAddress
  ) -> FilePages<GuestPhysicalAddress>? {
    guard frames != nil, let fileType,
      let mapping = try? KernelObject(in: kernelMemory, at: file.file, type: fileType)["f_mapping"]
        .required()
    else { return nil }
    return FilePages(
      position: PageFrames.CachePosition(
        mapping: mapping, index: file.firstPage, isInMemory: true), address: address)
  }

  func appendFrames<Location>(
    _ first: PageFrameNumber, at start: Location, pages: UInt64,
    to builder: inout PageRunBuilder<Location>
  ) {
    var done: UInt64 = 0
    while done < pages {
      let frame = first + done
      let address = start + done << pageShift
      let (absence, available) = source.presence(from: frame, limit: pages - done)
      var count = max(1, min(available, pages - done))
      let content: PageContent
      if frame == zeroFrame {
        content = .zero(.sharedZeroPage)
        count = 1
      } else if let absence {
        content = absence == .excluded ? excluded(frame) : .missing(MissingReason(absence))
        // Neighbours left out together may be of different kinds.
        if absence == .excluded { count = 1 }
      } else {
        content = .frames(frame)
      }
      builder.append(PageRun(start: address, pages: count, content: content))
      done += count
    }
  }

  private func excluded(_ frame: PageFrameNumber) -> PageContent {
    guard let level = level.value, level.contains(.zeroPages) else { return .missing(.filtered) }
    let kinds: DumpLevel = [.cache, .privateCache, .userData]
    if level.isDisjoint(with: kinds) { return .zero(.filteredZeroPage) }
    guard let use = try? frames?.use(of: frame), use != .other,
      level.isDisjoint(with: use.dumpLevel)
    else { return .missing(.filtered) }
    return .zero(.filteredZeroPage)
  }
}

/// A mapped file: where one page of the address space is in it, from which all others follow.
struct FilePages<Location: Address>: Sendable {
  let position: PageFrames.CachePosition
  let address: Location

  func index(of other: Location) -> UInt64 {
    position.index &+ (UInt64(bitPattern: Int64(bitPattern: other.distance(from: address)) >> 12))
  }
}

/// The dump level: as the dump records it or, for an ELF dump, which does not, the greatest one that
/// what it holds allows. Found out when it is first asked for, as a dump that was not filtered never
/// needs it.
private final class DeducedLevel: Sendable {
  private let source: any FrameSource
  private let frames: PageFrames?
  private let cached = Mutex<DumpLevel??>(nil)

  init(_ source: any FrameSource, _ frames: PageFrames?) {
    self.source = source
    self.frames = frames
  }

  var value: DumpLevel? {
    cached.withLock { cached in
      if let cached { return cached }
      let level = source.dumpLevel ?? frames.map { deduce(by: $0) }
      cached = .some(level)
      return level
    }
  }

  /// makedumpfile keeps short runs of filtered pages in an ELF dump, as each gap costs a program
  /// header, and leaves out those of 256 pages and more (PFN_EXCLUDED, `write_elf_pages_cyclic`).
  /// So single pages of a kind prove nothing, but a run of that length that is there does: its
  /// kind was not filtered. Of compound pages, which may be the kernel's, none proves anything.
  private func deduce(by frames: PageFrames) -> DumpLevel {
    var filtered: Set<PageFrames.Use> = [.userData, .cache, .privateCache]
    for start in source.sampleFrames(count: 1 << 14) {
      guard !filtered.isEmpty else { break }
      guard let use = try? frames.use(of: start), filtered.contains(use),
        holdsRun(of: use, from: start, frames)
      else { continue }
      filtered.remove(use)
    }
    return filtered.reduce(into: .zeroPages) { $0.formUnion($1.dumpLevel) }
  }

  private static let shortestGap: UInt64 = 256

  private func holdsRun(
    of use: PageFrames.Use, from start: PageFrameNumber, _ frames: PageFrames
  ) -> Bool {
    let (absence, count) = source.presence(from: start, limit: Self.shortestGap)
    guard absence == nil, count == Self.shortestGap else { return false }
    // The far end first: most runs end before it.
    return (0..<Self.shortestGap).reversed().allSatisfy { index in
      (try? frames.use(of: start + index)) == use
    }
  }
}
