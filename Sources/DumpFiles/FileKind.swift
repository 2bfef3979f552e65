import Memory

/// What a file that is no dump looks like, told by its first bytes.
public enum FileKind: Hashable, Sendable {
  case empty
  /// A file compressed as a whole; the associated value is the command that unpacks it.
  case compressed(format: String, command: String)
  /// The migration stream of `virsh dump` without --memory-only, of `virsh save` or `savevm`.
  case migrationStream
  /// An image of a disk.
  case diskImage(format: String)
  /// A file encrypted as a whole.
  case encrypted(format: String)
  /// A dump of another system.
  case foreignDump(format: String)
  case text
  /// The file starts with zeros.
  case zeros
  case unknown(firstBytes: [UInt8])
}

/// How a file starts, and what that means.
enum FileSignature {
  case elf
  case kdump
  case diskdump
  case other(FileKind)

  /// `start` is the first block of the file, or all of it if it is shorter.
  init(_ start: [UInt8]) {
    func begins(_ bytes: [UInt8]) -> Bool { start.starts(with: bytes) }
    func begins(_ text: String) -> Bool { start.starts(with: text.utf8) }

    if begins([0x7f, 0x45, 0x4c, 0x46]) {
      self = .elf
    } else if begins("KDUMP   ") {
      self = .kdump
    } else if begins("DISKDUMP") {
      self = .diskdump
    } else if start.isEmpty {
      self = .other(.empty)
    } else if let known = Self.magics.first(where: { begins($0.magic) }) {
      self = .other(known.kind)
    } else if start.count > 262, Array(start[257..<262]) == Array("ustar".utf8) {
      self = .other(.compressed(format: "a tar archive", command: "tar -xf"))
    } else if start.isZero {
      self = .other(.zeros)
    } else if start.prefix(512).allSatisfy({ (0x20..<0x7f).contains($0) || (9...13).contains($0) })
    {
      self = .other(.text)
    } else {
      self = .other(.unknown(firstBytes: Array(start.prefix(8))))
    }
  }

  /// First bytes of the formats that dumps get wrapped in, or that get mistaken for dumps.
  /// Source: the formats' specifications, as file(1) collects them.
  private static let magics: [(magic: [UInt8], kind: FileKind)] = [
    ([0x1f, 0x8b], .compressed(format: "gzip", command: "gzip -dk")),
    ([0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00], .compressed(format: "xz", command: "xz -dk")),
    ([0x28, 0xb5, 0x2f, 0xfd], .compressed(format: "zstd", command: "zstd -d --long=31")),
    (Array("BZh".utf8), .compressed(format: "bzip2", command: "bzip2 -dk")),
    ([0x04, 0x22, 0x4d, 0x18], .compressed(format: "lz4", command: "lz4 -d")),
    (
      [0x89, 0x4c, 0x5a, 0x4f, 0x00, 0x0d, 0x0a, 0x1a, 0x0a],
      .compressed(format: "lzop", command: "lzop -d")
    ),
    ([0x37, 0x7a, 0xbc, 0xaf, 0x27, 0x1c], .compressed(format: "7-Zip", command: "7z x")),
    ([0x50, 0x4b, 0x03, 0x04], .compressed(format: "zip", command: "unzip")),
    (Array("QEVM".utf8), .migrationStream),
    (Array("LibvirtQemudSave".utf8), .migrationStream),
    (Array("LibvirtQemudPart".utf8), .migrationStream),
    ([0x51, 0x46, 0x49, 0xfb], .diskImage(format: "QEMU's qcow2")),
    (Array("KDMV".utf8), .diskImage(format: "VMware's VMDK")),
    (Array("conectix".utf8), .diskImage(format: "VHD")),
    (Array("vhdxfile".utf8), .diskImage(format: "VHDX")),
    ([0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe], .encrypted(format: "LUKS")),
    (Array("Salted__".utf8), .encrypted(format: "OpenSSL")),
    (Array("-----BEGIN PGP MESSAGE".utf8), .encrypted(format: "OpenPGP")),
    (Array("age-encryption.org/".utf8), .encrypted(format: "age")),
    (Array("PAGEDU64".utf8), .foreignDump(format: "a Windows crash dump")),
    (Array("PAGEDUMP".utf8), .foreignDump(format: "a Windows crash dump")),
    (Array("MDMP".utf8), .foreignDump(format: "a minidump")),
    ([0xd0, 0xbe, 0xd2, 0xbe], .foreignDump(format: "a VMware suspended state")),
    ([0xd2, 0xbe, 0xd2, 0xbe], .foreignDump(format: "a VMware snapshot state")),
    ([0xcf, 0xfa, 0xed, 0xfe], .foreignDump(format: "a Mach-O file")),
  ]
}
