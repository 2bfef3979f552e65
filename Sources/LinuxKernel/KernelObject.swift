import Memory
import X86

/// A typed object in a kernel's memory: where it is and what BTF says it is. Nothing is read until
/// a value is asked for.
public struct KernelObject: Sendable {
  public let memory: VirtualMemory
  public let address: VirtualAddress
  public let type: BTFType
  private let bits: Bits?
  /// How the object was reached, for messages: `kvm.mm.pgd`.
  public let path: String

  /// Where a bit field lies in the bytes from `address` on.
  private struct Bits: Sendable {
    let offset: UInt64
    let size: UInt64
  }

  public init(
    in memory: VirtualMemory, at address: VirtualAddress, type: BTFType, path: String? = nil
  ) {
    self.init(in: memory, at: address, type: type, bits: nil, path: path ?? type.name)
  }

  private init(
    in memory: VirtualMemory, at address: VirtualAddress, type: BTFType, bits: Bits?, path: String
  ) {
    self.memory = memory
    self.address = address
    self.type = type.resolved
    self.bits = bits
    self.path = path
  }

  // MARK: Members

  public func has(_ member: String) -> Bool { type.member(member) != nil }

  /// The member of that name, or nil if the structure has none.
  public func memberIfPresent(_ name: String) -> KernelObject? {
    guard let member = type.member(name) else { return nil }
    let bits = member.bitSize.map { Bits(offset: member.bitOffset % 8, size: $0) }
    return KernelObject(
      in: memory, at: address + member.bitOffset / 8, type: member.type, bits: bits,
      path: "\(path).\(name)")
  }

  /// The first of these members that the structure has: kernels rename and move them.
  public func member(_ names: String...) throws(KernelError) -> KernelObject {
    for name in names {
      if let member = memberIfPresent(name) { return member }
    }
    throw .noMember(type: type.name, anyOf: names)
  }

  /// The member reached by a dotted path, `arch.regs`.
  public subscript(path: String) -> KernelObject {
    get throws(KernelError) {
      guard path.utf8.contains(UInt8(ascii: ".")) else { return try member(path) }
      var object = self
      for name in path.split(separator: ".") { object = try object.member(String(name)) }
      return object
    }
  }

  /// An element of an array. The bound that the type declares is kept, except for flexible arrays
  /// and those of one element that older code uses like them.
  public func element(_ index: Int) throws(KernelError) -> KernelObject {
    guard type.kind == .array, let element = type.target, let size = element.size, index >= 0,
      let count = type.elementCount, count <= 1 || index < count
    else { throw .unexpectedKind(type: path, needed: "an array with an element \(index)") }
    return KernelObject(
      in: memory, at: address + UInt64(index) &* size, type: element, path: "\(path)[\(index)]")
  }

  // MARK: Values

  /// The value of an integer, enumeration, boolean, pointer or bit field, zero-extended.
  public func unsigned() throws(KernelError) -> UInt64 {
    switch type.kind {
    case .integer, .enumeration, .pointer: break
    default: throw .unexpectedKind(type: path, needed: "a scalar")
    }
    let size = bits.map { ($0.offset + $0.size + 7) / 8 } ?? type.size ?? 8
    guard (1...8).contains(size) else {
      throw .unexpectedKind(type: path, needed: "a scalar of at most 8 bytes")
    }
    let bytes = try read(count: Int(size))
    let value = bytes.reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
    guard let bits else { return value }
    return bits.size >= 64 ? value : value >> bits.offset & ((1 << bits.size) - 1)
  }

  /// The value of a signed integer or enumeration.
  public func signed() throws(KernelError) -> Int64 {
    let value = try unsigned()
    let unused = 64 - Int64(bits?.size ?? (type.size ?? 8) * 8)
    return (Int64(bitPattern: value) << unused) >> unused
  }

  public func isTrue() throws(KernelError) -> Bool { try unsigned() != 0 }

  /// What a pointer holds.
  public func pointer() throws(KernelError) -> VirtualAddress {
    guard type.kind == .pointer else { throw .unexpectedKind(type: path, needed: "a pointer") }
    return VirtualAddress(try unsigned())
  }

  /// What a pointer points at, or nil for a null pointer.
  public func dereferenced() throws(KernelError) -> KernelObject? {
    let target = try pointer()
    guard target.rawValue != 0 else { return nil }
    guard let pointee = type.target else {
      throw .unexpectedKind(type: path, needed: "a pointer to a known type")
    }
    return KernelObject(in: memory, at: target, type: pointee, path: path)
  }

