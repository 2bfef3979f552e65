import DumpFiles
import Glibc
import Guest
import LinuxKernel
import Memory
import SystemPackage
import X86

/// A guest's vmcore, held against what its readers need: crash, drgn, makedumpfile, libkdumpfile,
/// Volatility 3, LeechCore. Each rule names the reader that fails when it is broken.
public struct VmcoreCheck: Encodable, Sendable {
  public struct Rule: Encodable, Sendable {
    public let name: String
    public let isKept: Bool
    /// What was met, where that helps.
    public let detail: String
  }

  public private(set) var rules: [Rule] = []
  /// What the file says of its origin, if it says so.
  public private(set) var provenance: Provenance?

  public var isSound: Bool { rules.allSatisfy(\.isKept) }

  public init(_ path: FilePath) throws(VmcoreCheckError) {
    let file = try CheckedFile(path)
    let header = try file.read(at: 0, count: 64)
    if header.starts(with: [0x7f, 0x45, 0x4c, 0x46]) {
      try checkELF(file, ELFHeader(header))
    } else if KdumpStructure.begins(header) {
      try checkKdump(path)
    } else {
      throw .unknownFormat(path)
    }
    try checkSums(file)
  }

  /// The sums that `--checksums` noted, if it did.
  private mutating func checkSums(_ file: borrowing CheckedFile) throws(VmcoreCheckError) {
    guard let checksums = provenance?.checksums else { return }
    let differences: [Int]?
    do throws(Errno) {
      differences = try checksums.differences(in: file.descriptor, size: file.size)
    } catch {
      throw .cannotRead(file.path, errno: error.rawValue)
    }
    let detail =
      if let differences, let first = differences.first {
        "\(differences.count) MiB of the file have changed, the first at offset"
          + " \(hexadecimal(checksums.start + UInt64(first) * checksums.unit))"
      } else {
        differences == nil ? "the file has another size" : ""
      }
    rule("memory is what was written (vmcore-split --checksums)", differences == [], detail)
  }

  private mutating func checkELF(
    _ file: borrowing CheckedFile, _ elf: ELFHeader
  ) throws(VmcoreCheckError) {
    rule(
      "64-bit little-endian ELF core of x86-64 (all readers)",
      elf.identity == [2, 1, 1] && elf.type == 4 && elf.machine == 62 && elf.version == 1)
    rule(
      "program headers at offset 64, ELF header of 64 bytes (makedumpfile)",
      elf.programHeaderOffset == 64 && elf.size == 64 && elf.programHeaderSize == 56,
      "e_phoff \(elf.programHeaderOffset), e_ehsize \(elf.size)")
    let count = Int(elf.programHeaderCount)
    rule(
      "2 to 145 program headers (crash, LeechCore)", (2...145).contains(count),
      "e_phnum \(count)")
    guard count < 0xffff, elf.programHeaderSize == 56 else { return }
    let table = try file.read(at: elf.programHeaderOffset, count: count * 56)
    let headers = (0..<count).compactMap { ProgramHeader(table, at: $0 * 56) }
    rule("all program headers are in the file", headers.count == count)
    checkLoads(headers, fileSize: file.size)
    try checkNotes(headers, file)
  }

  private mutating func checkKdump(_ path: FilePath) throws(VmcoreCheckError) {
    let file: KdumpStructure
    do throws(DumpFileError) {
      file = try KdumpStructure(path)
    } catch {
      throw .dump(error)
    }
    rule(
      "kdump-compressed, header version 6, of x86_64 (all readers)",
      file.version == 6 && file.machine == "x86_64", "version \(file.version)")
    rule(
      "one file, in order and whole (makedumpfile)", !file.isFlattened && !file.isPart,
      file.isFlattened ? "flattened: makedumpfile -R puts it in order" : "")
    rule("stored pages are of RAM (crash)", file.pagesBeyondRAM == 0)
    rule(
      "page descriptors lead to data in the file, of the compression that the header tells"
        + " (all readers)", file.badDescriptors == 0,
      "\(file.storedPages) pages, \(file.badDescriptors) badly described")
    rule("notes take 64 MiB at most (crash)", file.noteSize <= Self.noteLimit)
    guard file.noteSize <= Self.noteLimit else { return }
    let notes = try VmcoreNotes(size: file.noteSize) { offset, count throws(VmcoreCheckError) in
      do throws(DumpFileError) {
        return try file.noteBytes(at: offset, count: count)
      } catch {
        throw .dump(error)
      }
    }
    check(notes)
    rule(
      "the header counts the vCPUs (crash)", file.cpuCount == max(1, notes.statuses),
      "\(file.cpuCount)")
    guard let text = notes.vmcoreinfo else { return }
    let info = Vmcoreinfo(text: text)
    rule(
      "the sub-header leads to VMCOREINFO (makedumpfile, drgn)",
      !file.vmcoreinfo.isEmpty && text.starts(with: file.vmcoreinfo))
    rule(
      "the headers have VMCOREINFO's release and phys_base (crash)",
      file.release == info?.release && file.physicalBase == info?.number("phys_base") ?? 0,
      "\(file.release), \(file.physicalBase)")
  }

