import Memory

/// How an ELF core file of a ``SyntheticMemory`` is to look.
public struct SyntheticELF: Sendable {
  /// Whose layout it follows.
  public enum Style: Sendable, CaseIterable {
    /// /proc/vmcore and makedumpfile -E: program headers at 64, data right behind the notes.
    case vmcore
    /// QEMU 7.2: section headers first, program headers at 192, e_ehsize 8, p_vaddr 0.
    case qemu
  }

  /// A PT_LOAD program header.
  public struct Load: Sendable {
    public var physical: UInt64
    /// nil: ``SyntheticELF/virtualBase`` + physical, or what the style says.
    public var virtual: UInt64?
    public var fileSize: UInt64
    public var memorySize: UInt64
    /// What the file has of it; nil: what the memory holds at `physical`.
    public var content: [UInt8]?
    /// p_flags.
    public var flags: UInt32

    public init(
      physical: UInt64, virtual: UInt64? = nil, fileSize: UInt64, memorySize: UInt64? = nil,
      content: [UInt8]? = nil, flags: UInt32 = 7
    ) {
      self.physical = physical
      self.virtual = virtual
      self.fileSize = fileSize
      self.memorySize = memorySize ?? fileSize
      self.content = content
      self.flags = flags
    }
  }

  public var style = Style.vmcore
  public var notes: [SyntheticNote] = []
  /// nil: one load per range of frames.
  public var loads: [Load]?
  public var virtualBase: UInt64 = 0xffff_8880_0000_0000
  /// The count of program headers in section header 0 (PN_XNUM), as from 65,535 on.
  public var hasExtendedCount = false

  public init() {}

  public init(
    style: Style = .vmcore, notes: [SyntheticNote] = [], loads: [Load]? = nil,
    hasExtendedCount: Bool = false
  ) {
    self.style = style
    self.notes = notes
    self.loads = loads
    self.hasExtendedCount = hasExtendedCount
  }
}

extension SyntheticMemory {
  /// An ELF core file of this memory. Layout: elf.h.
  public func elf(_ options: SyntheticELF = SyntheticELF()) -> SyntheticFile {
    let loads =
      options.loads
      ?? frameRanges.map { range in
        SyntheticELF.Load(
          physical: range.lowerBound.address.rawValue,
          fileSize: range.upperBound.distance(from: range.lowerBound) << pageShift)
      }
    let count = loads.count + 1
    let isExtended = options.hasExtendedCount || count >= 0xffff
    let sectionOffset: UInt64 = 64
    let headerOffset: UInt64 =
      switch options.style {
      case .vmcore: isExtended ? 128 : 64
      case .qemu: 192
      }
    let hasSections = isExtended || options.style == .qemu
    let notes = options.notes.flatMap(\.encoded.bytes)
    let noteOffset = headerOffset + 56 * UInt64(count)

    var file = SyntheticFile()
    file.write([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1], at: 0)
    file.store(UInt16(4), at: 16)  // e_type: ET_CORE
    file.store(UInt16(62), at: 18)  // e_machine: EM_X86_64
    file.store(UInt32(1), at: 20)
    file.store(headerOffset, at: 32)
    file.store(hasSections ? sectionOffset : 0, at: 40)
    file.store(UInt16(options.style == .qemu ? 8 : 64), at: 52)  // e_ehsize
    file.store(UInt16(56), at: 54)
    file.store(isExtended ? 0xffff : UInt16(count), at: 56)
    file.store(UInt16(64), at: 58)
    file.store(UInt16(hasSections ? 1 : 0), at: 60)
    if isExtended { file.store(UInt32(count), at: sectionOffset + 44) }  // sh_info

    var table: [UInt8] = []
    func addHeader(
      _ type: UInt32, flags: UInt32 = 0, offset: UInt64, virtual: UInt64, physical: UInt64,
      fileSize: UInt64, memorySize: UInt64
    ) {
      table.append(littleEndian: type)
      table.append(littleEndian: flags)
      for value in [offset, virtual, physical, fileSize, memorySize, 0] {
        table.append(littleEndian: value)
      }
    }
    addHeader(
      4, offset: noteOffset, virtual: 0, physical: 0, fileSize: UInt64(notes.count),
      memorySize: UInt64(notes.count))
    var offset = noteOffset + UInt64(notes.count)
    for load in loads {
      addHeader(
        1, flags: load.flags, offset: offset,
        virtual: load.virtual
          ?? (options.style == .qemu ? 0 : options.virtualBase &+ load.physical),
        physical: load.physical, fileSize: load.fileSize, memorySize: load.memorySize)
      if load.fileSize > 0 {
        file.write(
          load.content ?? bytes(at: PhysicalAddress(load.physical), count: Int(load.fileSize)),
          at: offset)
      }
      offset += load.fileSize
    }
    file.write(table, at: headerOffset)
    file.write(notes, at: noteOffset)
    return file
  }
}
