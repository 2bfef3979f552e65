import ControlBlocks
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

  /// Layouts, those first whose text is whole: buffers hold pieces of it. The words stand in many
  /// places that are no layouts.
  public func layouts() -> [VMCSLayout] {
    let texts = search.addresses(of: Array("VMCSINFO".utf8)).prefix(1000).compactMap {
      address -> (start: PhysicalAddress, text: String)? in
      let start = PhysicalAddress(address.rawValue)
      return text(at: start).map { (start, $0) }
    }
    func layouts(_ chosen: [(start: PhysicalAddress, text: String)]) -> [VMCSLayout] {
      chosen.compactMap { start, text in
        VMCSLayout(text: text, origin: "the VMCSINFO at physical address \(start)")
      }
    }
    let isWhole = { (found: (start: PhysicalAddress, text: String)) in
      found.text.hasSuffix("\nEND\n")
    }
    return layouts(texts.filter(isWhole)) + layouts(texts.filter { !isWhole($0) })
  }

  /// The text from its first line on: a note's comes after its name, 12 bytes in all.
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
  /// The layout in the note of the loaded module `vmcsinfo`, which its `vmcsinfo_note` leads to.
  init?(ofModuleIn kernel: LinuxKernel) {
    guard let module = try? kernel.module("vmcsinfo"),
      let pointer = try? module.address(of: "vmcsinfo_note"),
      let address = try? kernel.memory.load(pointer, as: UInt64.self),
      let size = try? kernel.memory.load(VirtualAddress(address) + 4, as: UInt32.self),
      size <= VMCSINFOSearch.limit,
      let note = try? kernel.memory.read(VirtualAddress(address), count: 24 + Int(size))
    else { return nil }
    self.init(contents: note, origin: "the note of the host's module vmcsinfo")
  }
}
