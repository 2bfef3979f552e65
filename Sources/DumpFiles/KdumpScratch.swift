import Memory
import SystemPackage

/// What reading runs of pages out of a kdump-compressed file needs and keeps.
@safe final class KdumpScratch {
  /// A stored page of the run that is being read.
  struct Page {
    /// Counted from the run's first frame.
    var index: Int
    var descriptor: PageDescriptor
    var range: Range<UInt64>
  }

  let decompressor = Decompressor()
  var pages: [Page] = []
  /// Pages whose data does not lie behind that of the page before: shared ones, that is zero pages.
  var strays: [Page] = []
  private(set) var input = unsafe UnsafeMutableRawBufferPointer(start: nil, count: 0)
  /// The last stray decoded, for all that come after, and the index of its part.
  var shared: (part: Int, descriptor: PageDescriptor, bytes: [UInt8])?

  deinit {
    unsafe input.deallocate()
  }

  /// At least `count` bytes of room.
  func makeInput(_ count: Int) -> UnsafeMutableRawBufferPointer {
    if unsafe input.count < count {
      unsafe input.deallocate()
      unsafe input = UnsafeMutableRawBufferPointer.allocate(byteCount: count, alignment: 16)
    }
    return unsafe UnsafeMutableRawBufferPointer(rebasing: input[..<count])
  }
}

extension KdumpDump {
  /// The most that is read at once, and the gap between two pages' data worth reading over.
  private static let groupLimit: UInt64 = 512 << 10
  private static let gapLimit: UInt64 = 16 << 10

  /// Reads `buffer.count / 4096` frames; see ``PageReader/read(from:into:)``.
  func read(
    from frame: UInt64, into buffer: UnsafeMutableRawBufferPointer, _ results: inout [Absence?],
    _ scratch: KdumpScratch
  ) {
    let end = frame + UInt64(buffer.count) / pageSize
    var position = frame
    while position < end {
      let (part, partEnd) = self.part(of: position)
      let pieceEnd = min(end, partEnd)
      let first = results.count
      for frame in position..<pieceEnd {
        let absence = absence(of: frame)
        results.append(absence == nil && part == nil ? .missingPart : absence)
      }
      let room = unsafe UnsafeMutableRawBufferPointer(
        rebasing: buffer[Int(position - frame) << 12..<Int(pieceEnd - frame) << 12])
      if let part {
        let run = Run(part: part, first: position, results: first)
        unsafe read(run, into: room, &results, scratch)
      }
      for index in 0..<Int(pieceEnd - position) where results[first + index] != nil {
        unsafe room.page(index).initializeMemory(as: UInt8.self, repeating: 0)
      }
      position = pieceEnd
    }
  }

  /// Consecutive frames of one part that are read together.
  private struct Run {
    /// Index of the part.
    let part: Int
    let first: UInt64
    /// Where the results of the run start.
    let results: Int
  }

  private func read(
    _ run: Run, into buffer: UnsafeMutableRawBufferPointer, _ results: inout [Absence?],
    _ scratch: KdumpScratch
  ) {
    loadDescriptors(run, &results, scratch)
    scratch.strays.removeAll(keepingCapacity: true)
    var next = 0
    while next < scratch.pages.count {
      next = unsafe readGroup(run, startingAt: next, into: buffer, &results, scratch)
    }
    for page in scratch.strays {
      results[run.results + page.index] = unsafe readStray(
        run, page, into: buffer.page(page.index), scratch)
    }
  }

  /// Fills `scratch.pages` with the stored pages of the run that can be read, and says of the
  /// others why not.
  private func loadDescriptors(
    _ run: Run, _ results: inout [Absence?], _ scratch: KdumpScratch
  ) {
    scratch.pages.removeAll(keepingCapacity: true)
    let indices = run.results..<results.count
    let stored = results[indices].count { $0 == nil }
    guard stored > 0 else { return }
    let file = parts[run.part].file
    let size = KdumpLayout.Descriptor.size
    let offset = descriptorOffset(of: run.first, in: parts[run.part])
    let table: [UInt8]
    do throws(DumpFileError) {
      table = try file.bytes(at: offset, count: stored * size)
    } catch {
      for index in indices where results[index] == nil {
        results[index] = .corrupt
        guard case .readFailed(_, _, let code) = error else { continue }
        damage.add(run.first + UInt64(index - run.results), file.path, offset, .readFailed(code))
      }
      return
    }
    var entry = 0
    for index in indices where results[index] == nil {
      defer { entry += size }
      guard let descriptor = PageDescriptor(table, at: entry) else {
        results[index] = .truncated
        continue
      }
      switch descriptor.storage(fileSize: file.size) {
      case .absent(let absence):
        results[index] = absence
        if absence == .corrupt {
          damage.add(
            run.first + UInt64(index - run.results), file.path, offset + UInt64(entry),
            .badSize(descriptor.size))
        }
      case .at(let range):
        scratch.pages.append(
          KdumpScratch.Page(index: index - run.results, descriptor: descriptor, range: range))
      }
    }
  }

