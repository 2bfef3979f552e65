import DumpFiles
import Memory

/// The memory of a process out of its core, by virtual address.
///
/// Pages of the executable that the core leaves out, as the kernel does with what was never written
/// to, are taken from the executable's file if that is at hand.
public struct ProcessImage: Sendable {
  public let core: ProcessCore
  /// The core's memory: a frame's number is virtual address >> 12.
  public let source: any FrameSource
  /// The file that the process runs, with its name as the process mapped it.
  var program: (file: ProgramFile, name: String)?

  public init(_ core: ProcessCore, in source: any FrameSource) {
    self.core = core
    self.source = source
  }

  /// The 4096 bytes of the page that holds `address`.
  public func page(at address: VirtualAddress) throws(ProcessMemoryError) -> [UInt8] {
    do throws(MemoryError) {
      return try source.page(PageFrameNumber(address.rawValue >> pageShift))
    } catch {
      if let page = programPage(at: address) { return page }
      guard case .absent(_, let absence) = error else {
        throw ProcessMemoryError(address: address, absence: .corrupt)
      }
      throw ProcessMemoryError(address: address, absence: absence)
    }
  }

  private func programPage(at address: VirtualAddress) -> [UInt8]? {
    guard let program, let mapping = core.file(at: address), mapping.path == program.name else {
      return nil
    }
    let start = address - UInt64(address.pageOffset)
    guard mapping.start <= start else { return nil }
    let bytes = program.file.bytes(
      at: mapping.fileOffset &+ start.distance(from: mapping.start), count: Int(pageSize))
    guard !bytes.isEmpty else { return nil }
    return bytes + [UInt8](repeating: 0, count: Int(pageSize) - bytes.count)
  }

  /// `count` bytes from `address` on. `count` must be bounded by the caller: it is allocated.
  public func read(
    _ address: VirtualAddress, count: Int
  ) throws(ProcessMemoryError) -> [UInt8] {
    try address.read(count: count) { position throws(ProcessMemoryError) in try page(at: position) }
  }

  public func load<Integer: FixedWidthInteger>(
    _ address: VirtualAddress, as type: Integer.Type = Integer.self
  ) throws(ProcessMemoryError) -> Integer {
    // A read that does not throw has the length asked for.
    try read(address, count: MemoryLayout<Integer>.size).load(at: 0) ?? 0
  }

  public func pointer(_ address: VirtualAddress) throws(ProcessMemoryError) -> VirtualAddress {
    VirtualAddress(try load(address))
  }

  /// The text up to the first NUL at `address`, or nil if it is longer than `limit` or not at hand.
  public func string(_ address: VirtualAddress, limit: Int = 256) -> String? {
    var bytes: [UInt8] = []
    while bytes.count < limit {
      let position = address + UInt64(bytes.count)
      guard let page = try? page(at: position) else { return nil }
      let rest = page[position.pageOffset...]
      if let nul = rest.firstIndex(of: 0) {
        let text = bytes + rest[..<nul]
        return text.count < limit ? String(decoding: text, as: UTF8.self) : nil
      }
      bytes += rest
    }
    return nil
  }

  /// Whether the core has the bytes at `address`.
  public func has(_ address: VirtualAddress) -> Bool {
    source.presence(from: PageFrameNumber(address.rawValue >> pageShift), limit: 1).absence == nil
  }

  /// Calls `body` with each aligned word of 8 bytes in `ranges` that is not zero and its address,
  /// until that returns false. What the core does not have is passed over.
  public func forEachWord(
    in ranges: [Range<VirtualAddress>], _ body: (VirtualAddress, UInt64) -> Bool
  ) {
    let reader = source.makeReader()
    let unit = 64
    let room = UnsafeMutableRawBufferPointer.allocate(
      byteCount: unit * Int(pageSize), alignment: Int(pageSize))
    defer { unsafe room.deallocate() }
    for range in ranges {
      var frame = PageFrameNumber(range.lowerBound.rawValue >> pageShift)
      let end = PageFrameNumber((range.upperBound.rawValue &+ (pageSize - 1)) >> pageShift)
      while frame < end {
        let (absence, count) = source.presence(from: frame, limit: end.distance(from: frame))
        guard absence == nil else {
          frame = frame + max(1, count)
          continue
        }
        let pages = Int(min(count, UInt64(unit)))
        let part = unsafe UnsafeMutableRawBufferPointer(
          rebasing: room[..<(pages * Int(pageSize))])
        // Where reading fails, the room is zero.
        _ = unsafe reader.read(from: frame, into: part)
        let start = VirtualAddress(frame.rawValue << pageShift)
        for offset in stride(from: 0, to: part.count, by: 8) {
          let word = unsafe part.load(fromByteOffset: offset, as: UInt64.self)
          if word != 0, !body(start + UInt64(offset), word) { return }
        }
        frame = frame + UInt64(pages)
      }
    }
  }
}

/// Memory of a process is not in its core.
public struct ProcessMemoryError: Error, Hashable, Sendable {
  public let address: VirtualAddress
  public let absence: Absence
}

extension ProcessMemoryError: CustomStringConvertible {
  public var description: String { "address \(address) of the process is \(explanation)" }

  private var explanation: String {
    switch absence {
    case .excluded: "mapped, but was not put into the core"
    case .notInDump: "not in the core"
    case .truncated: "beyond the end of the truncated core"
    case .corrupt: "damaged in the core"
    case .missingPart: "in another file"
    }
  }
}
