import ControlBlocks
import Guest
import KVMHost
import LinuxKernel
import Memory
import Testing
import X86

/// The Intel host of Samples/, whose six VMCSs are read by the layout that its memory holds.
@Suite struct IntelSampleTests {
  let sample: Sample
  let layouts: [VMCSLayout]

  init() throws {
    sample = try Sample.intel.get()
    layouts = VMCSINFOSearch(sample.dump, threads: 2).layouts()
  }

  @Test func `the layout that a module measured is found in memory`() throws {
    #expect(layouts.count == 1)
    #expect(layouts.first?.revision == 0x2b)
  }

  @Test(arguments: [false, true])
  func `every register equals what KVM told`(isInferred: Bool) throws {
    let truth = try Truth(try sample.lines(of: "intel-host.registers"))
    let found = try sample.guests(
      vmcsLayouts: isInferred
        ? VMCSLayoutSources(infersAlways: true) : VMCSLayoutSources(ofUser: layouts))
    #expect(found.failures.isEmpty)
    // vm_list has the newest first.
    let machines = ["vmB", "vmA", "vmR", "vmL"]
    #expect(found.guests.map(\.processors.count) == [1, 2, 1, 2])
    var compared = 0
    var different: [String] = []
    for (name, guest) in zip(machines, found.guests) {
      #expect(
        guest.findings.map(\.name) == [isInferred ? "vcpu.vmcs-inferred" : "vcpu.vmcs-layout"])
      for processor in guest.processors {
        // Nobody asked the second vCPU of vmL.
        guard let expected = truth.registers[name]?[processor.index] else {
          #expect(name == "vmL" && processor.index == 1)
          continue
        }
        for (register, value) in expected {
          compared += 1
          if processor.registers.value(named: register) != value {
            different.append("\(name) \(processor.index) \(register)")
          }
        }
      }
    }
    #expect(compared == 370)
    // These two went on between the telling and the panic, inside a loop of a few instructions.
    #expect(different.sorted() == ["vmA 1 rip", "vmB 0 rip"])
  }

  @Test func `a layout that disagrees with what KVM remembers is not used`() throws {
    var text = "VMCSINFO/1\nREVISION=0x2b\n"
    for encoding in stride(from: 0x6800, through: 0x6826, by: 2) {
      text += "OFF(\(String(encoding, radix: 16)))=8:0x\(String(encoding & 0xff0, radix: 16))\n"
    }
    let wrong = try #require(VMCSLayout(text: text + "END\n", origin: "a wrong text"))
    for sources in [
      VMCSLayoutSources(inDump: [wrong]), VMCSLayoutSources(ofUser: [wrong], search: { layouts }),
      VMCSLayoutSources(inDump: [wrong] + layouts),
    ] {
      let found = try sample.guests(vmcsLayouts: sources)
      let names = found.guests.flatMap(\.findings).map(\.name)
      #expect(names.contains("vcpu.vmcs-layout-rejected"))
      for structure in found.controlStructures {
        guard case .current(let layout, _, _) = structure.state else {
          Issue.record("not read")
          continue
        }
        #expect(layout.origin != wrong.origin)
      }
    }
  }
}

/// `TRUTH vm vcpu key=value …`
private struct Truth {
  /// By machine, vCPU and register; parts of segments as `cs.base`.
  private(set) var registers: [String: [Int: [String: UInt64]]] = [:]

  private static let otherNames = ["ldt": "ldtr", "gdt": "gdtr", "idt": "idtr"]

  init(_ lines: [[Substring]]) throws {
    for fields in lines where fields.count > 3 {
      guard let index = Int(fields[2]) else { continue }
      for field in fields[3...] {
        let pair = field.split(separator: "=", maxSplits: 1)
        guard pair.count == 2, let name = Self.name(pair[0]),
          let value = Self.value(pair[1])
        else { continue }
        registers[String(fields[1]), default: [:]][index, default: [:]][name] = value
      }
    }
  }

  private static func name(_ key: Substring) -> String? {
    let parts = key.split(separator: ".").map(String.init)
    if parts.count == 2, parts[0] == "msr" {
      // Told as fs.base, gs.base and efer already; TSC and DEBUGCTL are not among the registers.
      let others = ["fs_base", "gs_base", "efer", "tsc", "tsc_aux", "debugctl"]
      return others.contains(parts[1]) ? nil : parts[1]
    }
    if parts.count == 2 { return (otherNames[parts[0]] ?? parts[0]) + "." + parts[1] }
    return Register(rawValue: String(key)).map(\.rawValue)
  }

  /// A number, or a segment's attributes spelled out.
  private static func value(_ text: Substring) -> UInt64? {
    if text.hasPrefix("0x") { return UInt64(text.dropFirst(2), radix: 16) }
    let parts = text.split(separator: ",").map { $0.split(separator: ":") }
    guard parts.count == 9, parts.allSatisfy({ $0.count == 2 }) else { return nil }
    if parts[8] == ["unusable", "1"] { return 0 }
    return zip(parts, [8, 12, 13, 15, 20, 21, 22, 23] as [UInt64]).reduce(0) { bits, part in
      bits | (UInt64(part.0[1], radix: 16) ?? 0) << part.1
    }
  }
}

extension RegisterFile {
  fileprivate func value(named name: String) -> UInt64? {
    let parts = name.split(separator: ".").map(String.init)
    if let register = Register(rawValue: name) { return self[register].value }
    if let segment = SegmentRegister(rawValue: parts[0]).flatMap({ self[$0].value }) {
      switch parts[1] {
      case "sel": return UInt64(segment.selector)
      case "base": return segment.base
      case "limit": return UInt64(segment.limit)
      default: return UInt64(segment.attributes.rawValue)
      }
    }
    guard let table = TableRegister(rawValue: parts[0]).flatMap({ self[$0].value }) else {
      return nil
    }
    return parts[1] == "base" ? table.base : UInt64(table.limit)
  }
}