  /// What a pointer that cannot be null in a sound kernel points at.
  public func required() throws(KernelError) -> KernelObject {
    guard let object = try dereferenced() else {
      throw .unexpectedKind(type: path, needed: "a pointer to something: it is null")
    }
    return object
  }

  /// The text in a character array.
  public func text() throws(KernelError) -> String {
    guard type.kind == .array, let size = type.size, size <= 4096 else {
      throw .unexpectedKind(type: path, needed: "a character array")
    }
    let bytes = try read(count: Int(size))
    return String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
  }

  private func read(count: Int) throws(KernelError) -> [UInt8] {
    do throws(MemoryError) {
      return try memory.read(address, count: count)
    } catch {
      throw .unreadable(what: path, error)
    }
  }

  // MARK: Containers

  /// The object of type `type` whose member `member` this object is.
  public func container(of type: BTFType, member name: String) throws(KernelError) -> KernelObject {
    guard let member = type.resolved.member(name) else {
      throw .noMember(type: type.name, anyOf: [name])
    }
    return KernelObject(in: memory, at: address - member.byteOffset, type: type)
  }

  /// The same address taken as another type.
  public func cast(to type: BTFType) -> KernelObject {
    KernelObject(in: memory, at: address, type: type)
  }

  /// The elements of the `list_head` that this object is: objects of type `type`, linked by their
  /// member `link`.
  public func listElements(
    of type: BTFType, link: String, limit: Int
  ) throws(KernelError) -> [KernelObject] {
    let (elements, failure) = reachableListElements(of: type, link: link, limit: limit)
    if let failure { throw failure }
    return elements
  }

  /// As many elements as can be reached where a part of the list is lost: from its start on, and from
  /// its end backwards; with the reason why it is not known to be all.
  public func reachableListElements(
    of type: BTFType, link: String, limit: Int
  ) -> (elements: [KernelObject], failure: KernelError?) {
    var seen: Set<VirtualAddress> = []
    func walk(_ direction: String) -> (elements: [KernelObject], failure: KernelError?) {
      var elements: [KernelObject] = []
      var circle = CircleCheck()
      var steps = 0
      do throws(KernelError) {
        var node = try member(direction).required()
        while node.address != address {
          // A list that does not come back to its head leads through `limit` nodes at most.
          guard steps < limit, !circle.closes(at: node.address) else {
            throw .endless(what: "list \(path)", at: address, limit: limit)
          }
          steps += 1
          let element = try node.container(of: type, member: link)
          let onward = try node.member(direction)
          // A node that cannot be read is where a damaged link leads, and no element.
          _ = try onward.pointer()
          if seen.insert(element.address).inserted { elements.append(element) }
          node = try onward.required()
        }
        return (elements, nil)
      } catch {
        return (elements, error)
      }
    }
    let (first, failure) = walk("next")
    guard let failure else { return (first, nil) }
    return (first + walk("prev").elements.reversed(), failure)
  }

  /// The nodes of the `hlist_head` that this object is.
  public func hashListNodes(limit: Int) throws(KernelError) -> [KernelObject] {
    var nodes: [KernelObject] = []
    var circle = CircleCheck()
    var next = try member("first").dereferenced()
    while let node = next {
      guard nodes.count < limit, !circle.closes(at: node.address) else {
        throw .endless(what: "hash list \(path)", at: address, limit: limit)
      }
      nodes.append(node)
      next = try node.member("next").dereferenced()
    }
    return nodes
  }
}

/// Notices that a list runs in a circle, after few rounds of it (Brent's algorithm).
private struct CircleCheck {
  private var mark = VirtualAddress(0)
  private var steps = 0
  private var limit = 1

  /// True if the list came by here before.
  mutating func closes(at node: VirtualAddress) -> Bool {
    if node == mark { return true }
    steps += 1
    if steps == limit {
      mark = node
      steps = 0
      limit *= 2
    }
    return false
  }
}

extension VirtualMemory {
  /// A word of the kernel's, which messages call `what`.
  func word(_ address: VirtualAddress, of what: String) throws(KernelError) -> UInt64 {
    do throws(MemoryError) {
      return try load(address)
    } catch {
      throw .unreadable(what: what, error)
    }
  }

  /// A name of the kernel's, which messages call `what`.
  func string(_ address: VirtualAddress, of what: String) throws(KernelError) -> String {
    do throws(MemoryError) {
      return try string(address, limit: 64)
    } catch {
      throw .unreadable(what: what, error)
    }
  }
}
