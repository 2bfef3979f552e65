import Memory

/// A memory seen through page tables.
public struct VirtualMemory: Sendable {
  public let physical: any PhysicalMemory
  public let tables: PageTables

  public init(physical: any PhysicalMemory, tables: PageTables) {
    self.physical = physical
    self.tables = tables
  }

  public func translate(_ address: VirtualAddress) throws(MemoryError) -> PhysicalAddress {
    var walker = PageTableWalker(tables, in: physical)
    return try translate(address, by: &walker)
  }

  /// `count` bytes from `address` on. `count` must be bounded by the caller: it is allocated.
  public func read(_ address: VirtualAddress, count: Int) throws(MemoryError) -> [UInt8] {
    var walker = PageTableWalker(tables, in: physical)
    return try address.read(count: count) { position throws(MemoryError) in
      try physical.page(translate(position, by: &walker).frame)
    }
  }

  public func load<Integer: FixedWidthInteger>(
    _ address: VirtualAddress, as type: Integer.Type = Integer.self
  ) throws(MemoryError) -> Integer {
    // A read that does not throw has the length asked for.
    try read(address, count: MemoryLayout<Integer>.size).load(at: 0) ?? 0
  }

  /// The NUL-terminated string at `address`, cut at `limit` bytes or where memory ends.
  public func string(_ address: VirtualAddress, limit: Int = 256) throws(MemoryError) -> String {
    var bytes: [UInt8] = []
    var position = address
    while bytes.count < limit {
      let rest = min(limit - bytes.count, Int(pageSize) - position.pageOffset)
      let piece: [UInt8]
      do throws(MemoryError) {
        piece = try read(position, count: rest)
      } catch {
        if bytes.isEmpty { throw error }
        break
      }
      if let nul = piece.firstIndex(of: 0) {
        bytes += piece[..<nul]
        break
      }
      bytes += piece
      position = position + UInt64(rest)
    }
    return String(decoding: bytes, as: UTF8.self)
  }

  private func translate(
    _ address: VirtualAddress, by walker: inout PageTableWalker
  ) throws(MemoryError) -> PhysicalAddress {
    guard tables.isCanonical(address) else { throw .notMapped(address, entry: 0) }
    switch walker.lookUp(address).mapping {
    case .page(let physical, _): return physical
    case .notPresent(let entry): throw .notMapped(address, entry: entry)
    case .tableAbsent(let table, let absence):
      throw .tableAbsent(address, table: table, absence)
    }
  }
}
