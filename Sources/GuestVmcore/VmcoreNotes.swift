import Memory
import X86

/// What a vmcore's notes are, read one after the other: an area of damaged or malicious ones may be
/// as large as crash takes it, and costs no memory.
struct VmcoreNotes {
  /// The notes fill their area.
  private(set) var areWhole = false
  /// NT_PRSTATUS.
  private(set) var statuses = 0
  /// All are of the right size, and count from 1.
  private(set) var areStatusesKnown = true
  /// QEMU's.
  private(set) var states = 0
  /// All are of the version known.
  private(set) var areStatesKnown = true
  private(set) var vmcoreinfos = 0
  /// The text of the first.
  private(set) var vmcoreinfo: [UInt8]?
  /// The text of the first of ours.
  private(set) var provenance: [UInt8]?
  /// Notes of other kinds.
  private(set) var others = 0

  /// Reads so many bytes at an offset of the area.
  typealias Read = (UInt64, Int) throws(VmcoreCheckError) -> [UInt8]

  private static let headerSize: UInt64 = 12
  private static let nameLimit: UInt64 = 256
  private static let textLimit: UInt64 = 1 << 20
  /// Checksums of a guest of 1 TiB take 8 MiB.
  private static let provenanceLimit: UInt64 = 16 << 20
  private static let windowSize: UInt64 = 1 << 16

  init(size: UInt64, _ read: Read) throws(VmcoreCheckError) {
    var window: [UInt8] = []
    var windowStart: UInt64 = 0
    var position: UInt64 = 0
    while position < size {
      // A header with its name is looked at through a window.
      let needed = min(size - position, Self.headerSize + Self.nameLimit)
      if position < windowStart || position + needed > windowStart + UInt64(window.count) {
        windowStart = position
        window = try read(position, Int(min(size - position, Self.windowSize)))
      }
      let index = Int(position - windowStart)
      guard let nameSize: UInt32 = window.load(at: index),
        let descriptionSize: UInt32 = window.load(at: index + 4),
        let type: UInt32 = window.load(at: index + 8)
      else { return }
      let start = position + Self.headerSize + Self.padded(nameSize)
      let end = start + UInt64(descriptionSize)
      guard end <= size else { return }
      let name =
        UInt64(nameSize) <= Self.nameLimit
        ? window.cString(at: index + Int(Self.headerSize), limit: Int(nameSize)) : nil
      try add(name ?? "", type, size: UInt64(descriptionSize)) { () throws(VmcoreCheckError) in
        try read(start, Int(descriptionSize))
      }
      position = start + Self.padded(descriptionSize)
    }
    areWhole = true
  }

  private static func padded(_ size: UInt32) -> UInt64 { (UInt64(size) + 3) & ~3 }

  private mutating func add(
    _ name: String, _ type: UInt32, size: UInt64,
    _ description: () throws(VmcoreCheckError) -> [UInt8]
  ) throws(VmcoreCheckError) {
    switch (name, type) {
    case (ProcessorNotes.ProcessStatus.name, ProcessorNotes.ProcessStatus.type):
      statuses += 1
      // The operators && and || would not keep the error's type.
      if size != UInt64(ProcessorNotes.ProcessStatus.size) {
        areStatusesKnown = false
      } else if ProcessorNotes.pid(inProcessStatus: try description())
        != UInt32(clamping: statuses)
      {
        areStatusesKnown = false
      }
    case (ProcessorNotes.QEMUState.name, _):
      states += 1
      if size > Self.windowSize {
        areStatesKnown = false
      } else if ProcessorNotes.registers(
        inQEMUState: try description(), source: RegisterSource(.hostProcessor, "")) == nil
      {
        areStatesKnown = false
      }
    case ("VMCOREINFO", _):
      vmcoreinfos += 1
      if vmcoreinfo == nil, size <= Self.textLimit { vmcoreinfo = try description() }
    case (_, VmcoreHeader.ProvenanceNote.type):
      if provenance == nil, size <= Self.provenanceLimit { provenance = try description() }
    default:
      others += 1
    }
  }
}
