import Memory

/// How the kernel stores the addresses of its symbols.
enum SymbolAddressForm: Hashable, Sendable {
  /// `kallsyms_addresses`: 64-bit addresses. Until 6.11 (64e166099b69), hardly ever on x86.
  case absolute
  /// `kallsyms_offsets`: unsigned 32-bit offsets from `kallsyms_relative_base`. Since 4.6
  /// (2213e9a66bb8), on x86-64 from 6.15 on.
  case baseRelative(base: UInt64)
  /// `kallsyms_offsets`: what is not negative is a per-CPU symbol's offset; other addresses are
  /// base - 1 - offset. 4.6 to 6.14, the form of x86-64 (removed by 01157ddc58dc).
  case absolutePerCPU(base: UInt64)
  /// `kallsyms_offsets`: signed 32-bit offsets, each from the place where it is stored. Since 7.0
  /// (a081b5789255).
  case placeRelative(table: VirtualAddress)
}

/// The addresses of all symbols, in ascending order.
struct SymbolAddresses: Sendable {
  let form: SymbolAddressForm
  let count: Int
  private let bytes: [UInt8]

  init(_ form: SymbolAddressForm, count: Int, bytes: [UInt8]) {
    self.form = form
    self.count = count
    self.bytes = bytes
  }

  /// Size in bytes of an entry of `kallsyms_addresses`, and of one of `kallsyms_offsets`.
  static let absoluteEntrySize = 8
  static let offsetEntrySize = 4

  /// The address of a symbol; of a per-CPU symbol in the form ``SymbolAddressForm/absolutePerCPU``
  /// its offset in each CPU's area.
  subscript(symbol: Int) -> UInt64 {
    let offset = Int64(bytes.load(Int32.self, at: symbol &* Self.offsetEntrySize) ?? 0)
    return switch form {
    case .absolute:
      bytes.load(at: symbol &* Self.absoluteEntrySize) ?? 0
    case .baseRelative(let base):
      base &+ UInt64(UInt32(truncatingIfNeeded: offset))
    case .absolutePerCPU(let base):
      offset >= 0 ? UInt64(offset) : base &- 1 &- UInt64(bitPattern: offset)
    case .placeRelative(let table):
      table.rawValue &+ UInt64(truncatingIfNeeded: symbol &* Self.offsetEntrySize)
        &+ UInt64(bitPattern: offset)
    }
  }

  /// True if the symbol's address is an offset in the per-CPU areas, not one of memory.
  func isPerCPUOffset(_ symbol: Int) -> Bool {
    guard case .absolutePerCPU = form else { return false }
    return (bytes.load(Int32.self, at: symbol &* Self.offsetEntrySize) ?? 0) >= 0
  }

  /// The first symbol whose address is greater than `address`; `count` if none is.
  func firstAbove(_ address: UInt64) -> Int {
    (0..<count).partitioningIndex { self[$0] > address }
  }
}
