/// What a VMM's command line says of its guest.
///
/// QEMU, kvmtool, crosvm and others have an option `name`; Firecracker has `id`. Cloud Hypervisor has
/// neither, but a UUID. What is told twice, and not the same, is not told.
public struct VMMCommandLine: Hashable, Sendable {
  public let name: String?
  public let uuid: String?

  public init(_ arguments: [String]) {
    let options = Options(arguments)
    let program = arguments.first.map { $0.split(separator: "/").last ?? "" } ?? ""
    // -name web1 and libvirt's -name guest=web1,debug-threads=on
    var name = options.value(of: "name").flatMap { text in
      let fields = Self.fields(text)
      return Self.value(of: "guest", in: fields)
        ?? fields.first.flatMap { $0.contains("=") ? nil : $0 }
    }
    var uuid = options.value(of: "uuid")
    // To other programs these mean something else.
    if program.hasPrefix("firecracker") {
      name = options.value(of: "id")
    } else if program.hasPrefix("cloud-hypervisor") {
      uuid = options.value(of: "platform").flatMap { Self.value(of: "uuid", in: Self.fields($0)) }
    }
    self.name = name.flatMap { $0.isEmpty ? nil : $0 }
    self.uuid = uuid
  }

  private static func value(of key: String, in fields: [String]) -> String? {
    fields.first { $0.hasPrefix(key + "=") }.map { String($0.dropFirst(key.count + 1)) }
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

/// Options with values: `-name web1`, `--name web1`, `--name=web1`.
private struct Options {
  /// Without the program, and without what follows a `--`: that is for others.
  private let arguments: ArraySlice<String>

  init(_ arguments: [String]) {
    self.arguments = arguments.dropFirst().prefix { $0 != "--" }
  }

  /// Nil if the option is not there, or with several values.
  func value(of option: String) -> String? {
    var values: Set<String> = []
    for (index, argument) in zip(arguments.indices, arguments) {
      if argument.hasPrefix("--\(option)=") {
        values.insert(String(argument.dropFirst(option.count + 3)))
      } else if argument == "-\(option)" || argument == "--\(option)",
        index + 1 < arguments.endIndex
      {
        values.insert(arguments[index + 1])
      }
    }
    return values.count == 1 ? values.first : nil
  }
}
