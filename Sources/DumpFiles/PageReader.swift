import Memory

/// One thread's way to read many pages: own buffers and decompression contexts.
///
/// Not `Sendable`: each thread makes its own with ``DumpFile/makeReader()``.
public final class PageReader: FrameReader {
  private let container: Container
  private let scratch = KdumpScratch()

  init(_ container: Container) {
    self.container = container
  }

  /// Reads consecutive frames into `buffer`, 4096 bytes each; a rest of the buffer that is smaller
  /// is left alone. The room of absent pages is zeroed.
  ///
  /// Returns a result per frame: nil where its bytes are in the buffer, else why not.
  public func read(
    from frame: PageFrameNumber, into buffer: UnsafeMutableRawBufferPointer
  ) -> [Absence?] {
    let count = buffer.count / Int(pageSize)
    var results: [Absence?] = []
    results.reserveCapacity(count)
    // Up to 1024 frames at a time bound the scratch memory; no frame is beyond 64 bits of address.
    while results.count < count {
      let piece = min(1024, count - results.count)
      let start = results.count * Int(pageSize)
      let room = unsafe UnsafeMutableRawBufferPointer(
        rebasing: buffer[start..<start + piece * Int(pageSize)])
      let (first, isBeyond) = frame.rawValue.addingReportingOverflow(UInt64(results.count))
      if isBeyond || first >= UInt64.max >> pageShift {
        unsafe room.setAbsent(.notInDump, frames: 0..<UInt64(piece), &results)
        continue
      }
      switch container {
      case .elf(let dump): unsafe dump.read(from: first, into: room, &results)
      case .kdump(let dump): unsafe dump.read(from: first, into: room, &results, scratch)
      }
    }
    return results
  }
}
