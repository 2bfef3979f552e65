import Guest
import Memory
import X86

/// What the host's KVM knew of a guest, in the core of the guest's VMM: the text of the note
/// `KVMINFO` (docs/VMCSINFO.md, section 8).
package struct KVMInfo: Hashable, Sendable {
  package static let noteName = "KVMINFO"

  /// How the guest ran: `KVM (AMD SVM)`.
  package var backend: String
  /// True if the guest's memory is encrypted.
  package var isEncrypted: Bool
  /// Ascending and apart from each other.
  package var slots: [Slot]
  package var processors: [VirtualProcessor]
  /// What is missing, stale or doubtful of all this.
  package var findings: [Finding]

  /// A memory slot: guest-physical memory that is memory of the VMM.
  package struct Slot: Hashable, Sendable {
    package let id: Int64
    package let start: GuestPhysicalAddress
    /// In bytes.
    package let size: UInt64
    package let userspaceAddress: VirtualAddress
    package let isReadOnly: Bool

    package init(
      id: Int64, start: GuestPhysicalAddress, size: UInt64, userspaceAddress: VirtualAddress,
      isReadOnly: Bool
    ) {
      self.id = id
      self.start = start
      self.size = size
      self.userspaceAddress = userspaceAddress
      self.isReadOnly = isReadOnly
    }

    package var region: MemoryRegion {
      MemoryRegion(
        start: start, size: size, isReadOnly: isReadOnly,
        origin: "slot \(id) at \(userspaceAddress) of the VMM")
    }
  }

  package init(
    backend: String, isEncrypted: Bool, slots: [Slot], processors: [VirtualProcessor],
    findings: [Finding]
  ) {
    self.backend = backend
    self.isEncrypted = isEncrypted
    self.slots = slots
    self.processors = processors
    self.findings = findings
  }
}

// MARK: - Writing

extension KVMInfo {
  private static let head = "KVMINFO/1"

  package var text: String {
    var lines = [Self.head, "BACKEND=\(backend)"]
    if isEncrypted { lines.append("ENCRYPTED=1") }
    for slot in slots {
      let place = [
        slot.start.rawValue, slot.size, slot.userspaceAddress.rawValue, slot.isReadOnly ? 1 : 0,
      ].map { hexadecimal($0) }
      lines.append("SLOT(\(slot.id))=" + place.joined(separator: " "))
    }
    for finding in findings {
      lines.append("FINDING(\(finding.name))=\(finding.severity.rawValue) \(finding.text)")
    }
    for processor in processors {
      lines.append("VCPU(\(processor.index))=\(processor.state.rawValue)")
      lines += Self.lines(of: processor.registers)
      if let nested = processor.nested {
        lines.append("NESTED(\(processor.index))=1")
        lines += Self.lines(of: nested)
      }
    }
    return lines.map(\.withoutControls).joined(separator: "\n") + "\nEND\n"
  }

  private static func lines(of file: RegisterFile) -> [String] {
    Register.allCases.map { line($0.rawValue, file[$0]) { hexadecimal($0) } }
      + SegmentRegister.allCases.map { register in
        line(register.rawValue, file[register]) { segment in
          [
            UInt64(segment.selector), segment.base, UInt64(segment.limit),
            UInt64(segment.attributes.rawValue),
          ].map { hexadecimal($0) }.joined(separator: ",")
        }
      }
      + TableRegister.allCases.map { register in
        line(register.rawValue, file[register]) {
          "\(hexadecimal($0.base)),\(hexadecimal(UInt64($0.limit)))"
        }
      }
  }

  private static func line<Value>(
    _ name: String, _ reading: Reading<Value>, _ text: (Value) -> String
  ) -> String {
    switch reading {
    case .known(let value, let source):
      "REG(\(name))=\(text(value)) \(source.kind.rawValue) \(source.location)"
    case .unknown(let reason): "NOREG(\(name))=\(reason)"
    }
  }
}

extension String {
  /// With blanks for control characters, which would break lines.
  fileprivate var withoutControls: String {
    String(String.UnicodeScalarView(unicodeScalars.map { $0.value < 0x20 ? " " : $0 }))
  }
}

// MARK: - Reading

extension KVMInfo {
  /// The lines that are understood of a text; nil if it is none, or was cut off, or tells of memory
  /// slots that cannot be.
  package init?(text: String) {
    let lines = text.split(separator: "\n")
    guard lines.first == Self.head[...], let end = lines.firstIndex(of: "END") else { return nil }
    self.init(backend: "KVM", isEncrypted: false, slots: [], processors: [], findings: [])
    var parser = ProcessorParser()
    for line in lines[1..<end] {
      if let value = line.value(after: "BACKEND=") { backend = String(value) }
      if line == "ENCRYPTED=1" { isEncrypted = true }
      guard let entry = TextEntry(line) else { continue }
      switch entry.keyword {
      case "SLOT":
        if let slot = Slot(entry) { slots.append(slot) }
      case "FINDING":
        if let finding = Finding(entry) { findings.append(finding) }
      default: parser.read(entry)
      }
    }
    processors = parser.processors
    slots.sort { $0.start < $1.start }
    let areApart = zip(slots, slots.dropFirst()).allSatisfy { $0.start + $0.size <= $1.start }
    guard areApart, processors.enumerated().allSatisfy({ $0 == $1.index }) else { return nil }
  }

