import ControlBlocks
import Guest
import LinuxKernel
import Memory

/// Searches a host's memory for VMCSs that its structures do not lead to.
struct VMCSSearch {
  /// A page that can be a VMCS.
  struct Hit {
    let address: PhysicalAddress
    let region: [UInt8]

    var revision: UInt32 { VMCSLayout.revision(of: region) }
  }

  private let host: KVMHost
  private let threads: Int

  init(_ host: KVMHost, threads: Int) {
    self.host = host
    self.threads = threads
  }

  /// Pages with the head of a VMCS, the address that every exit leads to, and a link pointer that
  /// links nothing: all of what every VMCS of a host has, wherever its processor keeps it.
  func hits(besides known: Set<PhysicalAddress>) -> [Hit] {
    guard let exit = host.vmcsFacts.exitHandler?.address else { return [] }
    var wanted: [UInt8] = []
    wanted.append(littleEndian: exit.rawValue)
    let search = MemorySearch(MemoryMap(wholeOf: host.source), host.source, threads: threads)
    let pages = Set(search.addresses(of: wanted).map { PhysicalAddress($0.rawValue & ~0xfff) })
    return pages.subtracting(known).sorted().prefix(1 << 14).compactMap { address in
      guard let region = try? host.source.page(address.frame) else { return nil }
      let hit = Hit(address: address, region: region)
      // The second doubleword tells that entering the guest failed for good.
      guard hit.revision != 0, region.load(UInt32.self, at: 4) == 0,
        Self.places(of: UInt64.max, in: region) && Self.places(of: exit.rawValue, in: region)
      else { return nil }
      return hit
    }
  }

  private static func places(of value: UInt64, in region: [UInt8]) -> Bool {
    stride(from: VMCSSolver.firstOffset, through: region.count - 8, by: 2)
      .contains { region.load(UInt64.self, at: $0) == value }
  }
}
