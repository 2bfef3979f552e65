import Memory

extension SyntheticFile {
  /// A record of a flattened file: bytes of the dump, and where in it they belong.
  public struct Record: Sendable {
    public var offset: UInt64
    public var bytes: [UInt8]

    public init(offset: UInt64, bytes: [UInt8]) {
      self.offset = offset
      self.bytes = bytes
    }
  }

  /// A flattened file of these records. Layout: makedumpfile.h.
  public init(flattened records: [Record], hasEndMark: Bool = true) {
    self.init(Array("makedumpfile\0\0\0\0".utf8))
    store((1 as UInt64).byteSwapped, at: 16)
    store((1 as UInt64).byteSwapped, at: 24)
    var position: UInt64 = 4096
    func add(_ file: inout SyntheticFile, _ offset: UInt64, _ size: UInt64) {
      file.store(offset.byteSwapped, at: position)
      file.store(size.byteSwapped, at: position + 8)
      position += 16
    }
    for record in records {
      add(&self, record.offset, UInt64(record.bytes.count))
      write(record.bytes, at: position)
      position += UInt64(record.bytes.count)
    }
    if hasEndMark { add(&self, .max, .max) }
  }

  /// This file in pieces of random size. Three regions of it are written by turns, as writers do
  /// with headers, descriptors and data; some pieces are written twice, with other bytes first.
  public func records(using generator: inout some RandomNumberGenerator) -> [Record] {
    let bytes = bytes
    let bounds = [0, bytes.count / 5, bytes.count / 2, bytes.count]
    var next = Array(bounds.dropLast())
    var records: [Record] = []
    while let region = (0..<3).filter({ next[$0] < bounds[$0 + 1] })
      .randomElement(using: &generator)
    {
      let longest = [20, 500, 9000].randomElement(using: &generator) ?? 1
      let start = next[region]
      let end = min(bounds[region + 1], start + Int.random(in: 1...longest, using: &generator))
      if Int.random(in: 0..<8, using: &generator) == 0 {
        let from = max(0, start - Int.random(in: 0...100, using: &generator))
        records.append(
          Record(offset: UInt64(from), bytes: [UInt8](repeating: 0xee, count: end - from)))
        // What that spoiled of the pieces before is written again.
        records.append(Record(offset: UInt64(from), bytes: Array(bytes[from..<start])))
      }
      records.append(Record(offset: UInt64(start), bytes: Array(bytes[start..<end])))
      next[region] = end
    }
    return records.filter { !$0.bytes.isEmpty }
  }
}