  private mutating func rule(_ name: String, _ isKept: Bool, _ detail: String = "") {
    rules.append(Rule(name: name, isKept: isKept, detail: detail))
  }

  private mutating func checkLoads(_ headers: [ProgramHeader], fileSize: UInt64) {
    let loads = headers.filter { $0.type == ProgramHeader.load }
    rule(
      "the first program header is the only PT_NOTE, all others are PT_LOAD (crash)",
      headers.first?.type == ProgramHeader.note && loads.count == headers.count - 1)
    rule(
      "the first load has p_align 0 or an unaligned p_offset (crash: kdump, not netdump)",
      loads.first.map { $0.alignment == 0 || $0.offset % pageSize != 0 } ?? false)
    rule(
      "loads are as long in the file as in memory (Volatility, LeechCore)",
      loads.allSatisfy { $0.fileSize == $0.memorySize && $0.fileSize > 0 })
    rule(
      "loads begin and end on page boundaries (Volatility, LeechCore)",
      loads.allSatisfy { $0.address % pageSize == 0 && $0.fileSize % pageSize == 0 })
    rule(
      "loads ascend and do not overlap (Volatility, LeechCore)",
      zip(loads, loads.dropFirst()).allSatisfy { first, second in
        first.address.addingReportingOverflow(first.memorySize).partialValue <= second.address
          && first.address < second.address
      })
    let end = loads.map { $0.offset.addingReportingOverflow($0.fileSize) }
    rule(
      "the file holds every load whole (crash: truncated)",
      end.allSatisfy { !$0.overflow && $0.partialValue <= fileSize },
      "\(fileSize) bytes")
  }

  private mutating func checkNotes(
    _ headers: [ProgramHeader], _ file: borrowing CheckedFile
  ) throws(VmcoreCheckError) {
    guard let segment = headers.first(where: { $0.type == ProgramHeader.note }) else { return }
    let firstLoad =
      headers.filter { $0.type == ProgramHeader.load }.map(\.offset).min() ?? UInt64.max
    let end = segment.offset.addingReportingOverflow(segment.fileSize)
    rule(
      "notes lie before the first load, within 64 MiB (crash)",
      !end.overflow && end.partialValue <= firstLoad && segment.fileSize <= Self.noteLimit)
    guard segment.fileSize <= Self.noteLimit else { return }
    let area = segment.offset
    guard !end.overflow, end.partialValue <= file.size else {
      throw .truncated(file.path, offset: end.partialValue)
    }
    check(
      try VmcoreNotes(size: segment.fileSize) { offset, count throws(VmcoreCheckError) in
        try file.read(at: area + offset, count: count)
      })
  }

  /// crash's.
  private static let noteLimit: UInt64 = 64 << 20

  private mutating func check(_ notes: VmcoreNotes) {
    rule("notes follow each other without rest (crash, drgn)", notes.areWhole)
    rule(
      "an NT_PRSTATUS of \(ProcessorNotes.ProcessStatus.size) bytes for each vCPU, pr_pid counting"
        + " from 1 (crash, drgn)", notes.statuses > 0 && notes.areStatusesKnown,
      "\(notes.statuses) vCPUs")
    rule(
      "a QEMU note of version 1 for each vCPU, or none (crash)",
      (notes.states == 0 || notes.states == notes.statuses) && notes.areStatesKnown,
      "\(notes.states) notes")
    rule(
      "VMCOREINFO, or QEMU notes to find the kernel by (crash)",
      notes.vmcoreinfos == 1 && notes.vmcoreinfo.flatMap(Vmcoreinfo.init(text:)) != nil
        || notes.vmcoreinfos == 0 && notes.states > 0,
      notes.vmcoreinfos == 0 ? "no VMCOREINFO: drgn needs one" : "")
    rule(
      "no other notes than ours, as crash tells notes by their type (crash)", notes.others == 0)
    provenance = notes.provenance.flatMap(Provenance.init(encoded:))
    rule(
      "a note of where it comes from (vmcore-split)", provenance != nil,
      provenance.map { "\($0.guest.name), out of \($0.source.path)" } ?? "")
  }
}

