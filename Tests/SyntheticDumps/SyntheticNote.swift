import Memory

/// A note of a dump.
public struct SyntheticNote: Sendable {
  public var name: String
  public var type: UInt32
  public var description: [UInt8]

  public init(name: String, type: UInt32, description: [UInt8]) {
    self.name = name
    self.type = type
    self.description = description
  }

  public static func vmcoreinfo(_ text: String) -> SyntheticNote {
    SyntheticNote(name: "VMCOREINFO", type: 0, description: Array(text.utf8))
  }

  /// NT_PRSTATUS of an x86-64 CPU (elf.h): the registers, in the order of user_regs_struct, are
  /// numbers that tell the CPU and the register.
  public static func processStatus(cpu: UInt32) -> SyntheticNote {
    var bytes = [UInt8](repeating: 0, count: 32)
    bytes.append(littleEndian: cpu + 1)
    bytes.append(contentsOf: repeatElement(0, count: 112 - bytes.count))
    for register in 0..<27 { bytes.append(littleEndian: UInt64(cpu) << 32 | UInt64(register)) }
    bytes.append(littleEndian: UInt64(0))
    return SyntheticNote(name: "CORE", type: 1, description: bytes)
  }

  /// The note as it lies in memory.
  public var bytes: [UInt8] { encoded.bytes }

  /// The note in a file, and where its description starts.
  var encoded: (bytes: [UInt8], descriptionOffset: Int) {
    var bytes: [UInt8] = []
    bytes.append(littleEndian: UInt32(name.utf8.count + 1))
    bytes.append(littleEndian: UInt32(description.count))
    bytes.append(littleEndian: type)
    bytes += Array(name.utf8)
    repeat { bytes.append(0) } while bytes.count % 4 != 0
    let descriptionOffset = bytes.count
    bytes += description
    while bytes.count % 4 != 0 { bytes.append(0) }
    return (bytes, descriptionOffset)
  }
}
