import Glibc
import Memory
import Synchronization

/// Searches a memory on several threads.
public struct MemorySearch: Sendable {
  private let map: MemoryMap
  private let source: any FrameSource
  private let threads: Int

  public init(_ map: MemoryMap, _ source: any FrameSource, threads: Int) {
    self.map = map
    self.source = source
    self.threads = threads
  }

  /// Where `wanted` lies, ascending. It is not found across the border of two pieces of 1 MiB.
  public func addresses(of wanted: [UInt8]) -> [GuestPhysicalAddress] {
    addresses(of: wanted, andWords: 0) { _ in false }.addresses
  }

  /// In one pass, where `wanted` lies, and the values of aligned words for which `isWanted` is
  /// true, each once; all ascending. Of the words of a piece of 1 MiB the first `limit` count.
  func addresses(
    of wanted: [UInt8], andWords limit: Int, where isWanted: @escaping @Sendable (UInt64) -> Bool
  ) -> (addresses: [GuestPhysicalAddress], words: [UInt64]) {
    let found = Mutex<(addresses: [GuestPhysicalAddress], words: Set<UInt64>)>(([], []))
    unsafe forEachPiece { start, bytes in
      let offsets = unsafe Self.offsets(of: wanted, in: bytes)
      var words: Set<UInt64> = []
      for offset in stride(from: 0, to: limit > 0 ? bytes.count : 0, by: 8) {
        let word = unsafe bytes.loadUnaligned(fromByteOffset: offset, as: UInt64.self)
        if isWanted(word), words.insert(word).inserted, words.count == limit { break }
      }
      found.withLock {
        $0.addresses += offsets.map { start + UInt64($0) }
        $0.words.formUnion(words)
      }
    }
    return found.withLock { ($0.addresses.sorted(), $0.words.sorted()) }
  }

  /// Gives `body` all memory at hand, at most 1 MiB at a time, in no order and by all threads.
  private func forEachPiece(
    _ body: @escaping @Sendable (GuestPhysicalAddress, UnsafeRawBufferPointer) -> Void
  ) {
    map.forEachWindow { _, runs in
      let pieces = runs.flatMap(\.pieces)
      let next = Atomic<Int>(0)
      onThreads(min(threads, pieces.count)) { _ in
        let reader = source.makeReader()
        let room = UnsafeMutableRawBufferPointer.allocate(
          byteCount: maximumPiecePages * Int(pageSize), alignment: Int(pageSize))
        defer { unsafe room.deallocate() }
        while true {
          let index = next.add(1, ordering: .relaxed).oldValue
          guard index < pieces.count else { break }
          let piece = pieces[index]
          let part = unsafe UnsafeMutableRawBufferPointer(
            rebasing: room[..<(piece.pages * Int(pageSize))])
          _ = unsafe reader.read(from: piece.frame, into: part)
          unsafe body(piece.start, UnsafeRawBufferPointer(part))
        }
      }
    }
  }

  private static func offsets(of wanted: [UInt8], in bytes: UnsafeRawBufferPointer) -> [Int] {
    guard let base = bytes.baseAddress else { return [] }
    var offsets: [Int] = []
    var position = 0
    while position < bytes.count {
      let hit = unsafe wanted.withUnsafeBytes { wanted -> UnsafeMutableRawPointer? in
        guard let start = wanted.baseAddress else { return nil }
        return unsafe memmem(base + position, bytes.count - position, start, wanted.count)
      }
      guard let hit = unsafe hit else { break }
      let offset = unsafe UnsafeRawPointer(hit) - base
      offsets.append(offset)
      position = offset + 1
    }
    return offsets
  }
}
