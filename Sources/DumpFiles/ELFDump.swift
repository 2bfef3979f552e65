import Memory
import SystemPackage

/// Offsets and values of 64-bit ELF core files. Source: elf.h, and the System V ABI, "Object Files".
enum ELFLayout {
  static let headerSize = 64
  static let programHeaderSize = 56
  static let sectionHeaderSize = 64

  static let classOffset = 4
  static let class64: UInt8 = 2
  static let dataOffset = 5
  static let littleEndian: UInt8 = 1

  /// Members of Elf64_Ehdr.
  enum Header {
    static let type = 16
    static let machine = 18
    static let programHeaders = 32
    static let sectionHeaders = 40
    static let flags = 48
    static let programHeaderSize = 54
    static let programHeaderCount = 56
  }

  /// Members of Elf64_Phdr.
  enum ProgramHeader {
    static let type = 0
    static let flags = 4
    static let offset = 8
    static let virtualAddress = 16
    static let physicalAddress = 24
    static let fileSize = 32
    static let memorySize = 40
  }

  static let core: UInt16 = 4
  static let x86_64: UInt16 = 62
  static let load: UInt32 = 1
  static let note: UInt32 = 4
  /// PN_XNUM: the count did not fit 16 bits and is sh_info of the first section header.
  static let extendedCount: UInt16 = 0xffff
  static let sectionInfo = 44

  /// NT_PRSTATUS of `CORE` notes: the registers of a CPU.
  static let processStatus: UInt32 = 1
  /// NT_TASKSTRUCT of `CORE` notes: the reader's task, in /proc/kcore alone.
  static let taskStructure: UInt32 = 4
  /// p_paddr of /proc/kcore's loads that are no RAM, such as the vmalloc area (since 4.13,
  /// 464920104bf7).
  static let noPhysicalAddress = UInt64.max

  /// PF_W of p_flags.
  static let writable: UInt32 = 2

  /// makedumpfile sets this bit of e_flags when it ran out of space (elf_info.h,
  /// DUMP_ELF_INCOMPLETE).
  static let incomplete: UInt32 = 1
}

/// An ELF core file of a machine or of a process.
struct ELFDump: Sendable {
  /// No dump has as many: a bound for what a damaged header can cost.
  static let programHeaderLimit: UInt64 = 1 << 20

  /// 2^52, where physical addresses of x86-64 end.
  static let physicalAddressLimit: UInt64 = 1 << 52

  /// 2^56, where a process's addresses end with five levels of page tables.
  static let userAddressLimit: UInt64 = 1 << 56

  let file: InputFile
  let notes: [Note]
  /// By p_paddr, or by p_vaddr in the core of a process.
  let map: LoadMap
  /// What the core of a process tells besides its memory; nil in a dump of a machine.
  let process: ProcessCore?
  /// The file is /proc/kcore, or a copy of it.
  let isLive: Bool
  /// The dump's writer said that it ran out of space.
  let isMarkedIncomplete: Bool
  let damage = DamageLog()

