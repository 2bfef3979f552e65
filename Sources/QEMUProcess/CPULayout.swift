import Memory
import X86

/// A place in `CPUX86State`, in bytes from its start, or why it is not known.
enum Place: Hashable, Sendable {
  case known(Int)
  case unknown(String)

  var offset: Int? {
    if case .known(let offset) = self { offset } else { nil }
  }
}

/// Where the model-specific and the debug registers are in `CPUX86State`.
///
/// Their places differ from release to release, by what lies before them. They are told by what is in
/// them: each is the one place that fits in every vCPU in long mode. Where none or several fit, the
/// registers are not known.
struct EnvironmentLayout: Sendable {
  /// `efer`.
  let extendedFeatures: Place
  /// `sysenter_cs`, and behind it sysenter_esp, sysenter_eip, star, vm_hsave, lstar, cstar, fmask and
  /// kernelgsbase.
  let systemCalls: Place
  /// `xcr0`.
  let extendedStates: Place
  /// `pat`.
  let attributeTable: Place
  /// `dr`.
  let debug: Place

  /// Offsets from ``systemCalls``.
  enum SystemCall {
    static let sysenterESP = 8
    static let sysenterEIP = 16
    static let star = 24
    static let hostSave = 32
    static let lstar = 40
    static let cstar = 48
    static let sfmask = 56
    static let kernelGSBase = 64
    static let end = 72
  }

  /// - Parameter states: the vCPUs' states; bytes from the start of `CPUX86State` on.
  init(_ states: [(head: EnvironmentHead, bytes: [UInt8])]) {
    let long = states.filter(\.head.isInLongMode)
    func place(
      of name: String, in window: Range<Int>, _ fits: (EnvironmentHead, [UInt8], Int) -> Bool,
      equal: (([UInt8], Int) -> [UInt64])? = nil
    ) -> Place {
      guard let first = long.first else {
        return .unknown("no vCPU is in long mode, which would show where QEMU has \(name)")
      }
      let places = stride(from: window.lowerBound, to: window.upperBound, by: 8).filter { offset in
        let wanted = equal?(first.bytes, offset)
        return long.allSatisfy {
          fits($0.head, $0.bytes, offset) && wanted == equal?($0.bytes, offset)
        }
      }
      guard places.count == 1 else {
        return .unknown(
          places.isEmpty
            ? "no place in QEMU's state has what \(name) can be"
            : "\(places.count) places in QEMU's state have what \(name) can be")
      }
      return .known(places[0])
    }
    let end = states.map(\.bytes.count).min() ?? 0
    let head = EnvironmentHead.Offset.end
    extendedFeatures = place(of: "EFER", in: head..<min(end, head + 0x200), Self.isEFER)
    let afterFeatures = (extendedFeatures.offset ?? head) + 8
    systemCalls = place(
      of: "the MSRs of system calls", in: afterFeatures..<max(afterFeatures, end),
      Self.isSystemCalls
    ) { bytes, offset in
      [SystemCall.star, SystemCall.lstar, SystemCall.sfmask].map {
        bytes.load(at: offset + $0) ?? 0
      }
    }
    guard let calls = systemCalls.offset else {
      let reason = "the MSRs of system calls, behind which it lies, are not known"
      extendedStates = .unknown(reason)
      attributeTable = .unknown(reason)
      debug = .unknown(reason)
      return
    }
    let behind = calls + SystemCall.end
    func word(_ bytes: [UInt8], _ offset: Int) -> [UInt64] { [bytes.load(at: offset) ?? 0] }
    func window(_ size: Int) -> Range<Int> { behind..<max(behind, min(end, behind + size)) }
    extendedStates = place(of: "XCR0", in: window(0x100), Self.isXCR0, equal: word)
    attributeTable = place(of: "PAT", in: window(0x800), Self.isPAT, equal: word)
    debug = place(of: "the debug registers", in: window(0x1800), Self.isDebug)
  }

  /// A reserved bit is clear; LMA and LME are set in long mode (APM vol. 2, 3.1.7).
  private static func isEFER(_ head: EnvironmentHead, _ bytes: [UInt8], _ offset: Int) -> Bool {
    guard let value: UInt64 = bytes.load(at: offset) else { return false }
    let long = ControlBits.longModeActive | ControlBits.longModeEnabled
    return value & long == long && value & ~0x36_fd01 == 0
  }

