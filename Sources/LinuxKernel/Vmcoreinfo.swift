import Memory

/// The text that a kernel leaves for the readers of its dumps: lines of `KEY=value` about itself
/// (kernel/vmcore_info.c, before 6.9 kernel/crash_core.c; Documentation/admin-guide/kdump/
/// vmcoreinfo.rst).
///
/// Memory full of old pages holds broken copies of it. Lines that are not `KEY=value` in printable
/// ASCII are ignored; where a key comes twice, the first line counts.
public struct Vmcoreinfo: Hashable, Sendable {
  /// The text as it was found, without the NUL bytes that pad it.
  public let text: [UInt8]
  private let values: [String: String]

  /// The kernel has one page for the text; more than this is something else.
  public static let maximumSize = 64 << 10

  /// Nil unless the text is at most ``maximumSize`` long and has an `OSRELEASE=` line that can be
  /// a kernel's release.
  public init?(text: [UInt8]) {
    let end = text.lastIndex { $0 != 0 }.map { $0 + 1 } ?? 0
    guard end > 0, end <= Self.maximumSize else { return nil }
    let text = Array(text[..<end])
    var values: [String: String] = [:]
    for line in text.split(whereSeparator: { $0 == UInt8(ascii: "\n") || $0 == 0 }) {
      guard let equals = line.firstIndex(of: UInt8(ascii: "=")), equals > line.startIndex,
        line.allSatisfy({ (0x20...0x7e).contains($0) })
      else { continue }
      let key = String(decoding: line[..<equals], as: UTF8.self)
      if values[key] == nil {
        values[key] = String(decoding: line[(equals + 1)...], as: UTF8.self)
      }
    }
    guard let release = values["OSRELEASE"], Self.isRelease(release) else { return nil }
    self.text = text
    self.values = values
  }

  /// A release is `major.minor` and anything, in at most 64 bytes (`__NEW_UTS_LEN`).
  private static func isRelease(_ release: String) -> Bool {
    let bytes = release.utf8
    let major = bytes.prefix { isDigit($0) }
    let rest = bytes.dropFirst(major.count)
    guard bytes.count <= 64, (1...3).contains(major.count), rest.first == UInt8(ascii: ".") else {
      return false
    }
    return rest.dropFirst().first.map(isDigit) ?? false
  }

  private static func isDigit(_ byte: UInt8) -> Bool {
    (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
  }

  /// The value of a line by its whole key: `"KERNELOFFSET"`, `"SYMBOL(_stext)"`.
  public subscript(key: String) -> String? { values[key] }

  /// OSRELEASE: the kernel's release as `uname -r` tells it.
  public var release: String { values["OSRELEASE"] ?? "" }

  /// BUILD-ID: of vmlinux, in hexadecimal digits. Since 5.9 (0935288c6e00).
  public var buildID: String? { values["BUILD-ID"] }

  /// KERNELOFFSET: how far KASLR moved the kernel's image from its link addresses, in bytes.
  public var kaslrOffset: UInt64? { values["KERNELOFFSET"].flatMap { UInt64($0, radix: 16) } }

  /// CRASHTIME: seconds since 1970, there after a panic only.
  public var crashTime: UInt64? { values["CRASHTIME"].flatMap { UInt64($0) } }

  /// `SYMBOL(name)`: the symbol's address, KASLR included. For an array that the kernel allocates
  /// (`mem_section`) it is where the array lies, not where the symbol does.
  public func symbol(_ name: String) -> VirtualAddress? {
    values["SYMBOL(\(name))"].flatMap { UInt64($0, radix: 16) }.map(VirtualAddress.init)
  }

  /// The names of all `SYMBOL()` lines.
  var symbolNames: [String] {
    values.keys.compactMap { key in
      key.hasPrefix("SYMBOL(") && key.hasSuffix(")") ? String(key.dropFirst(7).dropLast()) : nil
    }
  }

  /// `NUMBER(name)`: printed as a signed decimal, an unsigned one, or in hexadecimal with 0x; the
  /// bits of an unsigned number beyond Int64's range are kept.
  public func number(_ name: String) -> Int64? {
    guard let text = values["NUMBER(\(name))"] else { return nil }
    if text.hasPrefix("0x") {
      return UInt64(text.dropFirst(2), radix: 16).map { Int64(bitPattern: $0) }
    }
    return Int64(text) ?? UInt64(text).map { Int64(bitPattern: $0) }
  }

  /// `OFFSET(structure.member)` in bytes.
  public func offset(_ member: String) -> UInt64? { unsigned("OFFSET", member) }

  /// `SIZE(type)` in bytes.
  public func size(_ type: String) -> UInt64? { unsigned("SIZE", type) }

  /// `LENGTH(array)` in elements.
  public func length(_ array: String) -> UInt64? { unsigned("LENGTH", array) }

  private func unsigned(_ kind: String, _ name: String) -> UInt64? {
    values["\(kind)(\(name))"].flatMap { UInt64($0) }
  }
}

extension Vmcoreinfo {
  private static let noteName = Array("VMCOREINFO\0".utf8)

  /// The note at `offset` of `bytes`, in the form of ELF notes (Elf64_Nhdr, name and text padded
  /// to four bytes): as it lies in the kernel's memory and in a dump's PT_NOTE. Nil if there is no
  /// such note, or it is cut off.
  public static func note(in bytes: [UInt8], at offset: Int) -> Vmcoreinfo? {
    // Elf64_Nhdr: n_namesz, n_descsz, n_type, four bytes each.
    guard let nameSize: UInt32 = bytes.load(at: offset), nameSize == noteName.count,
      bytes.count - offset >= 24, bytes[(offset + 12)...].starts(with: noteName),
      let size: UInt32 = bytes.load(at: offset + 4), size <= maximumSize,
      bytes.count - offset - 24 >= Int(size)
    else { return nil }
    return Vmcoreinfo(text: Array(bytes[(offset + 24)..<(offset + 24 + Int(size))]))
  }
}
