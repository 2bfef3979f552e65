import LinuxKernel
import Memory
import X86

/// Searches a memory for VMCOREINFO notes.
///
/// The note lies in a page of its own (`alloc_pages_exact`, since 4.13, 203e9e41219b), before that
/// in the kernel's data, aligned to 4 bytes. Both are found by its header: a name of 11 bytes, a
/// type of 0, and the name itself.
public struct VmcoreinfoSearch: Sendable {
  private let map: MemoryMap
  private let source: any FrameSource
  private let threads: Int
  private let memory: GuestMemory

  public init(_ map: MemoryMap, _ source: any FrameSource, threads: Int) {
    self.map = map
    self.source = source
    self.threads = threads
    memory = GuestMemory(map, in: source)
  }

  /// Notes that parse, anywhere in the memory, by ascending address; at most a thousand.
  public func candidates() -> [VmcoreinfoCandidate] {
    candidates(
      named: MemorySearch(map, source, threads: threads).addresses(of: NoteHeader.nameField))
  }

  /// The same of the notes that a kernel's image holds or points at (`vmcoreinfo_note`), for which
  /// a few megabytes are read and not all memory.
  ///
  /// - Parameter tables: a vCPU's.
  func candidates(ofKernelIn tables: PageTables) -> [VmcoreinfoCandidate] {
    let image = map.restricted(to: memory.writableKernelImage(tables))
    let found = MemorySearch(image, source, threads: threads).addresses(
      of: NoteHeader.nameField, andWords: 1 << 13
    ) { word in
      // The direct map of memory lies in the kernel's half, below the image.
      word & (pageSize - 1) == 0 && word >> 47 == 0x1_ffff && word < kernelImageBase.rawValue
    }
    var walker = PageTableWalker(tables, in: memory)
    let pointedAt = found.words.prefix(1 << 16).compactMap { pointer -> VmcoreinfoCandidate? in
      guard case .page(let address, _) = walker.lookUp(VirtualAddress(pointer)).mapping else {
        return nil
      }
      return candidate(at: GuestPhysicalAddress(address.rawValue))
    }
    return candidates(named: found.addresses) + pointedAt
  }

  /// - Parameter names: where a note's name is.
  private func candidates(named names: [GuestPhysicalAddress]) -> [VmcoreinfoCandidate] {
    var candidates: [VmcoreinfoCandidate] = []
    for name in names where candidates.count < 1000 {
      let (address, isOutside) = name.rawValue.subtractingReportingOverflow(
        UInt64(NoteHeader.nameOffset))
      guard !isOutside, address % 4 == 0 else { continue }
      if let candidate = candidate(at: GuestPhysicalAddress(address)) {
        candidates.append(candidate)
      }
    }
    return candidates
  }

  private func candidate(at address: GuestPhysicalAddress) -> VmcoreinfoCandidate? {
    note(at: address).map { VmcoreinfoCandidate(address: address, vmcoreinfo: $0) }
  }

  private func note(at address: GuestPhysicalAddress) -> Vmcoreinfo? {
    let physical = PhysicalAddress(address.rawValue)
    guard let header = try? memory.read(physical, count: NoteHeader.size),
      let length = NoteHeader.descriptionSize(in: header),
      let bytes = try? memory.read(physical, count: NoteHeader.size + length)
    else { return nil }
    return Vmcoreinfo.note(in: bytes, at: 0)
  }
}

/// The header of a VMCOREINFO note: an `Elf64_Nhdr`.
private enum NoteHeader {
  static let nameSize: UInt32 = 11
  static let nameOffset = 12
  static let nameField: [UInt8] = Array("VMCOREINFO\0".utf8)
  /// Header, name and padding.
  static let size = 24

  /// The length of the text, if it is one that a kernel writes (at most a few pages).
  static func descriptionSize(in header: [UInt8]) -> Int? {
    guard header.load(UInt32.self, at: 0) == nameSize, header.load(UInt32.self, at: 8) == 0,
      let size = header.load(UInt32.self, at: 4), size > 0, size <= 1 << 16
    else { return nil }
    return Int(size)
  }
}

extension GuestMemory {
  /// Where the image of the kernel that page tables map can be written, as the kernel's variables
  /// can: ranges of physical memory that are apart from each other.
  fileprivate func writableKernelImage(
    _ tables: PageTables
  ) -> [(start: GuestPhysicalAddress, size: UInt64)] {
    var walker = PageTableWalker(tables, in: self)
    var ranges: [Range<UInt64>] = []
    var address = kernelImageBase
    while address < kernelImageEnd {
      let (mapping, span) = walker.lookUp(address)
      if case .page(let physical, let entry) = mapping, entry & PageTableEntry.writable != 0 {
        let start = physical.rawValue
        if let last = ranges.last, last.upperBound == start {
          ranges[ranges.count - 1] = last.lowerBound..<(start + span)
        } else {
          ranges.append(start..<(start + span))
        }
      }
      // The span is that around the address, which is the first of it but behind a larger one.
      address = VirtualAddress((address.rawValue & ~(span - 1)) &+ span)
      if address < kernelImageBase { break }
    }
    // A page that is mapped twice counts once.
    var end: UInt64 = 0
    return ranges.sorted { $0.lowerBound < $1.lowerBound }.compactMap { range in
      let start = max(range.lowerBound, end)
      guard start < range.upperBound else { return nil }
      end = range.upperBound
      return (GuestPhysicalAddress(start), end - start)
    }
  }
}
