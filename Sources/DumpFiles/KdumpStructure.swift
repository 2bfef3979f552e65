import Memory
import SystemPackage

/// What a kdump-compressed file's headers and page descriptors say, for checking them: no page is
/// read.
public struct KdumpStructure: Sendable {
  public let version: Int
  public let isFlattened: Bool
  /// The file is one of a set, or its writer ran out of space.
  public let isPart: Bool
  /// Of the header's names.
  public let machine: String
  public let release: String
  public let cpuCount: Int
  /// phys_base of the sub-header.
  public let physicalBase: Int64
  /// Bytes that the notes take.
  public let noteSize: UInt64
  /// The text that the sub-header leads to; empty if that is none.
  public let vmcoreinfo: [UInt8]
  public let storedPages: UInt64
  /// Pages that are stored, but not of RAM.
  public let pagesBeyondRAM: UInt64
  /// Pages whose descriptor leads out of the file's data, or tells another compression than the
  /// header.
  public let badDescriptors: UInt64
  private let file: InputFile
  private let noteStart: UInt64

  /// Whether a file that begins so has this form, maybe flattened.
  public static func begins(_ start: [UInt8]) -> Bool {
    start.starts(with: KdumpLayout.signature) || start.starts(with: FlattenedFile.signature)
  }

  public init(_ path: FilePath) throws(DumpFileError) {
    typealias Header = KdumpLayout.Header
    let file = try InputFile.dump(path)
    let start = try file.bytes(at: 0, count: KdumpLayout.blockSize)
    guard case .kdump = FileSignature(start) else {
      throw .notADump(path, .unknown(firstBytes: Array(start.prefix(8))))
    }
    let header = try KdumpFileHeader(file, start: start)
    version = Int(header.version)
    isFlattened = file.isFlattened
    isPart = header.isSplit || header.isMarkedIncomplete
    func name(_ index: Int) -> String {
      start.cString(at: Header.systemName + index * Header.nameSize, limit: Header.nameSize) ?? ""
    }
    release = name(2)
    machine = name(4)
    cpuCount = Int(start.load(Int32.self, at: Header.cpuCount) ?? 0)
    let sub = try file.bytes(at: UInt64(KdumpLayout.blockSize), count: 8)
    physicalBase = sub.load(at: KdumpLayout.SubHeader.physicalBase) ?? 0
    self.file = file
    noteStart = header.sub.notes.offset
    noteSize =
      noteStart < file.size ? min(header.sub.notes.size, file.size - noteStart) : 0
    vmcoreinfo = try header.sub.vmcoreinfo(file) ?? []

    let ram = try Bitmap(file, at: header.bitmapOffset, limit: header.frameLimit)
    let stored =
      try header.storedBitmapOffset.map { offset throws(DumpFileError) in
        try Bitmap(file, at: offset, limit: header.frameLimit)
      } ?? ram
    storedPages = stored.count
    pagesBeyondRAM = stored.bits(notIn: ram)
    badDescriptors = try Self.badDescriptors(
      header, count: stored.count,
      compression: (start.load(UInt32.self, at: Header.status) ?? 0)
        & KdumpLayout.Flags.compression)
  }

  /// A part of the area of the notes; fewer bytes where it ends. `count` is allocated.
  public func noteBytes(at offset: UInt64, count: Int) throws(DumpFileError) -> [UInt8] {
    let rest = noteSize - min(offset, noteSize)
    return try file.bytes(at: noteStart + offset, count: min(count, Int(clamping: rest)))
  }

  private static func badDescriptors(
    _ header: KdumpFileHeader, count: UInt64, compression: UInt32
  ) throws(DumpFileError) -> UInt64 {
    let size = KdumpLayout.Descriptor.size
    let dataStart = header.descriptors + count * UInt64(size)
    var bad: UInt64 = 0
    var done: UInt64 = 0
    while done < count {
      let piece = min(count - done, 1 << 14)
      let bytes = try header.file.bytes(
        at: header.descriptors + done * UInt64(size), count: Int(piece) * size)
      for index in 0..<Int(piece) {
        guard let descriptor = PageDescriptor(bytes, at: index * size),
          case .at(let range) = descriptor.storage(fileSize: header.file.size),
          range.lowerBound >= dataStart,
          descriptor.flags == compression
            || descriptor.flags == 0 && range.count == KdumpLayout.blockSize
        else {
          bad += 1
          continue
        }
      }
      done += piece
    }
    return bad
  }
}