  /// `start` is the first block of the file.
  init(_ file: InputFile, start: [UInt8]) throws(DumpFileError) {
    func truncated(
      _ part: DumpFileError.DumpPart, at offset: UInt64, length: UInt64
    ) -> DumpFileError {
      .truncated(file.path, part: part, offset: offset, length: length, fileSize: file.size)
    }
    guard start.count >= ELFLayout.headerSize,
      let elfClass: UInt8 = start.load(at: ELFLayout.classOffset),
      let data: UInt8 = start.load(at: ELFLayout.dataOffset),
      let type: UInt16 = start.load(at: ELFLayout.Header.type),
      let machine: UInt16 = start.load(at: ELFLayout.Header.machine),
      let tableOffset: UInt64 = start.load(at: ELFLayout.Header.programHeaders),
      let sections: UInt64 = start.load(at: ELFLayout.Header.sectionHeaders),
      let flags: UInt32 = start.load(at: ELFLayout.Header.flags),
      let entrySize: UInt16 = start.load(at: ELFLayout.Header.programHeaderSize),
      let shortCount: UInt16 = start.load(at: ELFLayout.Header.programHeaderCount)
    else { throw truncated(.header, at: 0, length: UInt64(ELFLayout.headerSize)) }

    guard data == ELFLayout.littleEndian else {
      throw .notLittleEndian(file.path, data: data)
    }
    guard elfClass == ELFLayout.class64 else { throw .not64Bit(file.path, elfClass: elfClass) }
    guard machine == ELFLayout.x86_64 else {
      throw .otherMachine(
        file.path, machine: Self.machineName(machine), offset: UInt64(ELFLayout.Header.machine))
    }
    guard type == ELFLayout.core else { throw .notACore(file.path, elfType: type) }

    var count = UInt64(shortCount)
    if shortCount == ELFLayout.extendedCount, sections != 0 {
      let length = ELFLayout.sectionHeaderSize
      let section = try file.bytes(at: sections, count: length)
      guard let info: UInt32 = section.load(at: ELFLayout.sectionInfo) else {
        throw truncated(.sectionHeader, at: sections, length: UInt64(length))
      }
      count = UInt64(info)
    }
    guard count > 0 else { throw .noMemory(file.path) }
    guard entrySize == UInt16(ELFLayout.programHeaderSize) else {
      throw .badHeader(
        file.path, field: .programHeaderSize, offset: UInt64(ELFLayout.Header.programHeaderSize),
        value: UInt64(entrySize))
    }
    let tableSize = count * UInt64(ELFLayout.programHeaderSize)
    guard tableOffset <= file.size, tableSize <= file.size - tableOffset else {
      throw truncated(.programHeaders, at: tableOffset, length: tableSize)
    }
    guard count <= Self.programHeaderLimit else {
      throw .badHeader(
        file.path, field: .programHeaderCount,
        offset: UInt64(ELFLayout.Header.programHeaderCount), value: count)
    }

    var loads: [Load] = []
    var segments: [ProcessCore.Segment] = []
    var noteReader = NoteReader(file)
    // In pieces: a table of some 100,000 entries is never whole in memory.
    let pieceLength = 1024 * ELFLayout.programHeaderSize
    var position: UInt64 = 0
    while position < tableSize {
      let length = Int(min(UInt64(pieceLength), tableSize - position))
      let piece = try file.bytes(at: tableOffset + position, count: length)
      for entry in stride(from: 0, to: length, by: ELFLayout.programHeaderSize) {
        typealias Member = ELFLayout.ProgramHeader
        guard let type: UInt32 = piece.load(at: entry + Member.type),
          let access: UInt32 = piece.load(at: entry + Member.flags),
          let offset: UInt64 = piece.load(at: entry + Member.offset),
          let virtual: UInt64 = piece.load(at: entry + Member.virtualAddress),
          let physical: UInt64 = piece.load(at: entry + Member.physicalAddress),
          let fileSize: UInt64 = piece.load(at: entry + Member.fileSize),
          let memorySize: UInt64 = piece.load(at: entry + Member.memorySize)
        else { throw truncated(.programHeaders, at: tableOffset, length: tableSize) }
        if type == ELFLayout.load {
          loads.append(
            Load(
              address: physical, fileOffset: offset, fileSize: fileSize, memorySize: memorySize))
          segments.append(
            ProcessCore.Segment(
              start: VirtualAddress(virtual), size: memorySize,
              isWritable: access & ELFLayout.writable != 0,
              gap: fileSize == 0 ? SegmentGap(flags: access) : nil))
        } else if type == ELFLayout.note {
          try noteReader.read(at: offset, size: fileSize)
        }
      }
      position += UInt64(length)
    }
    // Source: fs/proc/kcore.c. Its CORE notes are of the task that reads, with registers of zero.
    isLive =
      loads.contains { $0.address == ELFLayout.noPhysicalAddress }
      && noteReader.notes.contains { $0.name == "CORE" && $0.type == ELFLayout.taskStructure }
    notes = isLive ? noteReader.notes.filter { $0.name != "CORE" } : noteReader.notes
    guard !loads.isEmpty else { throw .noMemory(file.path) }
    process = ProcessCore(notes: notes, segments: segments)
    if process != nil {
      for index in loads.indices {
        loads[index].address = segments[index].start.rawValue
        loads[index].isZero = segments[index].gap == .zero
      }
    }
    map = LoadMap(
      loads, fileSize: file.size,
      addressLimit: process == nil ? Self.physicalAddressLimit : Self.userAddressLimit)
    isMarkedIncomplete = flags & ELFLayout.incomplete != 0
    self.file = file
  }

  /// The machines that kdump is met on. Source: elf.h, EM_*.
  private static func machineName(_ machine: UInt16) -> String {
    switch machine {
    case 3: "EM_386 (i386)"
    case 8: "EM_MIPS"
    case 20: "EM_PPC"
    case 21: "EM_PPC64"
    case 22: "EM_S390"
    case 40: "EM_ARM"
    case 50: "EM_IA_64"
    case 183: "EM_AARCH64 (arm64)"
    case 243: "EM_RISCV"
    case 258: "EM_LOONGARCH"
    default: "\(machine)"
    }
  }
}

extension ELFDump {
  /// See ``FrameSource/fileExtent(from:limit:)``.
  func fileExtent(from frame: UInt64, limit: UInt64) -> FileExtent? {
    let index = map.index(of: frame)
    guard !isLive, let descriptor = file.plainDescriptor, index < map.runs.count else { return nil }
    let run = map.runs[index]
    guard run.first <= frame, case .file(let offset) = run.content else { return nil }
    return FileExtent(
      descriptor: descriptor, offset: offset &+ (frame - run.first) << pageShift,
      pages: min(limit, run.end - frame))
  }

