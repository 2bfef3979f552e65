import Compression
import Memory

/// A host's memory, and behind it what it has swapped out: frames that are ``SwappedPage``s.
public struct HostMemory: FrameSource {
  private let source: any FrameSource
  private let swap: HostSwap

  public init(_ source: any FrameSource, _ swap: HostSwap) {
    self.source = source
    self.swap = swap
  }

  public func page(_ frame: PageFrameNumber) throws(MemoryError) -> [UInt8] {
    guard let swapped = SwappedPage(frame) else { return try source.page(frame) }
    var absence: Absence?
    let page = unsafe [UInt8](unsafeUninitializedCapacity: Int(pageSize)) { buffer, count in
      let room = UnsafeMutableRawBufferPointer(buffer)
      unsafe room.initializeMemory(as: UInt8.self, repeating: 0)
      absence = unsafe swap.read(swapped, into: room, PageDecompressor())
      count = Int(pageSize)
    }
    if let absence { throw .absent(frame.address, absence) }
    return page
  }

  public func presence(
    from frame: PageFrameNumber, limit: UInt64
  ) -> (absence: Absence?, count: UInt64) {
    SwappedPage(frame) == nil ? source.presence(from: frame, limit: limit) : (nil, 1)
  }

  public var dumpLevel: DumpLevel? { source.dumpLevel }
  public var frameRanges: [Range<PageFrameNumber>] { source.frameRanges }

  public func fileExtent(from frame: PageFrameNumber, limit: UInt64) -> FileExtent? {
    SwappedPage(frame) == nil ? source.fileExtent(from: frame, limit: limit) : nil
  }

  public func makeReader() -> Reader { Reader(source.makeReader(), swap) }

  public final class Reader: FrameReader {
    private let reader: any FrameReader
    private let swap: HostSwap
    private let decompressor = PageDecompressor()

    fileprivate init(_ reader: any FrameReader, _ swap: HostSwap) {
      self.reader = reader
      self.swap = swap
    }

    public func read(
      from frame: PageFrameNumber, into buffer: UnsafeMutableRawBufferPointer
    ) -> [Absence?] {
      // Frames of the machine and swapped pages never follow each other.
      guard SwappedPage(frame) != nil else { return unsafe reader.read(from: frame, into: buffer) }
      return (0..<buffer.count >> Int(pageShift)).map { index in
        let start = index << Int(pageShift)
        let room = unsafe UnsafeMutableRawBufferPointer(
          rebasing: buffer[start..<start + Int(pageSize)])
        let absence =
          SwappedPage(frame + UInt64(index)).map { page in
            unsafe swap.read(page, into: room, decompressor)
          } ?? .corrupt
        if absence != nil { unsafe room.initializeMemory(as: UInt8.self, repeating: 0) }
        return absence
      }
    }
  }
}
