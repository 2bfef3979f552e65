import Guest
import Memory

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
  private static let limit = 1 << 16
}
