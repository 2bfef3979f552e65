import LinuxKernel
import Memory

/// Searches all of a memory for VMCOREINFO notes.
///
/// The note lies in a page of its own (`alloc_pages_exact`, since 4.13, 203e9e41219b), before that
/// in the kernel's data, aligned to 4 bytes. Both are found by its header: a name of 11 bytes, a
/// type of 0, and the name itself.
public struct VmcoreinfoSearch: Sendable {
  private let search: MemorySearch
  private let memory: GuestMemory

  public init(_ map: MemoryMap, _ source: any FrameSource, threads: Int) {
    search = MemorySearch(map, source, threads: threads)
    memory = GuestMemory(map, in: source)
  }

  /// Notes that parse, by ascending address; at most a thousand.
  public func candidates() -> [VmcoreinfoCandidate] {
    let hits = search.addresses(of: NoteHeader.nameField).lazy
      .filter { $0.rawValue >= UInt64(NoteHeader.nameOffset) }
      .map { $0 - UInt64(NoteHeader.nameOffset) }
      .filter { $0.rawValue % 4 == 0 }
    var candidates: [VmcoreinfoCandidate] = []
    for address in hits where candidates.count < 1000 {
      if let note = note(at: address) {
        candidates.append(VmcoreinfoCandidate(address: address, vmcoreinfo: note))
      }
    }
    return candidates
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
