import Compression
import SyntheticDumps
import Testing

/// LZO1X with Linux's runs of zeros.
@Suite struct LZORLETests {
  private func decode(_ stream: [UInt8], size: Int) -> [UInt8]? {
    var output = [UInt8](repeating: 0xee, count: size)
    let isWhole = unsafe stream.withUnsafeBytes { stream in
      unsafe output.withUnsafeMutableBytes { output in
        unsafe LZORLE.decompress(stream, into: output)
      }
    }
    return isWhole ? output : nil
  }

  private static let end: [UInt8] = [17, 0, 0]

  /// A stream of version 1 that starts with literals, 4 at least.
  private func stream(_ literals: [UInt8], _ rest: [UInt8]) -> [UInt8] {
    [17, 1, UInt8(17 + literals.count)] + literals + rest + Self.end
  }

  /// An instruction for 4 to 2050 zeros with up to 3 literals behind them.
  private func zeros(_ count: Int, _ literals: [UInt8] = []) -> [UInt8] {
    let length = count - 4
    return [0x18 | UInt8(length & 7), 0xfc | UInt8(literals.count), 0xff, UInt8(length >> 3)]
      + literals
  }

  @Test(arguments: [4, 5, 11, 12, 2000, 2051])
  func `a run of zeros`(count: Int) {
    let page: [UInt8] = [1, 2, 3, 4] + [UInt8](repeating: 0, count: count)
    #expect(decode(stream([1, 2, 3, 4], zeros(count)), size: page.count) == page)
  }

  @Test func `a run of zeros with literals behind it, and a match over all of them`() {
    // 16 + 8: 5 bytes, 0x801 or nearer is M3: 32 + length - 2, distance - 1 in 14 bits.
    let match: [UInt8] = [32 + 6, UInt8((12 - 1) << 2), 0]
    let page: [UInt8] = [1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 8, 9, 1, 2, 3, 4, 0, 0, 0, 0]
    #expect(decode(stream([1, 2, 3, 4], zeros(6, [8, 9]) + match), size: page.count) == page)
  }

  @Test func `without a version, the same instruction is a match far away`() {
    // Distance 0x4000 + 0x4000 + 0x3fff, which a page does not have.
    let stream: [UInt8] = [21, 1, 2, 3, 4] + zeros(4) + Self.end
    #expect(decode(stream, size: 8) == nil)
  }

  @Test func `each kind of match`() {
    // M2, 3 to 8 bytes up to 0x800 back; 2 bytes behind a match; 3 bytes from 0x801 on behind literals.
    let literals = (0..<200 as Range<UInt8>).map { $0 }
    var page = literals
    var stream: [UInt8] = [17 + 200] + literals
    func copy(_ count: Int, _ distance: Int) {
      for _ in 0..<count { page.append(page[page.count - distance]) }
    }
    // 8 bytes from 100 back, 1 literal behind them.
    stream += [7 << 5 | UInt8((100 - 1) & 7) << 2 | 1, UInt8((100 - 1) >> 3), 0x77]
    copy(8, 100)
    page.append(0x77)
    // 2 bytes from 50 back: a short match behind a match with literals.
    stream += [UInt8((50 - 1) & 3) << 2, UInt8((50 - 1) >> 2)]
    copy(2, 50)
    // A long M3: 33 + 255 + 10 bytes from 3 back, which overlap.
    stream += [32, 0, 10, UInt8((3 - 1) << 2), 0]
    copy(33 + 255 + 10, 3)
    // A run of literals of 18 + 20.
    stream += [0, 20] + [UInt8](repeating: 0x55, count: 38)
    page += [UInt8](repeating: 0x55, count: 38)
    #expect(decode(stream + Self.end, size: page.count) == page)
  }

  @Test(arguments: 0..<50)
  func `what liblzo2 writes decodes to the same`(seed: Int) throws {
    var generator = SeededGenerator(seed: UInt64(seed))
    var page: [UInt8] = []
    while page.count < 4096 {
      let isRun = Bool.random(using: &generator)
      let count = Int.random(in: 1...(isRun ? 600 : 40), using: &generator)
      let byte = UInt8.random(in: 0...255, using: &generator)
      for _ in 0..<count {
        page.append(isRun ? byte : UInt8.random(in: 0...255, using: &generator))
      }
      if page.count > 100 { page += page[page.count - 90..<page.count - 30] }
    }
    page = Array(page[..<4096])
    let stored = try #require(Compression.lzo.compressed(page))
    #expect(decode(stored, size: page.count) == page)
    // A page of another size is none.
    #expect(decode(stored, size: page.count - 1) == nil)
    #expect(decode(stored, size: page.count + 1) == nil)
    #expect(decode(stored.dropLast(), size: page.count) == nil)
  }

  @Test(arguments: 0..<2000)
  func `any bytes are refused or decoded, and nothing else happens`(seed: Int) {
    var generator = SeededGenerator(seed: UInt64(seed))
    let count = Int.random(in: 0...40, using: &generator)
    var bytes = (0..<count).map { _ in UInt8.random(in: 0...255, using: &generator) }
    if Bool.random(using: &generator) { bytes = [17, 1] + bytes }
    if let output = decode(bytes + Self.end, size: 64) { #expect(output.count == 64) }
  }

  private func decode(_ stream: ArraySlice<UInt8>, size: Int) -> [UInt8]? {
    decode(Array(stream), size: size)
  }
}