/// A file could not be checked.
public enum VmcoreCheckError: Error, Sendable {
  case cannotRead(FilePath, errno: Int32)
  /// The file ends before something that its headers place at `offset`.
  case truncated(FilePath, offset: UInt64)
  /// Neither ELF nor kdump-compressed.
  case unknownFormat(FilePath)
  /// The headers of a kdump-compressed file are not sound.
  case dump(DumpFileError)
}

extension VmcoreCheckError: Diagnosis {
  public var name: String {
    switch self {
    case .cannotRead: "check.cannot-read"
    case .truncated: "check.truncated"
    case .unknownFormat: "check.unknown-format"
    case .dump(let error): error.name
    }
  }

  public var problem: String {
    switch self {
    case .cannotRead(let path, let errno):
      "\(path) cannot be read: \(Errno(rawValue: errno))"
    case .truncated(let path, let offset):
      "\(path) ends before offset \(offset), where its headers say there is more"
    case .unknownFormat(let path): "\(path) is neither an ELF nor a kdump-compressed file"
    case .dump(let error): error.problem
    }
  }

  public var advice: String? {
    switch self {
    case .cannotRead: nil
    case .truncated: "the file was cut short: copy it again, or extract the guest again"
    case .dump(let error): error.advice
    case .unknownFormat: "this command checks the vmcores of guests that vmcore-split writes"
    }
  }
}

/// A file read by position.
private struct CheckedFile: ~Copyable {
  let path: FilePath
  let size: UInt64
  let descriptor: Int32

  init(_ path: FilePath) throws(VmcoreCheckError) {
    let descriptor = unsafe open(path.string, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)
    guard descriptor >= 0 else { throw .cannotRead(path, errno: errno) }
    var status = stat()
    guard unsafe fstat(descriptor, &status) == 0 else {
      let error = errno
      close(descriptor)
      throw .cannotRead(path, errno: error)
    }
    self.path = path
    self.descriptor = descriptor
    size = UInt64(clamping: status.st_size)
  }

  deinit { close(descriptor) }

  /// `count` must be bounded by the caller. More than the file has is an error before it is memory.
  func read(at offset: UInt64, count: Int) throws(VmcoreCheckError) -> [UInt8] {
    guard offset <= size, UInt64(count) <= size - offset else {
      throw .truncated(path, offset: offset &+ UInt64(count))
    }
    var bytes = [UInt8](repeating: 0, count: count)
    var done = 0
    while done < count {
      let result = unsafe bytes.withUnsafeMutableBytes { bytes in
        unsafe pread(
          descriptor, bytes.baseAddress.map { unsafe $0 + done }, count - done,
          off_t(clamping: offset) + off_t(done))
      }
      if result > 0 {
        done += result
      } else if result == 0 {
        throw .truncated(path, offset: offset &+ UInt64(done))
      } else if errno != EINTR {
        throw .cannotRead(path, errno: errno)
      }
    }
    return bytes
  }
}

/// `Elf64_Ehdr`.
private struct ELFHeader {
  let identity: [UInt8]
  let type: UInt16
  let machine: UInt16
  let version: UInt32
  let programHeaderOffset: UInt64
  let size: UInt16
  let programHeaderSize: UInt16
  let programHeaderCount: UInt16

  /// - Parameter bytes: at least 64.
  init(_ bytes: [UInt8]) {
    identity = Array(bytes[4..<7])
    type = bytes.load(at: 16) ?? 0
    machine = bytes.load(at: 18) ?? 0
    version = bytes.load(at: 20) ?? 0
    programHeaderOffset = bytes.load(at: 32) ?? 0
    size = bytes.load(at: 52) ?? 0
    programHeaderSize = bytes.load(at: 54) ?? 0
    programHeaderCount = bytes.load(at: 56) ?? 0
  }
}

/// `Elf64_Phdr`.
private struct ProgramHeader {
  static let load: UInt32 = 1
  static let note: UInt32 = 4

  let type: UInt32
  let offset: UInt64
  let address: UInt64
  let fileSize: UInt64
  let memorySize: UInt64
  let alignment: UInt64

  init?(_ bytes: [UInt8], at start: Int) {
    guard let type = bytes.load(UInt32.self, at: start),
      let offset = bytes.load(UInt64.self, at: start + 8),
      let address = bytes.load(UInt64.self, at: start + 24),
      let fileSize = bytes.load(UInt64.self, at: start + 32),
      let memorySize = bytes.load(UInt64.self, at: start + 40),
      let alignment = bytes.load(UInt64.self, at: start + 48)
    else { return nil }
    self.type = type
    self.offset = offset
    self.address = address
    self.fileSize = fileSize
    self.memorySize = memorySize
    self.alignment = alignment
  }
}
