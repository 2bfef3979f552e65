import Memory

/// A kernel's `struct maple_tree` (include/linux/maple_tree.h, lib/maple_tree.c, since 6.1): ranges
/// of 64-bit indexes, each with an entry. The mappings of a process are in one.
struct MapleTree {
  private let tree: KernelObject
  private let node: BTFType
  private let types: NodeTypes

  /// `enum maple_type`, which an encoded pointer tells of the node it points to.
  private struct NodeTypes {
    let dense: UInt64
    let leaf: UInt64
    let range: UInt64
    let rangeWithGaps: UInt64

    init(_ btf: BTF) throws(KernelError) {
      func value(_ name: String) throws(KernelError) -> UInt64 {
        guard let value = btf.enumerator(named: name) else { throw .noType("maple_type.\(name)") }
        return UInt64(bitPattern: value)
      }
      dense = try value("maple_dense")
      leaf = try value("maple_leaf_64")
      range = try value("maple_range_64")
      rangeWithGaps = try value("maple_arange_64")
    }
  }

  /// What a walk found: the entries that are pointers, in order, and what could not be read of the
  /// tree.
  struct Entries {
    fileprivate(set) var pointers: [VirtualAddress] = []
    fileprivate(set) var failures: [KernelError] = []
  }

  init(_ tree: KernelObject) throws(KernelError) {
    self.tree = tree
    let btf = tree.type.btf
    guard let node = btf.structure(named: "maple_node") else { throw .noType("maple_node") }
    self.node = node
    types = try NodeTypes(btf)
  }

  /// All entries that are pointers, at most `limit`. A node that cannot be read costs what is below
  /// it only.
  func entries(limit: Int) throws(KernelError) -> Entries {
    var walk = Walk(limit: limit)
    let root = try tree["ma_root"].unsigned()
    // Bits 0 and 1 mark a node (`xa_is_node`). Without one the root is the entry of index 0 alone.
    if root & 3 == 2, root > 4096 {
      visit(root, from: 0, through: .max, depth: 0, &walk)
    } else if Self.isPointer(root) {
      walk.found.pointers.append(VirtualAddress(root))
    }
    return walk.found
  }

  private struct Walk {
    let limit: Int
    var nodes = 0
    var found = Entries()

    /// A tree of `limit` entries has fewer nodes than entries.
    var isExhausted: Bool { nodes > limit || found.pointers.count >= limit }
  }

  /// More levels than 64-bit indexes need, with at least two slots in each node.
  private static let maximumDepth = 64

  private func visit(
    _ encoded: UInt64, from first: UInt64, through last: UInt64, depth: Int, _ walk: inout Walk
  ) {
    walk.nodes += 1
    guard depth < Self.maximumDepth, !walk.isExhausted else {
      if walk.found.failures.isEmpty {
        walk.found.failures.append(
          .endless(what: "maple tree \(tree.path)", at: tree.address, limit: walk.limit))
      }
      return
    }
    do throws(KernelError) {
      let type = encoded >> 3 & 15
      let object = KernelObject(
        in: tree.memory, at: VirtualAddress(encoded & ~255), type: node, path: "maple_node")
      let slots = try slots(of: object, type: type, from: first, through: last)
      for slot in slots where slot.entry != 0 && !walk.isExhausted {
        if type == types.range || type == types.rangeWithGaps {
          // Below the root, a node is told by its parent, not by its pointer.
          guard Self.isPointer(slot.entry) else {
            throw .unexpectedKind(type: "maple_node.slot", needed: "a node below a node")
          }
          visit(slot.entry, from: slot.first, through: slot.last, depth: depth + 1, &walk)
        } else if Self.isPointer(slot.entry) {
          walk.found.pointers.append(VirtualAddress(slot.entry))
        }
      }
    } catch {
      // Damage can be everywhere at once; the first places tell enough.
      if walk.found.failures.count < 16 { walk.found.failures.append(error) }
    }
  }

  private struct Slot {
    let first: UInt64
    let last: UInt64
    let entry: UInt64
  }

  /// The slots in use. A pivot is the last index of its slot; the last slot has none, or a pivot of
  /// 0, and ends where its node does.
  private func slots(
    of object: KernelObject, type: UInt64, from first: UInt64, through last: UInt64
  ) throws(KernelError) -> [Slot] {
    guard type != types.dense else {
      let array = try object["slot"]
      var slots: [Slot] = []
      for index in 0..<(try Self.count(of: array)) {
        let position = first &+ UInt64(index)
        let entry = try array.element(index).unsigned()
        slots.append(Slot(first: position, last: position, entry: entry))
      }
      return slots
    }
    let body: KernelObject
    switch type {
    case types.leaf, types.range: body = try object["mr64"]
    case types.rangeWithGaps: body = try object["ma64"]
    default: throw .unexpectedKind(type: "maple_node", needed: "of a known type: it is \(type)")
    }
    let pivots = try body["pivot"]
    let entries = try body["slot"]
    let pivotCount = try Self.count(of: pivots)
    var slots: [Slot] = []
    var start = first
    for index in 0..<(try Self.count(of: entries)) {
      var end = index < pivotCount ? try pivots.element(index).unsigned() : last
      if end == 0, index > 0 { end = last }
      guard start <= end, end <= last else {
        throw .unexpectedKind(type: "maple_node.pivot", needed: "in the range of its node")
      }
      slots.append(
        Slot(first: start, last: end, entry: try entries.element(index).unsigned()))
      if end == last { break }
      start = end + 1
    }
    return slots
  }

  private static func count(of array: KernelObject) throws(KernelError) -> Int {
    guard let count = array.type.elementCount, (1...64).contains(count) else {
      throw .unexpectedKind(type: array.path, needed: "an array of a node")
    }
    return Int(count)
  }

  private static func isPointer(_ entry: UInt64) -> Bool { entry & 3 == 0 && entry > 4096 }
}
