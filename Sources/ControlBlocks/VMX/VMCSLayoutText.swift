import Memory

extension VMCSLayout {
  /// The owner of the note that tells a layout.
  package static let noteName = "VMCSINFO"

  /// A layout out of a text that a dump holds or a user gives: `VMCSINFO/1`, the note of 2012, or a
  /// table. Nil if there is no field in it.
  public init?(text: String, origin: String) {
    guard let layout = VMCSLayoutText.parse(text, origin: origin) else { return nil }
    self = layout
  }

  /// A layout out of the bytes of a text, or of a whole note: an ELF note of the owner "VMCSINFO".
  public init?(contents bytes: [UInt8], origin: String) {
    // The head of a note has 12 bytes, the name with its padding too.
    let isNote = bytes.count >= 24 && bytes[12...].starts(with: Array("VMCSINFO\0".utf8))
    let text = bytes[(isNote ? 24 : 0)...].prefix { $0 != 0 }
    self.init(text: String(decoding: text, as: UTF8.self), origin: origin)
  }

  /// The layout as `VMCSINFO/1`, which `init(text:origin:)` reads back.
  public var text: String { VMCSLayoutText.measured(self) }
}

/// The texts that layouts come in: the tables of the built-in database, the `VMCSINFO/1` text, and
/// the VMCSINFO note of 2012.
enum VMCSLayoutText {
  /// A table of the database: `0xENCODING NAME offset 0xOFFSET bytes …`, with a head of comments,
  /// `# revision_id:` and `# access_rights_format:` among them.
  static func table(_ text: String, origin: String) -> VMCSLayout? {
    var places: [VMCSField: VMCSLayout.Place] = [:]
    var revision: UInt32?
    var form = VMCSLayout.AccessRightsForm.plain
    for line in text.split(separator: "\n") {
      if let value = line.value(after: "# revision_id:") {
        revision = number(value.prefix { $0 != " " })
      } else if let value = line.value(after: "# access_rights_format:") {
        if value.hasPrefix("rotate8") { form = .rotated }
        if value.hasPrefix("pack16") { form = .packed }
      }
      let columns = line.split(separator: " ")
      guard columns.count >= 5, let encoding = number(columns[0]), columns[0].hasPrefix("0x"),
        let offset = Int(columns[2]), let size = Int(columns[4])
      else { continue }
      places[VMCSField(encoding)] = .bytes(offset: offset, size: size)
    }
    guard !places.isEmpty else { return nil }
    return VMCSLayout(origin: origin, revision: revision, places: places, accessRights: form)
  }

  /// Any of the texts that a dump or a file can hold.
  static func parse(_ text: String, origin: String) -> VMCSLayout? {
    // A line that was cut off can end in the middle of an offset.
    let text = String(text[..<(text.lastIndex(of: "\n") ?? text.startIndex)])
    if text.hasPrefix("VMCSINFO/1") { return measured(text, origin: origin) }
    return indexes(text, origin: origin) ?? table(text, origin: origin)
  }

  /// `VMCSINFO/1`: `REVISION=0x…`, `OFF(encoding)=bytes:offset`, and `BITS(encoding)=bytes:…` with
  /// the bit in the region for each bit of the value, `ffff` for one that is not stored.
  private static func measured(_ text: String, origin: String) -> VMCSLayout? {
    var places: [VMCSField: VMCSLayout.Place] = [:]
    var revision: UInt32?
    for line in text.split(separator: "\n").prefix(4096) {
      if let value = line.value(after: "REVISION=") { revision = number(value) }
      if line == "END" { break }
      guard let entry = TextEntry(line) else { continue }
      let parts = entry.value.split(separator: ":", maxSplits: 1)
      guard parts.count == 2, let size = Int(parts[0]),
        let field = UInt32(entry.key, radix: 16).map(VMCSField.init)
      else { continue }
      if entry.keyword == "OFF", let offset = number(parts[1]), offset < 1 << 16 {
        places[field] = .bytes(offset: Int(offset), size: size)
      } else if entry.keyword == "BITS" {
        let bits = parts[1].split(separator: ",").map { UInt16($0, radix: 16) }
        guard bits.count <= 64, !bits.contains(nil) else { continue }
        places[field] = .bits(bits.map { $0 == 0xffff ? nil : $0 })
      }
    }
    guard !places.isEmpty else { return nil }
    // OFF lines of access rights are stored as they read: the others come as BITS.
    return VMCSLayout(origin: origin, revision: revision, places: places, accessRights: .plain)
  }

