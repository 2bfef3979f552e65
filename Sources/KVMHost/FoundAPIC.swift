import LinuxKernel
import Memory
import X86

extension FoundMembers {
  /// `struct kvm_lapic`, KVM's own APIC of a vCPU: it has the address of that vCPU, and that of the
  /// page with the APIC's registers.
  static func apic(of vcpus: [KernelObject], types: BTF) -> FoundMembers? {
    var apics: [(bytes: UntypedBytes, vcpu: KernelObject)] = []
    for vcpu in vcpus {
      guard let pointer = try? vcpu["arch.apic"].pointer(), pointer.rawValue != 0 else { continue }
      guard let bytes = UntypedBytes(of: pointer, limit: 512, in: vcpu.memory) else { return nil }
      apics.append((bytes, vcpu))
    }
    guard let first = apics.first else { return nil }
    func holds(_ offset: UInt64, _ isRight: (UInt64, KernelObject) -> Bool) -> Bool {
      apics.allSatisfy { apic in
        apic.bytes.word(at: offset).map { isRight($0, apic.vcpu) } ?? false
      }
    }
    let owners = first.bytes.offsets.filter { holds($0) { $0 == $1.address.rawValue } }
    let pages = first.bytes.offsets.filter {
      holds($0) { page(at: $0, in: $1.memory) { isAPIC($0) ? true : nil } != nil }
    }
    guard owners.count == 1, pages.count == 1 else { return nil }
    return FoundMembers(
      [
        StructureDescription(
          "kvm_lapic", size: pages[0] + 8, [.init("regs", at: pages[0], .pointer)])
      ], base: types, places: ["kvm_lapic.regs +\(pages[0])"])
  }

  /// The version register at 30h (SDM vol. 3A 11.4.8): an integrated APIC's, with as many local
  /// vectors as there can be. Nothing lies between it and the next register.
  private static func isAPIC(_ page: [UInt8]) -> Bool {
    guard let version: UInt32 = page.load(at: 0x30) else { return false }
    return (0x10...0x15).contains(version & 0xff) && (3...7).contains(version >> 16 & 0xff)
      && version & 0xfe00_ff00 == 0 && page[0x34..<0x40].allSatisfy { $0 == 0 }
  }
}
