import Foundation
import Testing

/// `make kernels` looks for the members of lab/kernels/members.txt in the kernels of the field. What the
/// program asks of a kernel must be there, and nothing else.
struct KernelMemberTests {
  @Test func everyMemberThatIsAskedForIsLookedForInKernels() throws {
    let asked = try KernelMembers.asked()
    let listed = try KernelMembers.listed()
    #expect(asked.count > 100)
    #expect(asked.subtracting(listed).sorted() == [])
  }

  @Test func everyMemberThatIsLookedForIsAskedFor() throws {
    let listed = try KernelMembers.listed()
    let named = try KernelMembers.named()
    #expect(listed.subtracting(named).sorted() == [])
  }
}

/// Names of members, without the structures that have them.
private enum KernelMembers {
  /// The parts of `arch.regs` in a subscript, or as arguments of the functions that look for members.
  static func asked() throws -> Set<String> {
    try Set(literals().filter(\.isMember).flatMap(\.parts))
  }

  /// The parts of all strings.
  static func named() throws -> Set<String> { try Set(literals().flatMap(\.parts)) }

  static func listed() throws -> Set<String> {
    let path = packageRoot.appending(path: "lab/kernels/members.txt")
    var found: Set<String> = []
    for line in try String(contentsOf: path, encoding: .utf8).split(separator: "\n") {
      let words = line.prefix { $0 != "#" }.split(separator: " ").dropFirst()
      for word in words where word.first != "@" && !["|", "?"].contains(word) {
        found.formUnion(word.split(separator: ".").map(String.init))
      }
    }
    // A place in another structure begins with that one's name.
    return found.subtracting(["vcpu_vmx"])
  }

  private struct Literal {
    let text: Substring
    /// It stands where a member's name stands.
    let isMember: Bool

    var parts: [String] {
      let isName = text.allSatisfy {
        $0.isASCII && ($0.isLetter || $0.isNumber || "_.".contains($0))
      }
      return isName ? text.split(separator: ".").map(String.init) : []
    }
  }

  private static func literals() throws -> [Literal] {
    try ["LinuxKernel", "KVMHost"].flatMap { module in
      let folder = packageRoot.appending(path: "Sources/\(module)").path(percentEncoded: false)
      return try FileManager.default.subpathsOfDirectory(atPath: folder)
        .filter { $0.hasSuffix(".swift") }
        .flatMap { try literals(of: String(contentsOfFile: "\(folder)/\($0)", encoding: .utf8)) }
    }
  }

  /// What lies between quotes is every other piece of a line.
  private static func literals(of source: String) -> [Literal] {
    var found: [Literal] = []
    // What stands before a literal may stand on the line before.
    var before: Substring = ""
    var wasMember = false
    for line in source.split(separator: "\n") {
      let pieces = line.split(separator: "\"", omittingEmptySubsequences: false)
      if pieces[0].contains("//") { continue }
      for (index, piece) in pieces.enumerated() {
        if index.isMultiple(of: 2) {
          let code = piece.trimmingCharacters(in: .whitespaces)
          if !code.isEmpty { before = code[...] }
        } else {
          wasMember = isPlaceOfMember(behind: before) || (wasMember && before == ",")
          found.append(Literal(text: piece, isMember: wasMember))
        }
      }
    }
    return found
  }

  private static func isPlaceOfMember(behind code: Substring) -> Bool {
    if ["member(", "memberIfPresent(", "has("].contains(where: code.hasSuffix) { return true }
    guard code.last == "[", let last = code.dropLast().last else { return false }
    // Symbols and lines of VMCOREINFO are in brackets too, and so are lists.
    let isSubscript = last.isLetter || last.isNumber || ")]".contains(last)
    return isSubscript
      && !["ymbols[", "vmcoreinfo[", "keys[", "values["].contains(where: code.hasSuffix)
  }
}