  /// LSTAR and what else is an address is canonical, LSTAR is the kernel's; SFMASK has 32 bits and
  /// masks interrupts; STAR names the code segment in use, and has nothing in its lower half, which
  /// is for 32-bit kernels.
  private static func isSystemCalls(
    _ head: EnvironmentHead, _ bytes: [UInt8], _ offset: Int
  ) -> Bool {
    guard let segment: UInt64 = bytes.load(at: offset), segment <= 0xffff,
      let lstar: UInt64 = bytes.load(at: offset + SystemCall.lstar), lstar >> 56 == 0xff,
      let star: UInt64 = bytes.load(at: offset + SystemCall.star), head.hasSegment(of: star),
      let mask: UInt64 = bytes.load(at: offset + SystemCall.sfmask), mask >> 32 == 0,
      mask & 1 << 9 != 0,
      let save: UInt64 = bytes.load(at: offset + SystemCall.hostSave), save & (pageSize - 1) == 0,
      save >> 52 == 0
    else { return false }
    return [
      SystemCall.sysenterESP, SystemCall.sysenterEIP, SystemCall.cstar, SystemCall.kernelGSBase,
    ].allSatisfy { bytes.load(at: offset + $0).map(isCanonical) ?? false }
  }

  /// Bits of states that exist (SDM vol. 1, 13.3), x87 always; more only if the guest uses XSAVE.
  /// It lies between tsc_aux, of 32 bits, and mcg_status, of 4; then comes msr_ia32_misc_enable with
  /// fast strings on, which looks like an XCR0 but for its neighbours.
  private static func isXCR0(_ head: EnvironmentHead, _ bytes: [UInt8], _ offset: Int) -> Bool {
    guard let value: UInt64 = bytes.load(at: offset), value & 1 != 0,
      value & ~(0xe_02ff | 1 << 62) == 0,
      let auxiliary: UInt64 = bytes.load(at: offset - 8), auxiliary >> 32 == 0,
      let machineCheck: UInt64 = bytes.load(at: offset + 8), machineCheck >> 4 == 0,
      let features: UInt64 = bytes.load(at: offset + 16), features & 1 != 0, features >> 40 == 0
    else { return false }
    return head.control[4] & ControlBits.extendedStates != 0 || value == 1
  }

  /// Eight memory types (SDM vol. 3A, 11.12.2); the first is write-back in every system, and not all
  /// of the last four are uncacheable, which a small number would look like.
  private static func isPAT(_ head: EnvironmentHead, _ bytes: [UInt8], _ offset: Int) -> Bool {
    guard let value: UInt64 = bytes.load(at: offset), value & 0xff == 6, value >> 32 != 0 else {
      return false
    }
    return (0..<8).allSatisfy { [0, 1, 4, 5, 6, 7].contains(value >> (8 * $0) & 0xff) }
  }

  /// DR4 and DR5 are not used; DR6 and DR7 have bits that are always set and clear (SDM vol. 3B,
  /// 17.2.3, 17.2.4).
  private static func isDebug(_ head: EnvironmentHead, _ bytes: [UInt8], _ offset: Int) -> Bool {
    guard let dr4: UInt64 = bytes.load(at: offset + 32), dr4 == 0,
      let dr5: UInt64 = bytes.load(at: offset + 40), dr5 == 0,
      let dr6: UInt64 = bytes.load(at: offset + 48), dr6 >> 32 == 0,
      (dr6 | 1 << 16 | 1 << 11) & 0xffff_1ff0 == 0xffff_0ff0,
      let dr7: UInt64 = bytes.load(at: offset + 56), dr7 >> 32 == 0
    else { return false }
    return dr7 & 0x400 != 0 && dr7 & 0xd000 == 0
  }
}

extension EnvironmentHead {
  /// Whether a STAR fits the code segment: SYSCALL loads bits 32-47 into CS; SYSRET bits 48-63, to
  /// 64-bit code 16 more (SDM vol. 2B, SYSCALL and SYSRET).
  fileprivate func hasSegment(of star: UInt64) -> Bool {
    let system = UInt16(truncatingIfNeeded: star >> 32) & 0xfffc
    let user = UInt16(truncatingIfNeeded: star >> 48) & 0xfffc
    guard star & 0xffff_ffff == 0, system != 0, user != 0 else { return false }
    let selector = codeSegment.selector & 0xfffc
    guard codeSegment.selector & 3 == 3 else { return selector == system }
    return selector == user || selector == user &+ 16
  }
}
