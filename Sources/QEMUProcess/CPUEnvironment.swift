import Memory
import X86

/// The first members of `CPUX86State` (QEMU target/i386/cpu.h), whose places have not changed since
/// QEMU 0.11: regs, eip, eflags, the lazy flags, hflags, segs, ldt, tr, gdt, idt, cr.
struct EnvironmentHead: Hashable, Sendable {
  enum Offset {
    static let instructionPointer = 128
    static let flags = 136
    /// 1 or -1, in place of RFLAGS.DF while an emulated vCPU runs; 0 if it was never emulated.
    static let direction = 172
    static let hiddenFlags = 176
    static let segments = 184
    static let localDescriptorTable = 328
    static let task = 352
    static let globalDescriptorTable = 376
    static let interruptDescriptorTable = 400
    static let control = 424
    static let end = 464
  }

  /// Bits of hflags, part of QEMU's migration format.
  private enum Hidden {
    static let protection: UInt32 = 1 << 7
    static let longMode: UInt32 = 1 << 14
    static let longCode: UInt32 = 1 << 15
  }

  /// The order of `regs`, that of the encoding of instructions.
  static let general: [Register] = [
    .rax, .rcx, .rdx, .rbx, .rsp, .rbp, .rsi, .rdi,
    .r8, .r9, .r10, .r11, .r12, .r13, .r14, .r15,
  ]

  let general: [UInt64]
  let instructionPointer: UInt64
  let flags: UInt64
  let direction: Int32
  /// ES, CS, SS, DS, FS, GS.
  let segments: [Segment]
  let localDescriptorTable: Segment
  let task: Segment
  let globalDescriptorTable: DescriptorTable
  let interruptDescriptorTable: DescriptorTable
  /// CR0 to CR4; there is no CR1.
  let control: [UInt64]
  let isInLongMode: Bool
  /// Whether hflags says what the code segment says: 64-bit code or not.
  let isCoherent: Bool

  /// What lies at `offset`, if it can be the state of a processor: nil if it is none.
  init?(_ bytes: [UInt8], at offset: Int) {
    // The cheapest and sharpest test first: this runs at every word of an object.
    guard let flags: UInt64 = bytes.load(at: offset + Offset.flags), Self.canBeFlags(flags),
      let direction: Int32 = bytes.load(at: offset + Offset.direction),
      (-1...1).contains(direction),
      let hidden: UInt32 = bytes.load(at: offset + Offset.hiddenFlags)
    else { return nil }
    func words(_ count: Int, at position: Int) -> [UInt64] {
      (0..<count).compactMap { bytes.load(at: offset + position + 8 * $0) }
    }
    let control = words(5, at: Offset.control)
    guard control.count == 5, Self.canBeControl(control),
      (control[0] & ControlBits.protection != 0) == (hidden & Hidden.protection != 0)
    else { return nil }
    isInLongMode = hidden & Hidden.longMode != 0
    let paging = ControlBits.paging | ControlBits.protection
    if isInLongMode {
      guard control[0] & paging == paging, control[4] & ControlBits.physicalAddressExtension != 0
      else { return nil }
    }
    let segments = (0..<6).compactMap {
      Segment(bytes, at: offset + Offset.segments + Segment.size * $0)
    }
    guard segments.count == 6,
      let local = Segment(bytes, at: offset + Offset.localDescriptorTable),
      let task = Segment(bytes, at: offset + Offset.task),
      let global = DescriptorTable(bytes, at: offset + Offset.globalDescriptorTable),
      let interrupts = DescriptorTable(bytes, at: offset + Offset.interruptDescriptorTable),
      let instructionPointer: UInt64 = bytes.load(at: offset + Offset.instructionPointer)
    else { return nil }
    general = words(16, at: 0)
    self.instructionPointer = instructionPointer
    self.flags = flags
    self.direction = direction
    self.segments = segments
    localDescriptorTable = local
    self.task = task
    globalDescriptorTable = global
    interruptDescriptorTable = interrupts
    self.control = control
    isCoherent =
      (hidden & Hidden.longCode != 0)
      == (isInLongMode && segments[1].attributes.rawValue & 1 << 21 != 0)
  }

  /// Bit 1 is always set; 3, 5, 15 and those from 22 on are clear (SDM vol. 1, 3.4.3).
  private static func canBeFlags(_ flags: UInt64) -> Bool {
    flags & 2 != 0 && flags >> 22 == 0 && flags & 0x8028 == 0
  }

  /// CR0.ET is always set, CR0 and CR4 have 32 bits or few more, paging needs protection.
  private static func canBeControl(_ control: [UInt64]) -> Bool {
    let paged = control[0] & ControlBits.paging != 0
    return control[0] >> 32 == 0 && control[0] & 1 << 4 != 0 && control[1] == 0
      && control[4] >> 33 == 0 && control[3] >> 52 & 0x7ff == 0
      && (!paged || control[0] & ControlBits.protection != 0)
  }

  var codeSegment: Segment { segments[1] }
}

extension Segment {
  /// Bytes of QEMU's `SegmentCache`: selector, base at 8, limit at 16, flags at 20.
  fileprivate static let size = 24

  fileprivate init?(_ bytes: [UInt8], at offset: Int) {
    guard let selector: UInt32 = bytes.load(at: offset), selector <= 0xffff,
      let base: UInt64 = bytes.load(at: offset + 8),
      let limit: UInt32 = bytes.load(at: offset + 16),
      let flags: UInt32 = bytes.load(at: offset + 20), isCanonical(base)
    else { return nil }
    self.init(
      selector: UInt16(selector), base: base, limit: limit,
      attributes: SegmentAttributes(descriptor: flags))
  }
}

extension DescriptorTable {
  /// A table is a `SegmentCache`, too, without selector and flags.
  fileprivate init?(_ bytes: [UInt8], at offset: Int) {
    guard let table = Segment(bytes, at: offset), table.selector == 0, table.limit <= 0xffff
    else { return nil }
    self.init(base: table.base, limit: table.limit)
  }
}

extension ControlBits {
  /// CR4.PAE.
  static let physicalAddressExtension: UInt64 = 1 << 5
  /// CR4.OSXSAVE.
  static let extendedStates: UInt64 = 1 << 18
}

/// Whether an address is canonical with 5-level page tables, as it then is with 4 levels or not.
func isCanonical(_ address: UInt64) -> Bool { address >> 56 == 0 || address >> 56 == 0xff }
