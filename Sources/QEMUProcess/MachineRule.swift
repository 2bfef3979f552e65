import Memory

/// Where QEMU's machines put their main memory, when nothing in the core tells.
///
/// Sources: QEMU hw/i386/pc_piix.c (pc_init1), pc_q35.c (pc_q35_init), microvm.c
/// (microvm_memory_init).
struct MachineRule: Sendable {
  /// The machine's type, as it was asked for.
  let machine: String
  let ranges: [GuestRange]

  private static let fourGiB: UInt64 = 1 << 32
  /// From here on, memory above 4 GiB may start at 1 TiB, depending on the processor (AMD's
  /// HyperTransport range, since QEMU 7.1): the rule does not know.
  private static let highLimit: UInt64 = 0xfd_0000_0000

  /// Nil if the machine is not one of those, or its memory may lie otherwise.
  init?(for blocks: [RAMBlock], arguments: [String]) {
    guard let main = blocks.max(by: { $0.usedLength < $1.usedLength }), !arguments.isEmpty else {
      return nil
    }
    let options = zip(arguments, arguments.dropFirst())
      .filter { ["-machine", "--machine", "-M", "--M"].contains($0.0) }
      .flatMap { $0.1.split(separator: ",").map(String.init) }
    guard !options.contains(where: { $0.hasPrefix("max-ram-below-4g=") }) else { return nil }
    machine =
      options.last { !$0.contains("=") }
      ?? options.last { $0.hasPrefix("type=") }.map { String($0.dropFirst("type=".count)) } ?? "pc"
    guard let low = Self.bytesBelow4GiB(machine, of: main.usedLength) else { return nil }
    let high = main.usedLength - low
    guard high <= Self.highLimit - Self.fourGiB else { return nil }
    let parts = [(UInt64(0), low, UInt64(0)), (Self.fourGiB, high, low)]
    ranges = parts.compactMap { start, size, offset in
      GuestRange(
        wholePagesFrom: start, size: size, block: main, offset: offset, isReadOnly: false)
    }
  }

  private static func bytesBelow4GiB(_ machine: String, of size: UInt64) -> UInt64? {
    if machine == "q35" || machine.hasPrefix("pc-q35-") {
      return size >= 0xb000_0000 ? 0x8000_0000 : size
    }
    if machine == "pc" || machine.hasPrefix("pc-i440fx-") {
      return size >= 0xe000_0000 ? 0xc000_0000 : size
    }
    if machine == "microvm" { return min(size, 0xc000_0000) }
    return nil
  }
}