  /// Reads `buffer.count / 4096` frames; see ``PageReader/read(from:into:)``.
  func read(
    from frame: UInt64, into buffer: UnsafeMutableRawBufferPointer, _ results: inout [Absence?]
  ) {
    let end = frame + UInt64(buffer.count) / pageSize
    var index = map.index(of: frame)
    var position = frame
    while position < end {
      let run = index < map.runs.count ? map.runs[index] : nil
      guard let run, run.first < end else {
        unsafe buffer.setAbsent(.notInDump, frames: position - frame..<end - frame, &results)
        return
      }
      if position < run.first {
        unsafe buffer.setAbsent(
          .notInDump, frames: position - frame..<run.first - frame, &results)
        position = run.first
      }
      let pieceEnd = min(end, run.end)
      let room = unsafe UnsafeMutableRawBufferPointer(
        rebasing: buffer[Int(position - frame) << 12..<Int(pieceEnd - frame) << 12])
      switch run.content {
      case .absent(let absence):
        unsafe buffer.setAbsent(absence, frames: position - frame..<pieceEnd - frame, &results)
      case .zero:
        unsafe room.initializeMemory(as: UInt8.self, repeating: 0)
        results.append(contentsOf: repeatElement(nil, count: Int(pieceEnd - position)))
      case .file(let offset):
        unsafe readPages(
          from: position, at: offset &+ (position - run.first) << pageShift, into: room, &results)
      case .parts(let range):
        results.append(unsafe read(map.parts[range], of: position, into: room))
      }
      position = pieceEnd
      index += 1
    }
  }

  private func read(
    _ parts: ArraySlice<LoadMap.Part>, of frame: UInt64,
    into page: UnsafeMutableRawBufferPointer
  ) -> Absence? {
    unsafe page.initializeMemory(as: UInt8.self, repeating: 0)
    for part in parts {
      let room = unsafe UnsafeMutableRawBufferPointer(
        rebasing: page[part.offset..<part.offset + part.count])
      let absence: Absence?
      do throws(Errno) {
        let got = try unsafe file.read(at: part.fileOffset, into: room)
        absence = got < part.count ? .truncated : nil
      } catch {
        damage.add(frame, file.path, part.fileOffset, .readFailed(error))
        absence = .corrupt
      }
      if let absence {
        unsafe page.initializeMemory(as: UInt8.self, repeating: 0)
        return absence
      }
    }
    return nil
  }

  /// Reads whole pages that lie one after the other in the file. Where reading fails, page by page,
  /// so that one bad block costs one page.
  private func readPages(
    from frame: UInt64, at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer,
    _ results: inout [Absence?]
  ) {
    let page = Int(pageSize)
    do throws(Errno) {
      let whole = try unsafe file.read(at: offset, into: buffer) / page
      results.append(contentsOf: repeatElement(Absence?.none, count: whole))
      guard whole * page < buffer.count else { return }
      let next = UInt64(whole) + 1
      unsafe buffer.setAbsent(.truncated, frames: next - 1..<next, &results)
      // A flattened file can have a hole there, and go on behind it.
      let rest = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[(Int(next) * page)...])
      if file.isFlattened, next < UInt64(buffer.count / page) {
        unsafe readPages(from: frame + next, at: offset &+ next << pageShift, into: rest, &results)
      } else {
        unsafe buffer.setAbsent(
          .truncated, frames: next..<UInt64(buffer.count / page), &results)
      }
    } catch {
      guard buffer.count > page else {
        damage.add(frame, file.path, offset, .readFailed(error))
        unsafe buffer.setAbsent(.corrupt, frames: 0..<1, &results)
        return
      }
      for start in stride(from: 0, to: buffer.count, by: page) {
        unsafe readPages(
          from: frame + UInt64(start / page), at: offset &+ UInt64(start),
          into: UnsafeMutableRawBufferPointer(rebasing: buffer[start..<start + page]), &results)
      }
    }
  }
}

extension UnsafeMutableRawBufferPointer {
  /// Zeroes the room of `frames` (counted from the buffer's start) and appends their results.
  func setAbsent(_ absence: Absence, frames: Range<UInt64>, _ results: inout [Absence?]) {
    let room = unsafe self[Int(frames.lowerBound) << 12..<Int(frames.upperBound) << 12]
    unsafe UnsafeMutableRawBufferPointer(rebasing: room)
      .initializeMemory(as: UInt8.self, repeating: 0)
    results.append(contentsOf: repeatElement(Optional(absence), count: frames.count))
  }
}
