import LinuxKernel
import Memory
import SyntheticDumps
import Testing

private func text(_ lines: String...) -> [UInt8] {
  Array(lines.map { $0 + "\n" }.joined().utf8)
}

private func note(_ text: [UInt8], name: String = "VMCOREINFO\0", size: Int? = nil) -> [UInt8] {
  var bytes: [UInt8] = []
  bytes.append(littleEndian: UInt32(name.utf8.count))
  bytes.append(littleEndian: UInt32(size ?? text.count))
  bytes.append(littleEndian: UInt32(0))
  bytes += Array(name.utf8)
  while bytes.count % 4 != 0 { bytes.append(0) }
  return bytes + text
}

struct VmcoreinfoTests {
  private let sample = text(
    "OSRELEASE=6.1.0-56-amd64", "BUILD-ID=eb4fbcd037e7253717950bf2b93bd5566f47c56f",
    "PAGESIZE=4096", "SYMBOL(_stext)=ffffffffa3200000", "SYMBOL(mem_section)=ffff8af39f325000",
    "OFFSET(list_head.prev)=8", "SIZE(page)=64", "LENGTH(zone.free_area)=11",
    "NUMBER(phys_base)=-138412032", "NUMBER(KERNELPACMASK)=0xffff000000000000",
    "NUMBER(big)=18446744073709551615", "KERNELOFFSET=22200000", "CRASHTIME=1795348470")

  @Test func everyKindOfLineIsRead() throws {
    let info = try #require(Vmcoreinfo(text: sample))
    #expect(info.release == "6.1.0-56-amd64")
    #expect(info.buildID == "eb4fbcd037e7253717950bf2b93bd5566f47c56f")
    #expect(info["PAGESIZE"] == "4096")
    #expect(info.symbol("_stext") == VirtualAddress(0xffff_ffff_a320_0000))
    #expect(info.offset("list_head.prev") == 8)
    #expect(info.size("page") == 64)
    #expect(info.length("zone.free_area") == 11)
    #expect(info.kaslrOffset == 0x2220_0000)
    #expect(info.crashTime == 1_795_348_470)
  }

  @Test func numbersAreSignedUnsignedOrHexadecimal() throws {
    let info = try #require(Vmcoreinfo(text: sample))
    #expect(info.number("phys_base") == -138_412_032)
    #expect(info.number("KERNELPACMASK") == Int64(bitPattern: 0xffff_0000_0000_0000))
    #expect(info.number("big") == -1)
    #expect(info.number("absent") == nil)
  }

  @Test func whatIsNoNumberIsNil() throws {
    let info = try #require(
      Vmcoreinfo(
        text: text(
          "OSRELEASE=6.1.0", "SYMBOL(a)=xyz", "SYMBOL(b)=", "NUMBER(a)=0x", "NUMBER(b)=1 2",
          "SIZE(a)=-1", "OFFSET(a)=99999999999999999999", "KERNELOFFSET=0xg", "CRASHTIME=soon")))
    #expect(info.symbol("a") == nil)
    #expect(info.symbol("b") == nil)
    #expect(info.number("a") == nil)
    #expect(info.number("b") == nil)
    #expect(info.size("a") == nil)
    #expect(info.offset("a") == nil)
    #expect(info.kaslrOffset == nil)
    #expect(info.crashTime == nil)
  }

  @Test func paddingIsNoPartOfTheText() throws {
    let info = try #require(Vmcoreinfo(text: sample + Array(repeating: 0, count: 3000)))
    #expect(info.text == sample)
    #expect(info == Vmcoreinfo(text: sample))
  }

  @Test func junkLinesAreIgnoredAndTheFirstOfAKeyCounts() throws {
    let info = try #require(
      Vmcoreinfo(
        text: text(
          "junk", "=1", "SIZE(\u{7})=2", "OSRELEASE=6.1.0", "SIZE(page)=64", "SIZE(page)=7")
          + [0xff, 0xfe, 0x3d, 0x0a, 0x00, 0x41, 0x3d, 0x31]))
    #expect(info.size("page") == 64)
    #expect(info[""] == nil)
    #expect(info["SIZE(\u{7})"] == nil)
    #expect(info["A"] == "1")
  }

  @Test(arguments: [
    "", "OSRELEASE=", "OSRELEASE=six", "OSRELEASE=6", "OSRELEASE=6.", "OSRELEASE=6.x",
    "OSRELEASE=6666.1", "OSRELEASE=%s", "BUILD-ID=1", " OSRELEASE=6.1.0",
    "OSRELEASE=6.1" + String(repeating: "0", count: 64),
  ])
  func textWithoutAPlausibleReleaseIsRefused(_ line: String) {
    #expect(Vmcoreinfo(text: text(line)) == nil)
  }

  @Test func sizeIsLimited() {
    let filler = String(repeating: "A=1\n", count: 17_000)
    #expect(Vmcoreinfo(text: text("OSRELEASE=6.1.0") + Array(filler.utf8)) == nil)
    #expect(Vmcoreinfo(text: Array(repeating: 0, count: 1 << 20)) == nil)
  }

  @Test func aNoteIsFoundAtItsOffset() throws {
    let bytes = Array(repeating: 0xaa, count: 20) + note(sample) + [1, 2, 3]
    #expect(try #require(Vmcoreinfo.note(in: bytes, at: 20)).text == sample)
    #expect(Vmcoreinfo.note(in: bytes, at: 16) == nil)
    #expect(Vmcoreinfo.note(in: bytes, at: -1) == nil)
    #expect(Vmcoreinfo.note(in: bytes, at: bytes.count) == nil)
    #expect(Vmcoreinfo.note(in: bytes, at: .max) == nil)
  }

  @Test func aNoteOfAnotherNameSizeOrLengthIsNone() {
    #expect(Vmcoreinfo.note(in: note(sample, name: "VMCOREINFX\0"), at: 0) == nil)
    #expect(Vmcoreinfo.note(in: note(sample, name: "VMCOREINFO"), at: 0) == nil)
    #expect(Vmcoreinfo.note(in: note(sample, size: sample.count + 1), at: 0) == nil)
    #expect(Vmcoreinfo.note(in: note(sample, size: 0xffff_ffff), at: 0) == nil)
    #expect(Vmcoreinfo.note(in: note(sample, size: 0), at: 0) == nil)
    #expect(Vmcoreinfo.note(in: Array(note(sample).dropLast()), at: 0) == nil)
    for length in 0..<24 {
      #expect(Vmcoreinfo.note(in: Array(note(sample).prefix(length)), at: 0) == nil)
    }
  }

  @Test func damageNeverTraps() {
    var generator = SeededGenerator(seed: 1)
    for _ in 0..<5000 {
      var bytes = note(sample)
      bytes.damage(using: &generator)
      guard let info = Vmcoreinfo.note(in: bytes, at: 0) else { continue }
      _ = info.symbol("_stext")
      _ = info.number("phys_base")
      _ = info.kaslrOffset
      #expect(!info.release.isEmpty)
    }
  }
}
