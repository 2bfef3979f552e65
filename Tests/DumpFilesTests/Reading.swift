import DumpFiles
import Memory
import SyntheticDumps
import SystemPackage
import Testing

let zeros = [UInt8](repeating: 0, count: Int(pageSize))

/// What a dump must say of a frame: its bytes, or why they are not at hand.
enum Expected: Equatable {
  case bytes([UInt8])
  case absent(Absence)

  var absence: Absence? {
    if case .absent(let absence) = self { absence } else { nil }
  }
}

/// Opens a file made in code. Its name is gone when this returns; the open file lives on.
func openDump(_ file: SyntheticFile) throws -> DumpFile {
  let saved = try file.save()
  return try DumpFile.open(FilePath(saved.path))
}

/// Opens the files of a split dump.
func openDump(parts: [SyntheticFile]) throws -> DumpFile {
  let saved = try parts.map { try $0.save() }
  // The files must not go before they are opened.
  return try withExtendedLifetime(saved) { try DumpFile.open(saved.map { FilePath($0.path) }) }
}

/// The error that opening such a file gives.
func openingError(_ file: SyntheticFile) -> DumpFileError? {
  do {
    _ = try openDump(file)
    return nil
  } catch {
    return error as? DumpFileError
  }
}

extension DumpFile {
  /// What one page read gives.
  func read(_ frame: PageFrameNumber) -> Expected? {
    do throws(MemoryError) {
      return .bytes(try page(frame))
    } catch {
      guard case .absent(let address, let absence) = error, address == frame.address else {
        return nil
      }
      return .absent(absence)
    }
  }
}

extension PageReader {
  /// What reading a run gives. The buffer is dirty before, so that room not written shows.
  func read(from frame: PageFrameNumber, count: Int) -> [Expected] {
    let size = Int(pageSize)
    var buffer = [UInt8](repeating: 0xa5, count: count * size)
    let results = unsafe buffer.withUnsafeMutableBytes { unsafe read(from: frame, into: $0) }
    return results.enumerated().map { index, absence in
      let page = Array(buffer[index * size..<(index + 1) * size])
      guard let absence else { return .bytes(page) }
      return page == zeros ? .absent(absence) : .bytes(page)
    }
  }
}

/// Checks that single pages, runs of all sizes, and presence all tell of `frames` what is expected.
///
/// `presenceIsExact` is false where damage shows only when a page is read.
func expectReads(
  _ dump: DumpFile, in frames: Range<UInt64>, presenceIsExact: Bool = true,
  sourceLocation: SourceLocation = #_sourceLocation,
  _ expected: (PageFrameNumber) -> Expected
) {
  let truth = frames.map { expected(PageFrameNumber($0)) }

  let wrongPages = zip(frames, truth).filter { dump.read(PageFrameNumber($0)) != $1 }.map(\.0)
  #expect(wrongPages == [], "page(_:)", sourceLocation: sourceLocation)

  let reader = dump.makeReader()
  var generator = SeededGenerator(seed: frames.upperBound)
  for longest in [1, 3, 70, 1024] {
    var wrong: [UInt64] = []
    var position = 0
    while position < truth.count {
      let count = min(Int.random(in: 1...longest, using: &generator), truth.count - position)
      let start = frames.lowerBound + UInt64(position)
      let run = reader.read(from: PageFrameNumber(start), count: count)
      #expect(run.count == count, sourceLocation: sourceLocation)
      for (index, result) in run.enumerated() where result != truth[position + index] {
        wrong.append(start + UInt64(index))
      }
      position += count
    }
    #expect(wrong == [], "runs of up to \(longest)", sourceLocation: sourceLocation)
  }

  guard presenceIsExact else { return }
  for limit: UInt64 in [1, 5, 64, 1 << 40] {
    var position = 0
    while position < truth.count {
      let frame = frames.lowerBound + UInt64(position)
      let (absence, count) = dump.presence(from: PageFrameNumber(frame), limit: limit)
      guard absence == truth[position].absence, (1...limit).contains(count) else {
        Issue.record(
          "presence(from: \(frame), limit: \(limit)) is \((absence, count))",
          sourceLocation: sourceLocation)
        break
      }
      let end = position + Int(min(count, UInt64(truth.count - position)))
      #expect(
        truth[position..<end].allSatisfy { $0.absence == absence }, sourceLocation: sourceLocation)
      position = end
    }
  }
}
