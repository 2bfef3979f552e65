import Memory

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
  /// The last stray decoded, for all that come after.
  var shared: (descriptor: PageDescriptor, bytes: [UInt8])?

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
    _ file: InputFile, from frame: UInt64, into buffer: UnsafeMutableRawBufferPointer,
    _ results: inout [Absence?], _ scratch: KdumpScratch
  ) {
    let count = buffer.count / Int(pageSize)
    let first = results.count
    for index in 0..<count {
      results.append(absence(of: frame + UInt64(index)))
    }
    loadDescriptors(file, from: frame, &results[first...], scratch)

    scratch.strays.removeAll(keepingCapacity: true)
    var next = 0
    while next < scratch.pages.count {
      next = unsafe readGroup(file, startingAt: next, into: buffer, &results[first...], scratch)
    }
    for page in scratch.strays {
      unsafe readStray(file, page, into: buffer, &results[first...], scratch)
    }
    for index in 0..<count where results[first + index] != nil {
      unsafe buffer.page(index).initializeMemory(as: UInt8.self, repeating: 0)
    }
  }

  /// Fills `scratch.pages` with the stored pages of the run that can be read, and says of the
  /// others why not.
  private func loadDescriptors(
    _ file: InputFile, from frame: UInt64, _ results: inout ArraySlice<Absence?>,
    _ scratch: KdumpScratch
  ) {
    scratch.pages.removeAll(keepingCapacity: true)
    let stored = results.count { $0 == nil }
    guard stored > 0 else { return }
    let size = KdumpLayout.Descriptor.size
    let table: [UInt8]
    do throws(DumpFileError) {
      table = try file.bytes(at: descriptorOffset(of: frame), count: stored * size)
    } catch {
      for index in results.indices where results[index] == nil { results[index] = .corrupt }
      return
    }
    var entry = 0
    for index in results.indices where results[index] == nil {
      guard let descriptor = PageDescriptor(table, at: entry) else {
        results[index] = .truncated
        continue
      }
      entry += size
      switch descriptor.storage(fileSize: file.size) {
      case .absent(let absence): results[index] = absence
      case .at(let range):
        scratch.pages.append(
          KdumpScratch.Page(
            index: index - results.startIndex, descriptor: descriptor, range: range))
      }
    }
  }

  /// Reads the pages from `start` of `scratch.pages` on whose data lies together. Returns the index
  /// of the first page that was left for another group.
  private func readGroup(
    _ file: InputFile, startingAt start: Int, into buffer: UnsafeMutableRawBufferPointer,
    _ results: inout ArraySlice<Absence?>, _ scratch: KdumpScratch
  ) -> Int {
    let first = scratch.pages[start]
    if scratch.shared?.descriptor == first.descriptor {
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
    guard let got = try? unsafe file.read(at: first.range.lowerBound, into: room) else {
      // One bad block must cost one page: each page for itself.
      for member in members {
        let page = scratch.pages[member]
        results[results.startIndex + page.index] = unsafe readAlone(
          file, page, into: buffer.page(page.index), scratch)
      }
      return next
    }
    for member in members {
      let page = scratch.pages[member]
      let from = Int(page.range.lowerBound - first.range.lowerBound)
      let to = Int(page.range.upperBound - first.range.lowerBound)
      if to > got {
        results[results.startIndex + page.index] = .truncated
      } else if !isPlain,
        unsafe !scratch.decompressor.decode(
          UnsafeRawBufferPointer(rebasing: room[from..<to]), flags: page.descriptor.flags,
          into: buffer.page(page.index))
      {
        results[results.startIndex + page.index] = .corrupt
      }
    }
    return next
  }

  private func readStray(
    _ file: InputFile, _ page: KdumpScratch.Page, into buffer: UnsafeMutableRawBufferPointer,
    _ results: inout ArraySlice<Absence?>, _ scratch: KdumpScratch
  ) {
    let room = unsafe buffer.page(page.index)
    if let shared = scratch.shared, shared.descriptor == page.descriptor {
      unsafe room.copyBytes(from: shared.bytes)
      return
    }
    let absence = unsafe readAlone(file, page, into: room, scratch)
    results[results.startIndex + page.index] = absence
    if absence == nil { scratch.shared = unsafe (page.descriptor, [UInt8](room)) }
  }

  private func readAlone(
    _ file: InputFile, _ page: KdumpScratch.Page, into room: UnsafeMutableRawBufferPointer,
    _ scratch: KdumpScratch
  ) -> Absence? {
    let input = unsafe scratch.makeInput(page.range.count)
    guard let got = try? unsafe file.read(at: page.range.lowerBound, into: input) else {
      return .corrupt
    }
    guard got == input.count else { return .truncated }
    return unsafe scratch.decompressor.decode(
      UnsafeRawBufferPointer(input), flags: page.descriptor.flags, into: room) ? nil : .corrupt
  }
}

extension UnsafeMutableRawBufferPointer {
  /// The room of a page, counted from the buffer's start.
  fileprivate func page(_ index: Int) -> UnsafeMutableRawBufferPointer {
    let start = index * Int(pageSize)
    return unsafe UnsafeMutableRawBufferPointer(rebasing: self[start..<start + Int(pageSize)])
  }
}
