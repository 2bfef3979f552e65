extension [UInt8] {
  /// Damages some bytes in the ways that find faults of parsers: single bits, extreme values,
  /// neighbours of what was there.
  public mutating func damage(using generator: inout some RandomNumberGenerator) {
    guard !isEmpty else { return }
    for _ in 0..<Int.random(in: 1...4, using: &generator) {
      let index = Int.random(in: 0..<count, using: &generator)
      switch Int.random(in: 0..<5, using: &generator) {
      case 0: self[index] ^= 1 << UInt8.random(in: 0..<8, using: &generator)
      case 1: self[index] = [0, 1, 0x7f, 0x80, 0xff].randomElement(using: &generator) ?? 0
      case 2: self[index] &+= 1
      case 3: self[index] = UInt8.random(in: 0...255, using: &generator)
      default:
        for byte in index..<Swift.min(index + 4, count) { self[byte] = 0xff }
      }
    }
  }
}
