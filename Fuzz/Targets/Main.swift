import CFuzzer
import Glibc

/// `fuzz PARSER [libFuzzer's options and corpora]`, `fuzz --list`, `fuzz --seeds PARSER DIRECTORY`.
///
/// The package manager renames the main function of a program; libFuzzer has one of its own, which
/// this stands in for.
@_cdecl("fuzz_main")
func main(
  _ count: Int32, _ arguments: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>
) -> Int32 {
  let words = (0..<Int(count)).compactMap { index in
    unsafe arguments[index].map { unsafe String(cString: $0) }
  }
  if words.dropFirst().first == "--list" {
    for parser in parsers { print(parser.name) }
    return 0
  }
  if words.count == 4, words[1] == "--seeds", let parser = parser(words[2]) {
    for (index, seed) in parser.seeds().enumerated() {
      guard write(seed, to: "\(words[3])/seed-\(index)") else { return 1 }
    }
    return 0
  }
  guard words.count > 1, let parser = parser(words[1]) else {
    print("usage: fuzz --list | --seeds PARSER DIRECTORY | PARSER [options] [corpus...]")
    return 2
  }
  unsafe body = parser.makeBody()
  // libFuzzer sees the rest.
  var rest: [UnsafeMutablePointer<CChar>?] = unsafe [arguments[0]]
  for index in 2..<max(2, Int(count)) { unsafe rest.append(arguments[index]) }
  unsafe rest.append(nil)
  return unsafe rest.withUnsafeMutableBufferPointer { rest in
    var count = count - 1
    var arguments = rest.baseAddress
    return unsafe LLVMFuzzerRunDriver(&count, &arguments) { data, size in
      let input = unsafe UnsafeBufferPointer(start: data, count: size)
      unsafe body(Array(input))
      return 0
    }
  }
}

/// libFuzzer calls a C function, which captures nothing; it does so on one thread.
nonisolated(unsafe) private var body: ([UInt8]) -> Void = { _ in }

private func parser(_ name: String) -> Parser? { parsers.first { $0.name == name } }

private func write(_ bytes: [UInt8], to path: String) -> Bool {
  let file = unsafe open(path, O_WRONLY | O_CREAT | O_TRUNC, 0o600)
  guard file >= 0 else { return false }
  defer { close(file) }
  return unsafe bytes.withUnsafeBytes { unsafe Glibc.write(file, $0.baseAddress, $0.count) }
    == bytes.count
}
