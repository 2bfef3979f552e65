import Foundation

/// The manual page, man/vmcore-split.1, in the mdoc language.
struct Manual {
  /// A command's line of the synopsis.
  struct Synopsis {
    let command: String
    /// `-q`, `--guest`, …
    let options: [String]
  }

  static let path = packageRoot.appending(path: "man/vmcore-split.1").path(percentEncoded: false)

  let synopsis: [Synopsis]
  /// The items of the section OPTIONS.
  let options: [Help.Option]
  /// The names that the section DIAGNOSTICS explains.
  let diagnostics: [String]
  /// Words marked as a value (Cm) anywhere.
  let keywords: Set<String>

  init() throws {
    let text = String(
      decoding: try Data(contentsOf: URL(filePath: Self.path)), as: UTF8.self)
    var section = ""
    var synopsis: [(command: String?, options: [String])] = []
    var options: [Help.Option] = []
    var diagnostics: [String] = []
    var keywords: Set<String> = []
    for line in text.split(separator: "\n") {
      let words = line.split(separator: " ").map(String.init)
      if words[0] == ".Sh" { section = words.dropFirst().joined(separator: " ") }
      let flags = zip(words, words.dropFirst()).filter { $0.0.hasSuffix("Fl") }.map { "-" + $0.1 }
      if let index = words.firstIndex(where: { $0.hasSuffix("Cm") }), index + 1 < words.count {
        keywords.insert(words[index + 1])
        if section == "SYNOPSIS", !synopsis.isEmpty {
          synopsis[synopsis.count - 1].command = words[index + 1]
        }
      }
      switch section {
      case "SYNOPSIS" where words == [".Nm"]: synopsis.append((nil, []))
      case "SYNOPSIS" where !flags.isEmpty: synopsis[synopsis.count - 1].options += flags
      case "OPTIONS" where words[0] == ".It":
        let value = words.firstIndex(of: "Ar").map { words[$0 + 1] }
        options.append(Help.Option(names: Set(flags), value: value))
      case "DIAGNOSTICS" where words[0] == ".It":
        diagnostics += words.dropFirst(2).filter { $0 != "," }
      default: break
      }
    }
    self.synopsis = synopsis.map { Synopsis(command: $0.command ?? "", options: $0.options) }
    self.options = options
    self.diagnostics = diagnostics
    self.keywords = keywords
  }
}
