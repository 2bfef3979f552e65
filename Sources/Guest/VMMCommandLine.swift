/// What a VMM's command line says of its guest. Knows QEMU's and its relatives' options.
public struct VMMCommandLine: Hashable, Sendable {
  public let name: String?
  public let uuid: String?

  public init(_ arguments: [String]) {
    func value(of option: String) -> String? {
      guard let index = arguments.firstIndex(where: { $0 == "-\(option)" || $0 == "--\(option)" }),
        index + 1 < arguments.count
      else { return nil }
      return arguments[index + 1]
    }
    // -name web1 and libvirt's -name guest=web1,debug-threads=on
    name = value(of: "name").flatMap { text in
      let fields = Self.fields(text)
      let guest = fields.first { $0.hasPrefix("guest=") }?.dropFirst("guest=".count)
      let name = guest ?? fields.first.flatMap { $0.contains("=") ? nil : $0[...] } ?? ""
      return name.isEmpty ? nil : String(name)
    }
    uuid = value(of: "uuid")
  }

  /// The parts between commas; two commas stand for one in a part.
  private static func fields(_ text: String) -> [String] {
    var fields = [""]
    var characters = text[...]
    while let character = characters.popFirst() {
      if character != "," {
        fields[fields.count - 1].append(character)
      } else if characters.first == "," {
        characters.removeFirst()
        fields[fields.count - 1].append(",")
      } else {
        fields.append("")
      }
    }
    return fields
  }
}
