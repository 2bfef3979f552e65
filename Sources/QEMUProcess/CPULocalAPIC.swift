import Memory

/// A vCPU's `APICCommonState` (QEMU include/hw/i386/apic_internal.h), whose pointer lies somewhere
/// behind the registers: known by the pointer back to the vCPU and the APIC's base address behind it.
struct LocalAPIC: Hashable, Sendable {
  /// The MSR IA32_APIC_BASE.
  let base: UInt64
  /// The task priority register; CR8 is its upper half. Nil where it cannot be told.
  let taskPriority: UInt8?

  /// The structure begins with those of a device and of a memory region.
  private static let searched = 0x400

  /// - Parameter object: where the vCPU's `CPUState` can begin.
  private init?(at address: UInt64, of object: Range<UInt64>, in image: ProcessImage) {
    guard address % 8 == 0, address >> 47 == 0, address >= pageSize,
      let bytes = try? image.read(VirtualAddress(address), count: Self.searched)
    else { return nil }
    let found = stride(from: 32, to: Self.searched - 32, by: 8).filter { offset in
      guard let back: UInt64 = bytes.load(at: offset), object.contains(back), back % 16 == 0,
        let base: UInt32 = bytes.load(at: offset + 8)
      else { return false }
      return base & 0xffff_f000 == 0xfee0_0000 && base & 0x2ff == 0
    }
    guard found.count == 1, let base: UInt32 = bytes.load(at: found[0] + 8) else { return nil }
    self.base = UInt64(base)
    taskPriority = Self.taskPriority(in: bytes, from: found[0] + 12)
  }

  /// `version`, which is 0x14, arb_id, tpr, then the aligned spurious-interrupt vector register with
  /// a vector that may be used.
  private static func taskPriority(in bytes: [UInt8], from start: Int) -> UInt8? {
    let found = (start..<(start + 16)).filter { offset in
      guard bytes[offset] == 0x14,
        let spurious: UInt32 = bytes.load(at: (offset + 6) & ~3)
      else { return false }
      return spurious >> 13 == 0 && spurious & 0xff >= 0xf
    }
    return found.count == 1 ? bytes[found[0] + 2] : nil
  }

  /// Those of all vCPUs, from the one place whose pointers lead to one in each.
  ///
  /// - Parameters:
  ///   - states: bytes from the start of each `CPUX86State` on.
  ///   - objects: where each `CPUState` can begin.
  static func all(
    behind states: [[UInt8]], of objects: [Range<UInt64>], in image: ProcessImage
  ) -> [LocalAPIC]? {
    let end = states.map(\.count).min() ?? 0
    var result: [LocalAPIC]?
    for offset in stride(from: EnvironmentHead.Offset.end, to: end, by: 8) {
      var found: [LocalAPIC] = []
      for (bytes, object) in zip(states, objects) {
        guard let pointer: UInt64 = bytes.load(at: offset),
          let apic = LocalAPIC(at: pointer, of: object, in: image)
        else { break }
        found.append(apic)
      }
      guard found.count == states.count, !found.isEmpty else { continue }
      // The same structures may be pointed to twice.
      if let result, result != found { return nil }
      result = found
    }
    return result
  }
}
