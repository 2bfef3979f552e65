import Memory
import SyntheticDumps
import Testing
import X86

@testable import ControlBlocks

/// What control blocks alone tell of a vCPU.
struct VMCBTests {
  /// A VMCB with nested paging whose bytes tell their places.
  private static var bytes: [UInt8] {
    var bytes = [UInt8](repeating: 0, count: 4096)
    for index in stride(from: 0, to: 4096, by: 8) {
      for byte in 0..<8 { bytes[index + byte] = UInt8(truncatingIfNeeded: index >> (4 * byte)) }
    }
    bytes[0x90] = 1
    return bytes
  }

  private func value(_ offset: Int) -> UInt64 {
    (0..<8).reduce(0) {
      $0 | UInt64(UInt8(truncatingIfNeeded: offset >> (4 * $1))) << (8 * UInt64($1))
    }
  }

  @Test func registersLieWhereTheArchitectureHasThem() throws {
    let registers = try #require(VMCB(Self.bytes)).registers()
    // APM vol. 2, table B-2: offsets from the start of the block.
    let places: [(Register, Int)] = [
      (.cr4, 0x548), (.cr3, 0x550), (.cr0, 0x558), (.dr7, 0x560), (.dr6, 0x568),
      (.rflags, 0x570), (.rip, 0x578), (.rsp, 0x5d8), (.rax, 0x5f8), (.star, 0x600),
      (.lstar, 0x608), (.cstar, 0x610), (.sfmask, 0x618), (.kernelGSBase, 0x620),
      (.sysenterCS, 0x628), (.sysenterESP, 0x630), (.sysenterEIP, 0x638), (.cr2, 0x640),
      (.pat, 0x668),
    ]
    for (register, offset) in places {
      #expect(
        registers[register]
          == .known(value(offset), RegisterSource(.vmcb, "save.\(register.rawValue)")))
    }
    #expect(registers[.efer].value == value(0x4d0) & ~0x1000)
    for register in Register.allCases
    where register != .efer && !places.contains(where: { $0.0 == register }) {
      #expect(registers[register].value == nil)
    }
    #expect(registers[.gs].value?.base == value(0x458))
    #expect(registers[.tr].value?.selector == UInt16(truncatingIfNeeded: value(0x490)))
    #expect(registers[.idtr].value?.base == value(0x488))
    #expect(registers[.gdtr].value?.limit == UInt32(truncatingIfNeeded: value(0x460) >> 32))
  }

  @Test func withoutNestedPagingTheTablesAreTheHypervisors() throws {
    var bytes = Self.bytes
    bytes[0x90] = 2
    #expect(try #require(VMCB(bytes)).registers()[.cr3].value == nil)
  }

  @Test func blockThatIsTooShortIsNone() {
    #expect(VMCB([UInt8](repeating: 0, count: 4095)) == nil)
  }
}

struct VMCSRegisterTests {
  private let layout = SyntheticVMCSLayout(seed: 5, accessRights: .rotated)

  private func registers(_ values: [UInt32: UInt64]) throws -> RegisterFile {
    var region = [UInt8](repeating: 0, count: 4096)
    for (encoding, value) in values {
      let (offset, bytes) = try #require(layout.encode(value, as: encoding))
      region.replaceSubrange(offset..<offset + bytes.count, with: bytes)
    }
    let known = try #require(VMCSLayout(text: layout.text(), origin: "test"))
    return DecodedVMCS(layout: known, region: region).registers()
  }

  @Test func fieldsOfTheGuestAreItsRegisters() throws {
    let registers = try registers([
      0x681e: 0xffff_ffff_8100_0000, 0x681c: 0xffff_c900_0000_1000, 0x6820: 0x246,
      0x6802: 0x12_3000, 0x0802: 0x10, 0x4802: 0xffff_ffff, 0x4816: 0xa09b, 0x6808: 0,
      0x6816: 0xfffe, 0x4810: 0x7f,
    ])
    #expect(
      registers[.rip] == .known(0xffff_ffff_8100_0000, RegisterSource(.vmcs, "GUEST_RIP")))
    #expect(registers[.rsp].value == 0xffff_c900_0000_1000)
    #expect(registers[.rflags].value == 0x246)
    #expect(registers[.cr3].value == 0x12_3000)
    #expect(
      registers[.cs].value
        == Segment(
          selector: 0x10, base: 0, limit: 0xffff_ffff,
          attributes: SegmentAttributes(descriptor: 0xa0_9b00)))
    #expect(registers[.gdtr].value == DescriptorTable(base: 0xfffe, limit: 0x7f))
    #expect(registers[.rax].value == nil)
  }

  @Test func bitsOfTheHypervisorReadAsTheirShadow() throws {
    let registers = try registers([
      0x6800: 0x8000_0031, 0x6000: 0xf000_0020, 0x6004: 0x4000_0010,
      0x6804: 0x2020, 0x6002: 0x2000, 0x6006: 0,
    ])
    #expect(registers[.cr0].value == 0x4000_0011)
    #expect(registers[.cr4].value == 0x20)
  }

  @Test func registersThatEntryDoesNotLoadAreUnknown() throws {
    #expect(try registers([0x2806: 0xd01])[.efer].value == nil)
    #expect(try registers([0x2806: 0xd01, 0x4012: 1 << 15])[.efer].value == 0xd01)
    #expect(try registers([0x2804: 7, 0x4012: 1 << 14])[.pat].value == 7)
    #expect(try registers([0x6802: 0x1000, 0x4002: 1 << 15])[.cr3].value == nil)
  }
}
