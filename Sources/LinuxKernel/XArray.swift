import Memory

/// A kernel's `struct xarray` (include/linux/xarray.h, v4.20, lib/xarray.c): a tree of `xa_node`s
/// over 64-bit indexes.
public struct XArray: Sendable {
  private let array: KernelObject
  private let node: BTFType

  public init(_ array: KernelObject) throws(KernelError) {
    self.array = array
    guard let node = array.type.btf.structure(named: "xa_node") else { throw .noType("xa_node") }
    self.node = node
  }

  /// What is stored at one index: the raw entry, 0 where nothing is, which holds from index `first` up
  /// to and including `last`.
  public func entry(
    at index: UInt64
  ) throws(KernelError) -> (entry: UInt64, first: UInt64, last: UInt64) {
    var entry = try array.member("xa_head").unsigned()
    var shift = UInt64.max
    var first = index
    var last = index
    while let node = try self.node(entry, below: shift) {
      let slots = try node.object.member("slots")
      let mask = (slots.type.elementCount ?? 64) - 1
      // The root covers the first indexes only; nothing is behind them.
      if shift == .max, node.shift < 58, index >> node.shift > mask { return (0, index, .max) }
      let slot = index >> node.shift & mask
      entry = try slots.element(Int(clamping: slot)).unsigned()
      shift = node.shift
      last = index | ((1 << shift) - 1)
      first = last &- ((1 << shift) - 1)
      // A sibling entry names the slot of the same node that holds the entry of its range.
      if entry & 3 == 2, entry < 4096 {
        let head = entry >> 2 & mask
        entry = try slots.element(Int(clamping: head)).unsigned()
        first = first &- ((slot &- head) << shift)
      }
    }
    // An array whose only entry is at index 0 has it in the head itself.
    if shift == .max, entry == 0 || index != 0 { return (0, index, .max) }
    return (entry, first, last)
  }

  /// All entries that are pointers, in order of their index; at most `limit`.
  public func pointers(limit: Int) throws(KernelError) -> [VirtualAddress] {
    var found: [VirtualAddress] = []
    var visited = 0
    // Depth is bounded because the shift falls strictly from node to node.
    func visit(_ entry: UInt64, below shift: UInt64) throws(KernelError) {
      visited += 1
      guard visited <= 64 * limit + 64, found.count <= limit else {
        throw .endless(what: "xarray", at: array.address, limit: limit)
      }
      guard let node = try node(entry, below: shift) else {
        if entry != 0, entry & 3 == 0 { found.append(VirtualAddress(entry)) }
        return
      }
      let slots = try node.object.member("slots")
      for slot in 0..<Int(clamping: min(slots.type.elementCount ?? 64, 64)) {
        try visit(try slots.element(slot).unsigned(), below: node.shift)
      }
    }
    try visit(try array.member("xa_head").unsigned(), below: .max)
    return found
  }

  /// The node that an entry stands for, if it does: bits 0-1 are 2, and it is above the reserved
  /// values (`xa_is_node`).
  private func node(
    _ entry: UInt64, below limit: UInt64
  ) throws(KernelError) -> (object: KernelObject, shift: UInt64)? {
    guard entry & 3 == 2, entry > 4096 else { return nil }
    let object = KernelObject(in: array.memory, at: VirtualAddress(entry - 2), type: node)
    let shift = try object.member("shift").unsigned()
    guard shift < limit, shift < 64 else {
      throw .endless(what: "xarray", at: array.address, limit: 64)
    }
    return (object, shift)
  }
}
