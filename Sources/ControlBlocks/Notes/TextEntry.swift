/// A line `KEYWORD(key)=value` of the texts that notes hold.
struct TextEntry {
  let keyword: Substring
  let key: Substring
  let value: Substring

  init?(_ line: Substring) {
    guard let open = line.firstIndex(of: "("), let close = line.firstIndex(of: ")"),
      open < close, line[close...].hasPrefix(")=")
    else { return nil }
    keyword = line[..<open]
    key = line[line.index(after: open)..<close]
    value = line[close...].dropFirst(2)
  }
}

extension Substring {
  /// What follows a prefix, without blanks before it; nil without the prefix.
  func value(after prefix: String) -> Substring? {
    guard hasPrefix(prefix) else { return nil }
    return dropFirst(prefix.count).drop { $0 == " " }
  }
}
