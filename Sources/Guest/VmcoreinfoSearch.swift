import Glibc
import LinuxKernel
import Memory
import Synchronization

/// Searches all of a memory for VMCOREINFO notes.
///
/// The note lies in a page of its own (`alloc_pages_exact`, since 4.13, 203e9e41219b), before that
/// in the kernel's data, aligned to 4 bytes. Both are found by its header: a name of 11 bytes, a
/// type of 0, and the name itself.
public struct VmcoreinfoSearch: Sendable {
  private let map: MemoryMap
  private let source: any FrameSource
  private let threads: Int

  public init(_ map: MemoryMap, _ source: any FrameSource, threads: Int) {
    self.map = map
    self.source = source
    self.threads = threads
  }

  /// Notes that parse, by ascending address; at most a thousand.
  public func candidates() -> [VmcoreinfoCandidate] {
    let memory = GuestMemory(map, in: source)
    return addresses().prefix(1000).compactMap { address in
      guard let note = readNote(at: address, in: memory) else { return nil }
      return VmcoreinfoCandidate(address: address, vmcoreinfo: note)
    }
  }

  private func readNote(at address: GuestPhysicalAddress, in memory: GuestMemory) -> Vmcoreinfo? {
    let physical = PhysicalAddress(address.rawValue)
    guard let header = try? memory.read(physical, count: NoteHeader.size),
      let length = NoteHeader.descriptionSize(in: header),
      let bytes = try? memory.read(physical, count: NoteHeader.size + length)
    else { return nil }
    return Vmcoreinfo.note(in: bytes, at: 0)
  }

  /// Where header and name of a note are.
  private func addresses() -> [GuestPhysicalAddress] {
    let found = Mutex<[GuestPhysicalAddress]>([])
    map.forEachWindow { _, runs in
      let pieces = runs.flatMap(\.pieces)
      let next = Atomic<Int>(0)
      onThreads(threads) { _ in
        let reader = source.makeReader()
        let room = UnsafeMutableRawBufferPointer.allocate(
          byteCount: FramePiece.maximumPages * Int(pageSize), alignment: Int(pageSize))
        defer { unsafe room.deallocate() }
        while true {
          let index = next.add(1, ordering: .relaxed).oldValue
          guard index < pieces.count else { break }
          let piece = pieces[index]
          let part = unsafe UnsafeMutableRawBufferPointer(
            rebasing: room[..<(piece.pages * Int(pageSize))])
          _ = unsafe reader.read(from: piece.frame, into: part)
          let offsets = unsafe Self.offsets(in: UnsafeRawBufferPointer(part))
          if !offsets.isEmpty {
            found.withLock { $0 += offsets.map { piece.start + UInt64($0) } }
          }
        }
      }
    }
    return found.withLock { $0.sorted() }
  }

  /// Offsets in `bytes` at which a note begins.
  private static func offsets(in bytes: UnsafeRawBufferPointer) -> [Int] {
    guard let base = bytes.baseAddress else { return [] }
    var offsets: [Int] = []
    var position = 0
    while position < bytes.count {
      let hit = unsafe NoteHeader.nameField.withUnsafeBytes { name -> UnsafeMutableRawPointer? in
        guard let wanted = name.baseAddress else { return nil }
        return unsafe memmem(base + position, bytes.count - position, wanted, name.count)
      }
      guard let hit = unsafe hit else { break }
      let name = unsafe UnsafeRawPointer(hit) - base
      let start = name - NoteHeader.nameOffset
      if start >= 0, start % 4 == 0,
        unsafe bytes.loadUnaligned(fromByteOffset: start, as: UInt32.self) == NoteHeader.nameSize
      {
        offsets.append(start)
      }
      position = name + 1
    }
    return offsets
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
    guard header.load(UInt32.self, at: 8) == 0, let size = header.load(UInt32.self, at: 4),
      size > 0, size <= 1 << 16
    else { return nil }
    return Int(size)
  }
}
