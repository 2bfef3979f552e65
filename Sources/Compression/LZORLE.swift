/// LZO1X as Linux has it since 5.1 (5ee4014af99f, d43c93fa43ac): a stream may start with 17 and its version, and
/// then has runs of zeros besides. Documentation/staging/lzo.rst describes the format.
///
/// liblzo2 knows nothing of these runs. Total: any bytes decode to something or are refused.
public enum LZORLE {
  /// True if the stream is sound and fills `output` exactly.
  public static func decompress(
    _ input: UnsafeRawBufferPointer, into output: UnsafeMutableRawBufferPointer
  ) -> Bool {
    var stream = unsafe Stream(input: input, output: output)
    return stream.decode()
  }

  /// The shortest run of zeros (MIN_ZERO_RUN_LENGTH).
  private static let shortestZeroRun = 4

  @safe private struct Stream {
    let input: UnsafeRawBufferPointer
    let output: UnsafeMutableRawBufferPointer
    private let inputSize: Int
    private let outputSize: Int
    private var position = 0
    private var written = 0

    init(input: UnsafeRawBufferPointer, output: UnsafeMutableRawBufferPointer) {
      unsafe self.input = input
      unsafe self.output = output
      inputSize = input.count
      outputSize = output.count
    }

    /// What the last instruction left behind, which decides on the meaning of the shortest ones.
    private enum State {
      case matchWithoutLiterals
      /// A match with 1 to 3 literals behind it.
      case match
      case literals
    }

    mutating func decode() -> Bool {
      var hasZeroRuns = false
      if inputSize >= 5, unsafe input[0] == 17 {
        hasZeroRuns = unsafe input[1] != 0
        position = 2
      }
      var state = State.matchWithoutLiterals
      if position < inputSize, unsafe input[position] > 17 {
        let count = unsafe Int(input[position]) - 17
        position += 1
        guard copyLiterals(count) else { return false }
        state = count < 4 ? .match : .literals
      }
      while let instruction = next() {
        var length: Int
        let distance: Int
        /// Literals behind the match: two bits of the instruction or of the distance.
        let literals: Int
        switch instruction {
        case 64...:
          guard let high = next() else { return false }
          length = (instruction >> 5) + 1
          distance = high << 3 + (instruction >> 2 & 7) + 1
          literals = instruction & 3
        case 32...:
          guard let count = self.length(instruction & 31, base: 31),
            let word = nextWord()
          else { return false }
          length = count + 2
          distance = word >> 2 + 1
          literals = word & 3
        case 16...:
          if hasZeroRuns, instruction & 0xf8 == 0x18, let word = peekWord(),
            word & 0xfffc == 0xfffc
          {
            position += 2
            guard let high = next(),
              fillZeros(instruction & 7 + high << 3 + shortestZeroRun),
              copyLiterals(word & 3)
            else { return false }
            state = word & 3 == 0 ? .matchWithoutLiterals : .match
            continue
          }
          guard let count = self.length(instruction & 7, base: 7),
            let word = nextWord()
          else { return false }
          length = count + 2
          let far = (instruction & 8) << 11 + word >> 2
          if far == 0 {
            // The end, which is written as a match of 3.
            return length == 3 && position == inputSize && written == outputSize
          }
          distance = far + 0x4000
          literals = word & 3
        default:
          if state == .matchWithoutLiterals {
            guard let count = self.length(instruction, base: 15),
              copyLiterals(count + 3)
            else { return false }
            state = .literals
            continue
          }
          guard let high = next() else { return false }
          length = state == .match ? 2 : 3
          // Behind literals, matches so near would have been found otherwise: M2's reach is added.
          distance = high << 2 + (instruction >> 2) + (state == .match ? 1 : 0x801)
          literals = instruction & 3
        }
        guard copyMatch(length, distance), copyLiterals(literals) else {
          return false
        }
        state = literals == 0 ? .matchWithoutLiterals : .match
      }
      return false
    }

    private mutating func next() -> Int? {
      guard position < inputSize else { return nil }
      defer { position += 1 }
      return unsafe Int(input[position])
    }

    private func peekWord() -> Int? {
      guard position + 1 < inputSize else { return nil }
      return unsafe Int(input[position]) | Int(input[position + 1]) << 8
    }

    private mutating func nextWord() -> Int? {
      defer { position += 2 }
      return peekWord()
    }

    /// A length that goes on in bytes behind the instruction if its bits there are zero: 255 for each
    /// byte of zero, then the rest.
    private mutating func length(_ bits: Int, base: Int) -> Int? {
      guard bits == 0 else { return bits }
      var length = base
      while let byte = next() {
        guard byte == 0 else { return length + byte }
        length += 255
      }
      return nil
    }

    private mutating func copyLiterals(_ count: Int) -> Bool {
      guard count <= inputSize - position, count <= outputSize - written else {
        return false
      }
      guard count > 0 else { return true }
      unsafe UnsafeMutableRawBufferPointer(rebasing: output[written..<written + count])
        .copyMemory(from: UnsafeRawBufferPointer(rebasing: input[position..<position + count]))
      position += count
      written += count
      return true
    }

    private mutating func copyMatch(_ length: Int, _ distance: Int) -> Bool {
      guard distance <= written, length <= outputSize - written else {
        return false
      }
      // Byte by byte: a match may reach into what it writes.
      for _ in 0..<length {
        unsafe output[written] = unsafe output[written - distance]
        written += 1
      }
      return true
    }

    private mutating func fillZeros(_ count: Int) -> Bool {
      guard count <= outputSize - written else { return false }
      unsafe UnsafeMutableRawBufferPointer(rebasing: output[written..<written + count])
        .initializeMemory(as: UInt8.self, repeating: 0)
      written += count
      return true
    }
  }
}
