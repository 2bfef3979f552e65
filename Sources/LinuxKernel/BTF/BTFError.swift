import Memory

/// Type information could not be used.
public enum BTFError: Error, Hashable, Sendable {
  /// Less than a header.
  case truncatedHeader(size: Int)
  /// The first two bytes are not BTF's.
  case notBTF(magic: UInt16)
  /// A version of the format that nobody has defined yet.
  case unknownVersion(UInt8)
  /// A section does not lie within the bytes.
  case sectionOutOfBounds(section: String, offset: UInt64, length: UInt64, size: Int)
  /// The strings do not end with a NUL, or do not begin with the empty string.
  case malformedStrings
  /// The record of a type is cut off by the end of its section.
  case truncatedType(id: UInt32, offset: Int)
  /// A kind of type that is unknown here and of which the header does not tell the size.
  case unknownKind(UInt8, id: UInt32)
  /// A type's name lies beyond the strings.
  case nameOutOfRange(id: UInt32, name: UInt32, limit: UInt32)
  /// A type refers to one that does not exist.
  case typeOutOfRange(id: UInt32, reference: UInt32, limit: UInt32)
  /// A module's type has a name that begins in the middle of a string of the base.
  case foreignBase(id: UInt32, name: UInt32)
}

extension BTFError: Diagnosis {
  public var name: String {
    switch self {
    case .truncatedHeader: "btf.truncated-header"
    case .notBTF: "btf.not-btf"
    case .unknownVersion: "btf.unknown-version"
    case .sectionOutOfBounds: "btf.section-out-of-bounds"
    case .malformedStrings: "btf.malformed-strings"
    case .truncatedType: "btf.truncated-type"
    case .unknownKind: "btf.unknown-kind"
    case .nameOutOfRange: "btf.name-out-of-range"
    case .typeOutOfRange: "btf.type-out-of-range"
    case .foreignBase: "btf.foreign-base"
    }
  }

  public var problem: String {
    switch self {
    case .truncatedHeader(let size):
      "BTF of \(size) bytes is shorter than its header"
    case .notBTF(let magic):
      "BTF begins with \(hexadecimal(UInt64(magic))) instead of 0xeb9f"
    case .unknownVersion(let version):
      "BTF has version \(version); only version 1 is known"
    case .sectionOutOfBounds(let section, let offset, let length, let size):
      "the \(section) of BTF lie at \(offset), \(length) bytes long, beyond its \(size) bytes"
    case .malformedStrings:
      "the strings of BTF do not begin and end with a NUL"
    case .truncatedType(let id, let offset):
      "BTF type \(id) at offset \(offset) of the types is cut off"
    case .unknownKind(let kind, let id):
      "BTF type \(id) is of the unknown kind \(kind)"
    case .nameOutOfRange(let id, let name, let limit):
      "the name of BTF type \(id) lies at \(name) of \(limit) bytes of strings"
    case .typeOutOfRange(let id, let reference, let limit):
      "BTF type \(id) refers to type \(reference), the last is \(limit)"
    case .foreignBase(let id, let name):
      "the name of BTF type \(id) begins at \(name), in the middle of a string of its base"
    }
  }

  public var advice: String? {
    switch self {
    case .truncatedHeader, .notBTF, .sectionOutOfBounds, .malformedStrings, .truncatedType:
      "the kernel's memory is damaged, or what was read is no BTF"
    case .unknownVersion, .unknownKind:
      "the kernel is newer than this program knows"
    case .nameOutOfRange, .typeOutOfRange, .foreignBase:
      "a module's types belong to one build of the kernel: this module was built for another "
        + "(CONFIG_MODULE_ALLOW_BTF_MISMATCH), or the kernel's memory is damaged"
    }
  }
}