  /// Reads the pages from `start` of `scratch.pages` on whose data lies together. Returns the index
  /// of the first page that was left for another group.
  private func readGroup(
    _ run: Run, startingAt start: Int, into buffer: UnsafeMutableRawBufferPointer,
    _ results: inout [Absence?], _ scratch: KdumpScratch
  ) -> Int {
    let first = scratch.pages[start]
    if let shared = scratch.shared, shared.descriptor == first.descriptor, shared.part == run.part {
      scratch.strays.append(first)
      return start + 1
    }
    var end = first.range.upperBound
    // Pages stored as they are, of frames one after the other, go straight to their place.
    var isPlain = first.descriptor.flags & KdumpLayout.Flags.compression == 0
    var members: [Int] = [start]
    var next = start + 1
    while next < scratch.pages.count {
      let page = scratch.pages[next]
      if page.range.lowerBound < end {
        scratch.strays.append(page)
      } else if page.range.lowerBound - end <= Self.gapLimit,
        page.range.upperBound - first.range.lowerBound <= Self.groupLimit
      {
        isPlain =
          isPlain && page.range.lowerBound == end
          && page.descriptor.flags & KdumpLayout.Flags.compression == 0
          && page.index == first.index + members.count
        members.append(next)
        end = page.range.upperBound
      } else {
        break
      }
      next += 1
    }
    let length = Int(end - first.range.lowerBound)
    isPlain = isPlain && length == members.count * Int(pageSize)
    let room =
      isPlain
      ? unsafe UnsafeMutableRawBufferPointer(
        rebasing: buffer[first.index << 12..<first.index << 12 + length])
      : unsafe scratch.makeInput(length)
    let got = (try? unsafe parts[run.part].file.read(at: first.range.lowerBound, into: room)) ?? 0
    for member in members {
      let page = scratch.pages[member]
      let from = Int(page.range.lowerBound - first.range.lowerBound)
      let to = Int(page.range.upperBound - first.range.lowerBound)
      if to > got {
        continue
      } else if !isPlain {
        results[run.results + page.index] = unsafe decode(
          run, page, UnsafeRawBufferPointer(rebasing: room[from..<to]),
          into: buffer.page(page.index), scratch)
      }
    }
    if got < length {
      // One bad block, or a hole of a flattened file, must cost one page: each page for itself.
      // Last of all, as the room is used again.
      for member in members {
        let page = scratch.pages[member]
        if Int(page.range.upperBound - first.range.lowerBound) > got {
          results[run.results + page.index] = unsafe readAlone(
            run, page, into: buffer.page(page.index), scratch)
        }
      }
    }
    return next
  }

  private func readStray(
    _ run: Run, _ page: KdumpScratch.Page, into room: UnsafeMutableRawBufferPointer,
    _ scratch: KdumpScratch
  ) -> Absence? {
    if let shared = scratch.shared, shared.descriptor == page.descriptor, shared.part == run.part {
      unsafe room.copyBytes(from: shared.bytes)
      return nil
    }
    let absence = unsafe readAlone(run, page, into: room, scratch)
    if absence == nil { scratch.shared = unsafe (run.part, page.descriptor, [UInt8](room)) }
    return absence
  }

  private func readAlone(
    _ run: Run, _ page: KdumpScratch.Page, into room: UnsafeMutableRawBufferPointer,
    _ scratch: KdumpScratch
  ) -> Absence? {
    let file = parts[run.part].file
    let input = unsafe scratch.makeInput(page.range.count)
    do throws(Errno) {
      guard try unsafe file.read(at: page.range.lowerBound, into: input) == input.count else {
        return .truncated
      }
    } catch {
      damage.add(
        run.first + UInt64(page.index), file.path, page.range.lowerBound, .readFailed(error))
      return .corrupt
    }
    return unsafe decode(run, page, UnsafeRawBufferPointer(input), into: room, scratch)
  }

  private func decode(
    _ run: Run, _ page: KdumpScratch.Page, _ stored: UnsafeRawBufferPointer,
    into room: UnsafeMutableRawBufferPointer, _ scratch: KdumpScratch
  ) -> Absence? {
    let flags = page.descriptor.flags
    if unsafe scratch.decompressor.decode(stored, flags: flags, into: room) { return nil }
    let what: DamagedPage.Damage =
      if flags & ~(KdumpLayout.Flags.known & ~KdumpLayout.Flags.compression) == 0 {
        .badSize(page.descriptor.size)
      } else if let codec = KdumpLayout.Flags.codec(flags) {
        .undecodable(codec: codec)
      } else {
        .unknownCompression(flags: flags)
      }
    damage.add(
      run.first + UInt64(page.index), parts[run.part].file.path, page.range.lowerBound, what)
    return .corrupt
  }
}

extension UnsafeMutableRawBufferPointer {
  /// The room of a page, counted from the buffer's start.
  fileprivate func page(_ index: Int) -> UnsafeMutableRawBufferPointer {
    let start = index * Int(pageSize)
    return unsafe UnsafeMutableRawBufferPointer(rebasing: self[start..<start + Int(pageSize)])
  }
}
