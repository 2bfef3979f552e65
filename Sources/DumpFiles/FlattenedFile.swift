import Memory
import SystemPackage

/// A dump taken apart for a pipe: records of bytes with their offset in the dump, in the order in
/// which they were written. Where records overlap, the later one holds.
///
/// The records are read where they are, by an index that is made once. Writers append to a few
/// places of the dump by turns (page descriptors, page data), so that the index has few extents,
/// and in each a checkpoint now and then, from which the records' own headers lead on. Memory: 16
/// bytes per checkpoint, at most 16 MiB.
///
/// Source: makedumpfile, makedumpfile.h (struct makedumpfile_header, makedumpfile_data_header) and
/// README; QEMU, dump/dump.c (write_start_flat_header).
struct FlattenedFile: Sendable {
  static let signature = Array("makedumpfile\0\0\0\0".utf8)

  /// Where the records end before their end mark.
  enum Cut: Hashable, Sendable {
    /// The file ends.
    case endOfFile(UInt64)
    /// What stands at the offset is no record.
    case noRecord(UInt64)

    /// In the flattened file.
    var offset: UInt64 {
      switch self {
      case .endOfFile(let offset), .noRecord(let offset): offset
      }
    }
  }

  /// The header's room; the first record is behind it.
  private static let recordsStart: UInt64 = 4096
  private static let recordHeaderSize = 16
  /// The offset and the size that a record's header has behind the last record.
  private static let endMark: Int64 = -1
  /// No writer has as many: bounds for what a damaged file can cost.
  static let extentLimit = 1 << 14

  /// Bytes of the dump whose records continue each other.
  fileprivate struct Extent {
    var start: UInt64
    var end: UInt64
    /// Index of the checkpoints.
    let chain: Int
  }

  /// A record.
  private struct Checkpoint {
    /// In the dump.
    let start: UInt64
    /// Of the record's header in the file.
    let position: UInt64
  }

  let file: InputFile
  /// Where the dump ends.
  let size: UInt64
  /// Nil if the records end with their end mark.
  let cut: Cut?
  /// Ascending, not overlapping.
  private let extents: [Extent]
  /// Of records each of which begins where the one before ends, ascending, in the file too.
  private let chains: [[Checkpoint]]

  /// Reads the headers of all records.
  ///
  /// - Parameter checkpointLimit: beyond it checkpoints are thinned out.
  init(_ file: InputFile, checkpointLimit: Int = 1 << 19) throws(DumpFileError) {
    var index = Index(path: file.path, checkpointLimit: checkpointLimit)
    var position = Self.recordsStart
    var cut: Cut?
    // Small records are read together, of large ones the headers alone.
    var window: [UInt8] = []
    var windowStart: UInt64 = 0
    while true {
      if position < windowStart
        || position - windowStart + UInt64(Self.recordHeaderSize) > UInt64(window.count)
      {
        window = try file.bytes(at: position, count: 4096)
        windowStart = position
      }
      let place = Int(position - windowStart)
      guard let offset: Int64 = window.load(at: place), let size: Int64 = window.load(at: place + 8)
      else {
        cut = .endOfFile(position)
        break
      }
      if offset.byteSwapped == Self.endMark, size.byteSwapped == Self.endMark { break }
      guard let record = Record(offset: offset.byteSwapped, size: size.byteSwapped) else {
        cut = .noRecord(position)
        break
      }
      let data = position + UInt64(Self.recordHeaderSize)
      let present = min(record.size, file.size - min(file.size, data))
      if present > 0 {
        try index.add(record.start..<record.start + present, at: position)
      }
      guard present == record.size else {
        cut = .endOfFile(file.size)
        break
      }
      position = data + record.size
    }
    guard let last = index.extents.last, index.extents.first?.start == 0 else {
      throw .truncated(
        file.path, part: .header, offset: 0, length: UInt64(ELFLayout.headerSize),
        fileSize: file.size)
    }
    self.file = file
    size = last.end
    self.cut = cut
    extents = index.extents
    chains = index.chains
  }

  /// What stands in front of the records: struct makedumpfile_header, in a room of its own.
  static var header: [UInt8] {
    // Type (TYPE_FLAT_HEADER) and version are both 1.
    let header = signature + bigEndian(1) + bigEndian(1)
    return header + [UInt8](repeating: 0, count: Int(recordsStart) - header.count)
  }

  /// What stands in front of a record's bytes: struct makedumpfile_data_header.
  static func recordHeader(at offset: UInt64, size: Int) -> [UInt8] {
    bigEndian(Int64(clamping: offset)) + bigEndian(Int64(size))
  }

  /// What stands behind the records.
  static var end: [UInt8] { bigEndian(endMark) + bigEndian(endMark) }

