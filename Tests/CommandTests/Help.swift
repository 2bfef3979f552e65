/// What a command's `--help` says of its options.
struct Help {
  /// An option with all its names, dashes and all.
  struct Option: Hashable {
    let names: Set<String>
    /// The name of its value; nil for a flag.
    let value: String?
  }

  let options: [Option]
  /// Names of subcommands.
  let commands: [String]

  init(of command: String?) throws {
    let text = try Program.run([command, "--help"].compactMap(\.self), in: Folder()).output
    var section = Substring()
    var options: [Option] = []
    var commands: [String] = []
    for line in text.split(separator: "\n") {
      if let heading = line.wholeMatch(of: /([A-Z]+):.*/) { section = heading.1 }
      guard let entry = line.firstMatch(of: /^  ([^ ].*?)(  |$)/)?.1 else { continue }
      if section == "OPTIONS" {
        let words = entry.split(whereSeparator: { $0 == " " || $0 == "," }).map(String.init)
        options.append(
          Option(
            names: Set(words.filter { $0.hasPrefix("-") }),
            value: words.last.flatMap { $0.wholeMatch(of: /<(.*)>/) }.map { String($0.1) }))
      } else if section == "SUBCOMMANDS", let name = entry.firstMatch(of: /^[a-z-]+/)?.0 {
        commands.append(String(name))
      }
    }
    self.options = options
    self.commands = commands
  }
}
