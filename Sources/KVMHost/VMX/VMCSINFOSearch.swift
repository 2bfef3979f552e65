import Guest
import LinuxKernel
import Memory
import X86

/// Searches a host's memory for layouts of its VMCS: the text that a module measured and keeps
/// there, or the note of a kernel with the series of 2012. A dump whose writer did not know of
/// either still holds it.
public struct VMCSINFOSearch: Sendable {
  private let search: MemorySearch
  private let memory: any PhysicalMemory

  public init(_ source: any FrameSource, threads: Int) {
    search = MemorySearch(MemoryMap(wholeOf: source), source, threads: threads)
    memory = source
  }

  /// Layouts by ascending address. The words stand in many places that are no layouts.
  public func layouts() -> [VMCSLayout] {
    search.addresses(of: Array("VMCSINFO".utf8)).prefix(1000).compactMap { address in
      let start = PhysicalAddress(address.rawValue)
      guard let text = text(at: start) else { return nil }
      return VMCSLayout(text: text, origin: "the VMCSINFO at physical address \(start)")
    }
  }

  /// The text from its first word on: `VMCSINFO/1` itself, or what follows a note's name.
  private func text(at address: PhysicalAddress) -> String? {
    guard let word = try? memory.read(address, count: 12) else { return nil }
    var position = word.starts(with: Array("VMCSINFO/1".utf8)) ? address : address + 12
    var bytes: [UInt8] = []
    while bytes.count < Self.limit, !bytes.contains(0),
      let page = try? memory.page(position.frame)
    {
      bytes += page[position.pageOffset...]
      position = PhysicalAddress(position.rawValue | (pageSize - 1)) + 1
    }
    return String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
  }

  /// The notes known have less than 6 KiB.
  fileprivate static let limit = 1 << 16
}

extension VMCSLayout {
  /// The layout in the note of the loaded module `vmcsinfo`, which its `vmcsinfo_note` leads to: an
  /// ELF note of the owner "VMCSINFO".
  init?(ofModuleIn kernel: LinuxKernel) {
    guard let module = try? kernel.module("vmcsinfo"),
      let pointer = try? module.address(of: "vmcsinfo_note"),
      let note = try? kernel.memory.load(pointer, as: UInt64.self),
      let head = try? kernel.memory.read(VirtualAddress(note), count: 24),
      let size = head.load(UInt32.self, at: 4), size <= VMCSINFOSearch.limit,
      // The head has 12 bytes, the name with its padding too.
      head[12...].starts(with: Array("VMCSINFO\0".utf8)),
      let text = try? kernel.memory.read(VirtualAddress(note) + 24, count: Int(size))
    else { return nil }
    self.init(
      text: String(decoding: text.prefix { $0 != 0 }, as: UTF8.self),
      origin: "the note of the host's module vmcsinfo")
  }
}
