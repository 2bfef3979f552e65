import DumpFiles
import Guest
import Memory

/// How the process was started, from its stack. Source: Linux fs/binfmt_elf.c, create_elf_tables:
/// argc, the arguments' pointers, 0, the environment's, 0, the auxiliary vector, the texts.
struct CommandLine: Sendable {
  /// Complete arguments, the program's name first; empty if none are known.
  let arguments: [String]

  init(of image: ProcessImage) {
    arguments = Self.fromStack(image) ?? Self.fromNote(image.core)
  }

  /// What the guest is called by it.
  func identity(of core: ProcessCore, backend: String) -> GuestIdentity {
    let known = VMMCommandLine(arguments)
    return GuestIdentity(
      name: known.name, uuid: known.uuid, pid: core.pid, command: core.command, backend: backend)
  }

  var findings: [Finding] {
    guard arguments.isEmpty else { return [] }
    return [
      Finding(
        .note, "guest.no-command-line",
        "the VMM's command line is not in the core: the guest is named by process and pid")
    ]
  }

  /// The kernel allows 6 MiB for all the texts (fs/exec.c, `_STK_LIM / 4 * 3`).
  private static let stackLimit: UInt64 = 8 << 20
  private static let argumentLimit = 1 << 16

  /// The copy of the auxiliary vector that the process was given lies behind the pointers.
  private static func fromStack(_ image: ProcessImage) -> [String]? {
    let vector = image.core.auxiliaryVector.prefix(2)
    guard vector.count == 2,
      let top = image.core.auxiliary(ProcessCore.Auxiliary.executableName)
    else { return nil }
    let start = VirtualAddress(max(top, stackLimit) - stackLimit & ~7)
    var place: VirtualAddress?
    image.forEachWord(in: [start..<VirtualAddress(top)]) { address, word in
      if word == vector[0].type,
        let bytes = try? image.read(address, count: 32),
        bytes.load(at: 8) == vector[0].value, bytes.load(at: 16) == vector[1].type,
        bytes.load(at: 24) == vector[1].value
      {
        place = address
      }
      return true
    }
    guard let place,
      let environment = startOfPointers(before: place, in: image),
      let arguments = startOfPointers(before: environment, in: image),
      let count: UInt64 = try? image.load(arguments - 8),
      count == environment.distance(from: arguments) / 8 - 1, count > 0
    else { return nil }
    var texts: [String] = []
    for index in 0..<count {
      guard let pointer = try? image.pointer(arguments + 8 * index),
        let text = image.string(pointer, limit: 1 << 17)
      else { return nil }
      texts.append(text)
    }
    return texts
  }

  /// Where the pointers start that end with the 0 right before `end`: behind the word before them,
  /// which is a count or another 0.
  private static func startOfPointers(
    before end: VirtualAddress, in image: ProcessImage
  ) -> VirtualAddress? {
    guard (try? image.load(end - 8, as: UInt64.self)) == 0 else { return nil }
    var start = end - 8
    for _ in 0..<argumentLimit {
      guard let word: UInt64 = try? image.load(start - 8) else { return nil }
      // argc is no address: nothing is mapped in the first pages.
      if word < UInt64(argumentLimit) { return start }
      start = start - 8
    }
    return nil
  }

  /// The note has 79 characters; an argument that they cut off is left out.
  private static func fromNote(_ core: ProcessCore) -> [String] {
    guard let text = core.argumentStart else { return [] }
    let words = text.split(separator: " ").map(String.init)
    return text.utf8.count < 79 ? words : words.dropLast()
  }
}