  /// Registers belong to the vCPU, or the nested guest, told last.
  private struct ProcessorParser {
    private(set) var processors: [VirtualProcessor] = []
    private var isNested = false

    /// KVM takes no more (KVM_MAX_VCPUS).
    private static let limit = 1 << 14

    mutating func read(_ entry: TextEntry) {
      switch entry.keyword {
      case "VCPU":
        guard let index = Int(entry.key), processors.count < Self.limit,
          let state = VirtualProcessor.State(rawValue: String(entry.value))
        else { return }
        isNested = false
        processors.append(
          VirtualProcessor(index: index, state: state, registers: RegisterFile()))
      case "NESTED": isNested = true
      case "REG", "NOREG":
        guard let last = processors.last else { return }
        var file = isNested ? last.nested ?? RegisterFile() : last.registers
        file.read(entry)
        processors[processors.count - 1] = VirtualProcessor(
          index: last.index, state: last.state, registers: isNested ? last.registers : file,
          nested: isNested ? file : last.nested)
      default: break
      }
    }
  }
}

extension RegisterFile {
  fileprivate mutating func read(_ entry: TextEntry) {
    let name = String(entry.key)
    if let register = Register(rawValue: name) {
      self[register] = entry.reading(count: 1, of: self[register]) { $0[0] }
    } else if let register = SegmentRegister(rawValue: name) {
      self[register] = entry.reading(count: 4, of: self[register]) {
        Segment(
          selector: UInt16(truncatingIfNeeded: $0[0]), base: $0[1],
          limit: UInt32(truncatingIfNeeded: $0[2]),
          attributes: SegmentAttributes(descriptor: UInt32(truncatingIfNeeded: $0[3])))
      }
    } else if let register = TableRegister(rawValue: name) {
      self[register] = entry.reading(count: 2, of: self[register]) {
        DescriptorTable(base: $0[0], limit: UInt32(truncatingIfNeeded: $0[1]))
      }
    }
  }
}

extension TextEntry {
  /// The numbers before the first blank, and what follows it.
  private var numbersAndText: (numbers: [UInt64], text: Substring)? {
    let parts = value.split(separator: " ", maxSplits: 1)
    guard let first = parts.first else { return nil }
    let numbers = first.split(separator: ",").map(hexadecimalNumber)
    guard !numbers.contains(nil) else { return nil }
    return (numbers.compactMap { $0 }, parts.count > 1 ? parts[1] : "")
  }

  /// What a line of a register tells; `before` if it cannot be understood.
  fileprivate func reading<Value>(
    count: Int, of before: Reading<Value>, _ make: ([UInt64]) -> Value
  ) -> Reading<Value> {
    if keyword == "NOREG" { return .unknown(reason: String(value)) }
    guard let (numbers, text) = numbersAndText, numbers.count == count else { return before }
    let parts = text.split(separator: " ", maxSplits: 1)
    guard let kind = parts.first.flatMap({ RegisterSource.Kind(rawValue: String($0)) }) else {
      return before
    }
    return .known(make(numbers), RegisterSource(kind, parts.count > 1 ? String(parts[1]) : ""))
  }
}

extension KVMInfo.Slot {
  fileprivate init?(_ entry: TextEntry) {
    let numbers = entry.value.split(separator: " ").compactMap(hexadecimalNumber)
    guard let id = Int64(entry.key), numbers.count == 4,
      numbers[0...2].allSatisfy({ $0 % pageSize == 0 && $0 <= 1 << 56 }), numbers[1] > 0,
      numbers[0] + numbers[1] <= 1 << 52, numbers[2] + numbers[1] <= 1 << 56
    else { return nil }
    self.init(
      id: id, start: GuestPhysicalAddress(numbers[0]), size: numbers[1],
      userspaceAddress: VirtualAddress(numbers[2]), isReadOnly: numbers[3] != 0)
  }
}

extension Finding {
  fileprivate init?(_ entry: TextEntry) {
    let parts = entry.value.split(separator: " ", maxSplits: 1)
    guard parts.count == 2, let severity = Severity(rawValue: String(parts[0])) else { return nil }
    self.init(severity, String(entry.key), String(parts[1]))
  }
}

private func hexadecimalNumber(_ text: Substring) -> UInt64? {
  text.hasPrefix("0x") ? UInt64(text.dropFirst(2), radix: 16) : nil
}
