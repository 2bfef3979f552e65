import Memory

/// A kernel's red-black tree (`struct rb_root`, include/linux/rbtree_types.h).
struct RedBlackTree: Sendable {
  private let root: KernelObject

  /// Deeper than a balanced tree of all that memory can hold.
  private static let maximumDepth = 128

  init(_ root: KernelObject) { self.root = root }

  /// All nodes, in order.
  func nodes(limit: Int) throws(KernelError) -> [KernelObject] {
    var nodes: [KernelObject] = []
    var above: [KernelObject] = []
    var next = try root["rb_node"].dereferenced()
    while next != nil || !above.isEmpty {
      while let node = next {
        guard above.count < Self.maximumDepth else { throw endless(Self.maximumDepth) }
        above.append(node)
        next = try node["rb_left"].dereferenced()
      }
      guard let node = above.popLast() else { break }
      guard nodes.count < limit else { throw endless(limit) }
      nodes.append(node)
      next = try node["rb_right"].dereferenced()
    }
    return nodes
  }

  /// The node with a key; nil if none has it.
  func node(
    where key: UInt64, is keyOf: (KernelObject) throws(KernelError) -> UInt64
  ) throws(KernelError) -> KernelObject? {
    var next = try root["rb_node"].dereferenced()
    for _ in 0..<Self.maximumDepth {
      guard let node = next else { return nil }
      let other = try keyOf(node)
      if other == key { return node }
      next = try node[key < other ? "rb_left" : "rb_right"].dereferenced()
    }
    throw endless(Self.maximumDepth)
  }

  private func endless(_ limit: Int) -> KernelError {
    .endless(what: "tree \(root.path)", at: root.address, limit: limit)
  }
}
