import Memory

/// A note of an ELF core file, or of the note area in a kdump-compressed file.
public struct Note: Hashable, Sendable {
  /// The owner, without the closing NUL: `CORE`, `QEMU`, `VMCOREINFO`.
  public let name: String
  /// What the owner means by it: NT_PRSTATUS is 1 of `CORE`.
  public let type: UInt32
  public let description: [UInt8]

  public init(name: String, type: UInt32, description: [UInt8]) {
    self.name = name
    self.type = type
    self.description = description
  }
}

extension Note {
  /// Bytes of a note's header: n_namesz, n_descsz, n_type (elf.h, Elf64_Nhdr).
  static let headerSize = 12

  /// The note as it stands in a file: name and description padded to 4 bytes each.
  public var encoded: [UInt8] {
    let owner = [UInt8](name.utf8) + [0]
    var bytes: [UInt8] = []
    bytes.append(littleEndian: UInt32(truncatingIfNeeded: owner.count))
    bytes.append(littleEndian: UInt32(truncatingIfNeeded: description.count))
    bytes.append(littleEndian: type)
    bytes += owner
    bytes.append(contentsOf: repeatElement(0, count: -bytes.count & 3))
    bytes += description
    bytes.append(contentsOf: repeatElement(0, count: -bytes.count & 3))
    return bytes
  }
}

/// Reads the notes out of a part of a file, through a window, so that a large note (NT_VMCOREDD
/// holds whole device dumps) costs no memory.
struct NoteReader {
  /// A description longer than this is not loaded, and its note left out. The largest that serves
  /// here is the VMCOREINFO note, a page or a few.
  static let descriptionLimit: UInt64 = 1 << 20
  /// Bounds for what a damaged note area can cost: bytes scanned, bytes kept, notes kept (two for
  /// each of 8192 CPUs, and room for more).
  static let scanLimit: UInt64 = 1 << 28
  static let keptLimit = 1 << 24
  static let countLimit = 1 << 16

  private let file: InputFile
  private var window: [UInt8] = []
  private var windowStart: UInt64 = 0
  private(set) var notes: [Note] = []
  private var kept = 0

  init(_ file: InputFile) {
    self.file = file
  }

  /// Index in the window of `count` bytes at `offset` of the file; nil beyond its end.
  private mutating func load(at offset: UInt64, count: Int) throws(DumpFileError) -> Int? {
    if offset >= windowStart, let index = Int(exactly: offset - windowStart),
      index <= window.count, count <= window.count - index
    {
      return index
    }
    window = try file.bytes(at: offset, count: max(count, 1 << 16))
    windowStart = offset
    return count <= window.count ? 0 : nil
  }

  /// Appends the notes found in `size` bytes at `start`. A note that does not end within them ends
  /// the walk: what follows cannot be found.
  mutating func read(at start: UInt64, size: UInt64) throws(DumpFileError) {
    guard start < file.size else { return }
    let end = start + min(size, Self.scanLimit, file.size - start)
    var position = start
    while end - position >= UInt64(Note.headerSize), notes.count < Self.countLimit,
      kept < Self.keptLimit
    {
      guard let header = try load(at: position, count: Note.headerSize),
        let nameSize = window.load(UInt32.self, at: header),
        let descriptionSize = window.load(UInt32.self, at: header + 4),
        let type = window.load(UInt32.self, at: header + 8)
      else { return }
      let nameRoom = roundUp(UInt64(nameSize), to: 4)
      let unpadded = UInt64(Note.headerSize) + nameRoom + UInt64(descriptionSize)
      guard unpadded <= end - position else { return }
      // The kernel's per-CPU note areas, and padding of any writer, are full of empty notes.
      let isEmpty = nameSize == 0 && descriptionSize == 0
      if !isEmpty, nameSize <= 256, UInt64(descriptionSize) <= Self.descriptionLimit {
        guard let index = try load(at: position, count: Int(unpadded)) else { return }
        let nameStart = index + Note.headerSize
        let descriptionStart = nameStart + Int(nameRoom)
        notes.append(
          Note(
            name: String(
              decoding: window[nameStart..<nameStart + Int(nameSize)].prefix { $0 != 0 },
              as: UTF8.self),
            type: type,
            description: Array(
              window[descriptionStart..<descriptionStart + Int(descriptionSize)])))
        kept += Int(unpadded)
      }
      position += min(roundUp(unpadded, to: 4), end - position)
    }
  }
}

/// `value` up to the next multiple of `unit`, a power of two. `value` must be far below 2^64.
func roundUp(_ value: UInt64, to unit: UInt64) -> UInt64 {
  (value &+ (unit - 1)) & ~(unit - 1)
}

extension [Note] {
  /// The text of the kernel's VMCOREINFO note. Xen's has another name.
  var vmcoreinfo: [UInt8]? {
    first { $0.name == "VMCOREINFO" }.map { $0.description.withoutTrailingZeros }
  }
}

extension [UInt8] {
  /// QEMU copies the guest's note with the padding of its page.
  var withoutTrailingZeros: [UInt8] {
    Array(prefix((lastIndex { $0 != 0 } ?? -1) + 1))
  }
}
