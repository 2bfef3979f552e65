import Memory

/// A guest's physical memory as the memory of a machine: what reads a host's kernel reads a
/// guest's through it.
public struct GuestMemory: PhysicalMemory {
  private let map: MemoryMap
  private let source: any PhysicalMemory

  public init(_ map: MemoryMap, in source: any PhysicalMemory) {
    self.map = map
    self.source = source
  }

  public func page(_ frame: PageFrameNumber) throws(MemoryError) -> [UInt8] {
    let address = GuestPhysicalAddress(frame.rawValue << pageShift)
    guard frame.rawValue <= UInt64.max >> pageShift, map.region(holding: address) != nil,
      let run = map.runs(from: address, pages: 1).first
    else { throw .absent(frame.address, .notInDump) }
    switch run.content {
    case .frames(let frame): return try source.page(frame)
    case .zero: return [UInt8](repeating: 0, count: Int(pageSize))
    case .missing: throw .absent(frame.address, .notInDump)
    }
  }
}
