import Memory
import Synchronization
import X86

/// zsmalloc (mm/zsmalloc.c): objects of compressed data, packed into groups of pages (zspages) by size.
///
/// A handle leads to a word that names an object by the frame in which it begins and its number in the
/// group. Each object begins with its handle, which proves that it is the right one.
struct ZSMalloc: Sendable {
  let memory: VirtualMemory
  private let frames: PageFrames
  private let zspage: BTFType
  private let page: BTFType
  /// Lies over `struct page` since 6.14 (b0a1ed7d2d83).
  private let zpdesc: BTFType?
  private let poolType: BTFType

  /// ZSPAGE_MAGIC.
  private static let magic: UInt64 = 0x58
  /// OBJ_ALLOCATED_TAG.
  private static let allocated: UInt64 = 1
  /// ZS_HANDLE_SIZE: the handle in front of an object.
  private static let handleSize: UInt64 = 8
  /// How the word behind a handle is made up.
  private struct WordForm: Hashable, Sendable {
    /// What the number of the frame is shifted by: 64 - _PFN_BITS, which are 40 with 52 bits of
    /// physical addresses, or 34 with MAX_PHYSMEM_BITS 46.
    let frameShift: UInt64
    /// OBJ_TAG_BITS, if the number of the object begins behind them.
    let tagBits: UInt64
  }

  /// No type tells which of them a kernel has; the objects do.
  private static let wordForms = [
    WordForm(frameShift: 24, tagBits: 1), WordForm(frameShift: 24, tagBits: 0),
    WordForm(frameShift: 30, tagBits: 1), WordForm(frameShift: 30, tagBits: 0),
  ]

  /// The form that an object has proven which is not the first of its group: of the first the number
  /// is 0 in all forms.
  private let provenForm = ProvenForm()

  private final class ProvenForm: Sendable {
    let form = Mutex<WordForm?>(nil)
  }

  init(_ kernel: LinuxKernel, _ frames: PageFrames) throws(KernelError) {
    memory = kernel.memory
    self.frames = frames
    let module = try kernel.module("zsmalloc")
    let types = module?.types ?? kernel.types
    guard let zspage = types.structure(named: "zspage"),
      let pool = types.structure(named: "zs_pool")
    else { throw module?.missingTypes ?? .noType("zspage") }
    self.zspage = zspage
    poolType = pool
    page = try kernel.structure("page")
    zpdesc = types.structure(named: "zpdesc")
  }

  /// A `struct zs_pool`.
  func pool(at address: VirtualAddress) -> KernelObject {
    KernelObject(in: memory, at: address, type: poolType)
  }

  /// An object's place: the bytes lie in one page, or in two.
  struct Location: Hashable, Sendable {
    let handle: UInt64
    let frame: PageFrameNumber
    /// Where in its first page the object begins.
    let offset: Int
    /// The page that it goes on in.
    let next: PageFrameNumber?
    /// It has a page for itself, and its handle in the page's descriptor.
    let isHuge: Bool
  }

  /// Where the object of a handle is.
  ///
  /// - Parameter pool: a `struct zs_pool`.
  /// - Parameter size: bytes of the object.
  func location(
    of handle: UInt64, in pool: KernelObject, size: Int
  ) throws(KernelError) -> Location {
    // What another module's types only name is known here.
    let pool = self.pool(at: pool.address)
    let word = try memory.word(VirtualAddress(handle), of: "zsmalloc handle")
    let proven = provenForm.form.withLock { $0 }
    for form in proven.map({ [$0] }) ?? Self.wordForms {
      let index = (word >> form.tagBits) & (1 << (form.frameShift - form.tagBits) - 1)
      guard
        let location = try? location(
          handle, frame: PageFrameNumber(word >> form.frameShift), index: index, in: pool,
          size: size)
      else { continue }
      guard proven == nil, !location.isHuge else { return location }
      guard (try? read(location, size: 0)) != nil else { continue }
      if index > 0 { provenForm.form.withLock { $0 = form } }
      return location
    }
    throw .unexpectedKind(
      type: "zsmalloc handle \(hexadecimal(handle))", needed: "the place of an object of its size")
  }

  private func location(
    _ handle: UInt64, frame: PageFrameNumber, index: UInt64, in pool: KernelObject, size: Int
  ) throws(KernelError) -> Location? {
    let page = descriptor(frames.address(of: frame))
    let group = try group(of: page)
    guard try group["magic"].unsigned() == Self.magic else { return nil }
    let sizeClass = try pool["size_class"]
      .element(Int(clamping: try group["class"].unsigned())).required()
    let objectSize = try sizeClass["size"].unsigned()
    let count = try sizeClass["objs_per_zspage"].unsigned()
    let pages = try sizeClass["pages_per_zspage"].unsigned()
    let isHuge = count == 1 && pages == 1
    let header = isHuge ? 0 : Self.handleSize
    guard index < count, objectSize <= pageSize, UInt64(size) + header <= objectSize else {
      return nil
    }
    let offset = objectSize &* index % pageSize
    var next: PageFrameNumber?
    if offset + objectSize > pageSize {
      next = try self.frame(behind: page, in: group)
      guard next != nil else { return nil }
    }
    if isHuge {
      guard try page.member("handle", "index").unsigned() & ~Self.allocated == handle else {
        return nil
      }
    }
    return Location(
      handle: handle, frame: frame, offset: Int(offset), next: next, isHuge: isHuge)
  }

  /// The bytes of an object; nil if it is not the one that its handle says.
  func read(_ location: Location, size: Int) throws(MemoryError) -> [UInt8]? {
    let header = location.isHuge ? 0 : Int(Self.handleSize)
    var bytes = Array(try memory.physical.page(location.frame).dropFirst(location.offset))
    if let next = location.next, bytes.count < header + size {
      bytes += try memory.physical.page(next)
    }
    guard bytes.count >= header + size else { return nil }
    if !location.isHuge {
      guard bytes.load(UInt64.self, at: 0) == location.handle | Self.allocated else { return nil }
    }
    return Array(bytes[header..<(header + size)])
  }

  private func descriptor(_ address: VirtualAddress) -> KernelObject {
    KernelObject(in: memory, at: address, type: zpdesc ?? page)
  }

  /// The `struct zspage` that a page belongs to.
  private func group(of page: KernelObject) throws(KernelError) -> KernelObject {
    KernelObject(
      in: memory, at: VirtualAddress(try page.member("zspage", "private").unsigned()),
      type: zspage)
  }

  /// The page behind one of its group: in `index` since 5.17 (ffedd09fa9b0), in `freelist` before.
  /// Which one leads to a page of the same group is the right one.
  private func frame(
    behind page: KernelObject, in group: KernelObject
  ) throws(KernelError) -> PageFrameNumber? {
    for name in ["next", "index", "freelist"] {
      guard let link = try page.memberIfPresent(name)?.unsigned(), link != 0,
        let frame = frames.frame(at: VirtualAddress(link)),
        (try? self.group(of: descriptor(VirtualAddress(link))))?.address == group.address
      else { continue }
      return frame
    }
    return nil
  }
}
