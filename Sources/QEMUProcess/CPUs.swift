import DumpFiles
import Guest
import Memory
import X86

extension QEMUProcess {
  /// The guest's vCPUs, and what is to be known of their registers.
  func processors() -> (processors: [VirtualProcessor], findings: [Finding]) {
    let table = ThreadTable(image.core)
    let listed = symbols.flatMap { CPUThread.all(listedIn: $0, of: image, threads: table) }
    let threads = listed ?? CPUThread.all(in: ownMemory, of: image, threads: table)
    guard !threads.isEmpty else {
      return (
        [],
        [
          Finding(
            .warning, "vcpu.not-found",
            "QEMU's vCPUs cannot be found in the core: their registers are unknown")
        ]
      )
    }
    guard let states = ProcessorStates(of: threads, in: image) else {
      let reason = "QEMU's copy of the registers cannot be found in the core"
      return (
        threads.indices.map {
          VirtualProcessor(index: $0, state: .stale, registers: .unknown(because: reason))
        },
        [Finding(.warning, "vcpu.not-found", "\(reason), though its vCPUs are there")]
      )
    }
    let (processors, findings) = withControlBlocks(states.processors(usingKVM: usesKVM))
    return (processors, findings + Self.findings(processors))
  }

  /// What the process may write to, without the guest's memory.
  private var ownMemory: [Range<VirtualAddress>] {
    let guest = blocks.blocks.filter { $0.host < $0.host + $0.maximumLength }
      .map { $0.host..<($0.host + $0.maximumLength) }.sorted { $0.lowerBound < $1.lowerBound }
    var ranges: [Range<VirtualAddress>] = []
    for segment in image.core.segments where segment.isWritable && segment.start < segment.end {
      var start = segment.start
      for block in guest where block.upperBound > start && block.lowerBound < segment.end {
        if start < block.lowerBound { ranges.append(start..<block.lowerBound) }
        start = block.upperBound
      }
      if start < segment.end { ranges.append(start..<segment.end) }
    }
    return ranges
  }

  private static func findings(_ processors: [VirtualProcessor]) -> [Finding] {
    func names(_ state: VirtualProcessor.State) -> String? {
      let indices = processors.filter { $0.state == state }.map { String($0.index) }
      return indices.isEmpty
        ? nil : (indices.count == 1 ? "vCPU " : "vCPUs ") + indices.joined(separator: ", ")
    }
    var findings: [Finding] = []
    if let stale = names(.stale) {
      findings.append(
        Finding(
          .warning, "vcpu.stale",
          "\(stale): KVM had the registers when the core was taken, and QEMU's copy is older; it is"
            + " not used"))
    }
    if let running = names(.running) {
      findings.append(
        Finding(
          .warning, "vcpu.running",
          "\(running): being emulated when the core was taken; RIP is that of a jump target shortly"
            + " before, other registers may be a few instructions old, and RFLAGS lacks the status"
            + " flags"))
    }
    return findings
  }
}