  static func measured(_ layout: VMCSLayout) -> String {
    var lines = ["VMCSINFO/1", "# from \(layout.origin)"]
    if let revision = layout.revision {
      lines.append("REVISION=0x" + String(revision, radix: 16))
    }
    for field in layout.fields {
      let name = hexadecimal(UInt64(field.encoding), digits: 4).dropFirst(2)
      if let evidence = layout.evidence[field] { lines.append("# \(field.label) \(evidence)") }
      switch layout.place(of: field) {
      case .bytes(let offset, let size):
        if field.isAccessRights, let bits = layout.accessRights.bits(at: offset) {
          lines.append(line(name, field.size, bits))
        } else {
          lines.append("OFF(\(name))=\(size):0x" + String(offset, radix: 16))
        }
      case .bits(let bits): lines.append(line(name, field.size, bits))
      case .oneOf(let offsets, _):
        let places = offsets.map { "0x" + String($0, radix: 16) }.joined(separator: ", ")
        lines.append("# \(name) lies at one of \(places)")
      case nil: break
      }
    }
    return lines.joined(separator: "\n") + "\nEND\n"
  }

  private static func line(_ name: Substring, _ size: Int, _ bits: [UInt16?]) -> String {
    let places = bits.map { hexadecimal(UInt64($0 ?? 0xffff), digits: 4).dropFirst(2) }
    return "BITS(\(name))=\(size):" + places.joined(separator: ",")
  }

  /// The note of 2012: `REVISION_ID=d`, `FIELD(NAME)=…` with, in each 16 bits, the index that the
  /// field's place in the region had been filled with; or, in a later form, the plain offset.
  private static func indexes(_ text: String, origin: String) -> VMCSLayout? {
    var places: [VMCSField: VMCSLayout.Place] = [:]
    var revision: UInt32?
    var form = VMCSLayout.AccessRightsForm.plain
    for line in text.split(separator: "\n").prefix(4096) {
      if let value = line.value(after: "REVISION_ID=") { revision = UInt32(value, radix: 16) }
      guard let entry = TextEntry(line), entry.keyword == "FIELD",
        let field = VMCSField.named(entry.key), let value = UInt64(entry.value, radix: 16)
      else { continue }
      if let offset = FilledIndex.offset(value, size: field.size) {
        places[field] = .bytes(offset: offset, size: field.size)
      } else if field.isAccessRights,
        let offset = FilledIndex.offset(
          VMCSLayout.AccessRightsForm.rotated.encode(UInt32(truncatingIfNeeded: value)), size: 4)
      {
        // VMREAD rotated what the region was filled with.
        form = .rotated
        places[field] = .bytes(offset: offset, size: 4)
      } else if value < 4096, value % 2 == 0 {
        places[field] = .bytes(offset: Int(value), size: field.size)
      }
    }
    guard !places.isEmpty else { return nil }
    return VMCSLayout(origin: origin, revision: revision, places: places, accessRights: form)
  }

  /// Digits with or without `0x`: hexadecimal with it, else decimal.
  private static func number(_ text: some StringProtocol) -> UInt32? {
    text.hasPrefix("0x") ? UInt32(text.dropFirst(2), radix: 16) : UInt32(text)
  }
}

/// The index that the 2012 series filled each 16 bits of a region with, made from the byte offset:
/// bits 0-6 of it in bits 1-7, bits 7-13 in bits 9-15, bit 8 set, bit 0 clear, so that a value read
/// with its bytes turned shows.
enum FilledIndex {
  static func encode(_ offset: Int) -> UInt16 {
    UInt16(truncatingIfNeeded: (offset & 0x7f) << 1 | (offset & 0x3f80) << 2 | 0x100)
  }

  private static func decode(_ index: UInt16) -> Int? {
    guard index & 0x101 == 0x100 else { return nil }
    return Int(index >> 1 & 0x7f) | Int(index >> 2 & 0x3f80)
  }

  /// The offset that the value of a field of `size` bytes tells: all its words must follow on.
  static func offset(_ value: some BinaryInteger, size: Int) -> Int? {
    let words = (0..<(size / 2)).map {
      UInt16(truncatingIfNeeded: UInt64(value) >> (16 * UInt64($0)))
    }
    let offsets = words.map(decode)
    guard let first = offsets.first ?? nil else { return nil }
    for (index, offset) in offsets.enumerated() where offset != first + 2 * index { return nil }
    return first
  }
}