  private static func bigEndian(_ value: Int64) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.append(littleEndian: value.byteSwapped)
    return bytes
  }

  /// See ``InputFile/read(at:into:)``.
  func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(Errno) -> Int {
    var done = 0
    var index = extents.firstIndex(endingBehind: offset)
    while done < buffer.count, index < extents.count {
      let extent = extents[index]
      let position = offset + UInt64(done)
      guard extent.start <= position else { break }
      let wanted = Int(min(UInt64(buffer.count - done), extent.end - position))
      let room = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[done..<done + wanted])
      let got = unsafe try read(chains[extent.chain], at: position, into: room)
      done += got
      if got < wanted { break }
      index += 1
    }
    return done
  }

  private func read(
    _ checkpoints: [Checkpoint], at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer
  ) throws(Errno) -> Int {
    var next = checkpoints.partitioningIndex { $0.start > offset }
    guard next > 0 else { return 0 }
    var position = checkpoints[next - 1].position
    var done = 0
    while done < buffer.count {
      let wanted = offset + UInt64(done)
      if next < checkpoints.count, checkpoints[next].start <= wanted {
        position = checkpoints[next].position
        next += 1
      }
      guard let record = try record(at: position) else { break }
      let data = position + UInt64(Self.recordHeaderSize)
      if record.start <= wanted, wanted - record.start < record.size {
        let skipped = wanted - record.start
        let count = Int(min(record.size - skipped, UInt64(buffer.count - done)))
        let room = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[done..<done + count])
        let got = unsafe try file.read(at: data + skipped, into: room)
        done += got
        if got < count { break }
      }
      position = data + record.size
    }
    return done
  }

  /// The record whose header is at `position`; nil where there is none any more.
  private func record(at position: UInt64) throws(Errno) -> Record? {
    var header: (offset: Int64, size: Int64) = (0, 0)
    var failure: Errno?
    let got = unsafe withUnsafeMutableBytes(of: &header) { buffer in
      do throws(Errno) {
        return unsafe try file.read(at: position, into: buffer)
      } catch {
        failure = error
        return 0
      }
    }
    if let failure { throw failure }
    guard got == Self.recordHeaderSize else { return nil }
    return Record(offset: Int64(bigEndian: header.offset), size: Int64(bigEndian: header.size))
  }

  /// The header of a record.
  private struct Record {
    let start: UInt64
    let size: UInt64

    /// Nil if no record can have these values: no file is larger than 2^63 bytes.
    init?(offset: Int64, size: Int64) {
      guard offset >= 0, size > 0, !offset.addingReportingOverflow(size).overflow else {
        return nil
      }
      start = UInt64(offset)
      self.size = UInt64(size)
    }
  }

  /// The index under construction.
  private struct Index {
    let path: FilePath
    let checkpointLimit: Int
    private(set) var extents: [Extent] = []
    private(set) var chains: [[Checkpoint]] = []
    private var checkpointCount = 0
    /// Least bytes of the file between two checkpoints of a chain.
    private var spacing: UInt64 = 0

    init(path: FilePath, checkpointLimit: Int) {
      self.path = path
      self.checkpointLimit = checkpointLimit
    }

    /// Adds a record, whose header is at `position`.
    mutating func add(_ range: Range<UInt64>, at position: UInt64) throws(DumpFileError) {
      // The extent that ends where the record begins, if there is one.
      let before = extents.firstIndex(endingBehind: range.lowerBound &- 1)
      if range.lowerBound > 0, before < extents.count,
        extents[before].end == range.lowerBound,
        before + 1 == extents.count || extents[before + 1].start >= range.upperBound
      {
        extents[before].end = range.upperBound
        extend(
          chain: extents[before].chain,
          by: Checkpoint(start: range.lowerBound, position: position))
        return
      }
      guard extents.count < extentLimit, chains.count < extentLimit else {
        throw .tooScattered(path, offset: position)
      }
      // What the record overwrites gives way to it.
      let first = extents.firstIndex(endingBehind: range.lowerBound)
      var end = first
      while end < extents.count, extents[end].start < range.upperBound { end += 1 }
      var replacement = [
        Extent(start: range.lowerBound, end: range.upperBound, chain: chains.count)
      ]
      if first < end {
        if extents[first].start < range.lowerBound {
          var left = extents[first]
          left.end = range.lowerBound
          replacement.insert(left, at: 0)
        }
        if extents[end - 1].end > range.upperBound {
          var right = extents[end - 1]
          right.start = range.upperBound
          replacement.append(right)
        }
      }
      extents.replaceSubrange(first..<end, with: replacement)
      chains.append([Checkpoint(start: range.lowerBound, position: position)])
      checkpointCount += 1
    }

    private mutating func extend(chain: Int, by checkpoint: Checkpoint) {
      if let last = chains[chain].last, checkpoint.position - last.position < spacing { return }
      chains[chain].append(checkpoint)
      checkpointCount += 1
      while checkpointCount > checkpointLimit, checkpointCount > chains.count {
        thin()
      }
    }

    /// Gives up the checkpoints that are near the one before, but for the first of each chain.
    private mutating func thin() {
      spacing = max(2 * spacing, 1 << 14)
      checkpointCount = 0
      for index in chains.indices {
        var kept: [Checkpoint] = []
        for checkpoint in chains[index]
        where kept.last.map({ checkpoint.position - $0.position >= spacing }) ?? true {
          kept.append(checkpoint)
        }
        chains[index] = kept
        checkpointCount += kept.count
      }
    }
  }
}

extension [FlattenedFile.Extent] {
  /// The first extent that ends behind `offset`.
  fileprivate func firstIndex(endingBehind offset: UInt64) -> Int {
    partitioningIndex { $0.end > offset }
  }
}
