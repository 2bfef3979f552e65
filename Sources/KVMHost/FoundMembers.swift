import LinuxKernel
import Memory
import X86

/// Structures of KVM's modules of which no types tell, with those members that were found by what
/// they point at: kernels before 5.11 have no types of their modules in memory. A place is believed
/// only if it holds in every vCPU of the host.
struct FoundMembers: Sendable {
  /// The types that are known, with those structures.
  let types: BTF
  /// What lies where, as it is told to the user.
  let places: [String]

  /// Nil if the structures cannot be described behind `base`.
  init?(_ structures: [StructureDescription], base: BTF, places: [String]) {
    guard let types = try? BTF(structures, base: base) else { return nil }
    self.types = types
    self.places = places
  }

  /// What a place that must hold a pointer to a certain kind of page leads to.
  enum Page<Content: Equatable>: Equatable {
    case found(Content)
    /// The dump does not have it, which says nothing of the place.
    case absent
  }

  /// The page that a pointer leads to; nil if there is no such pointer, or `content` finds nothing.
  static func page<Content>(
    at pointer: UInt64?, in memory: VirtualMemory, content: ([UInt8]) -> Content?
  ) -> Page<Content>? {
    guard let pointer, pointer != 0, pointer & (pageSize - 1) == 0,
      let address = try? memory.translate(VirtualAddress(pointer))
    else { return nil }
    guard let page = try? memory.physical.page(address.frame) else { return .absent }
    return content(page).map { .found($0) }
  }
}

/// A part of an object of which no types tell.
struct UntypedBytes: Sendable {
  /// Where the object begins.
  let object: VirtualAddress
  /// The offsets of its 64-bit words, from the object's start.
  let offsets: StrideTo<UInt64>
  private let start: UInt64
  private let bytes: [UInt8]

  /// As much as can be read.
  ///
  /// - Parameters:
  ///   - start: in bytes from the object's start.
  ///   - limit: of bytes.
  init?(of object: VirtualAddress, from start: UInt64 = 0, limit: Int, in memory: VirtualMemory) {
    guard let bytes = try? memory.bytesAvailable(object + start, limit: limit) else { return nil }
    self.object = object
    self.bytes = bytes
    offsets = stride(from: start, to: start + UInt64(bytes.count & ~7), by: 8)
    self.start = start
  }

  /// The word at an offset from the object's start.
  func word(at offset: UInt64) -> UInt64? {
    guard offset >= start, let index = Int(exactly: offset - start) else { return nil }
    return bytes.load(at: index)
  }
}

extension UntypedBytes {
  /// What the module that drives the processor's virtualisation keeps of a vCPU: its structure
  /// begins with the `struct kvm_vcpu`, and is not longer behind it than `limit`.
  init?(behind vcpu: KernelObject, limit: Int = 8 << 10) {
    guard let size = vcpu.type.size, size <= 1 << 20 else { return nil }
    self.init(of: vcpu.address, from: (size + 7) & ~7, limit: limit, in: vcpu.memory)
  }
}
