import DumpFiles
import Guest
import LinuxKernel
import Memory
import X86

extension GuestAnalysis {
  /// What the user must know of a guest's memory, kernels and registers.
  static func findings(
    _ guest: Guest, _ survey: MemorySurvey, _ kernels: GuestKernels, _ source: SourceAnalysis
  ) -> [Finding] {
    Finding.swapped(survey) + Finding.missing(survey, in: source.dump, source.swap)
      + unknownRegisters(guest) + kernelFindings(kernels, survey)
  }

  /// Without those that tell where the processor was, a dump misleads; the others are extra.
  private static func unknownRegisters(_ guest: Guest) -> [Finding] {
    guest.processors.compactMap { processor in
      guard !processor.registers.unknown.isEmpty else { return nil }
      return Finding(
        processor.registers.isComplete ? .note : .warning, "registers.unknown",
        "vCPU \(processor.index): not known: "
          + processor.registers.unknown.joined(separator: ", "))
    }
  }

  private static func kernelFindings(
    _ kernels: GuestKernels, _ survey: MemorySurvey
  ) -> [Finding] {
    if kernels.kernels.isEmpty {
      // Where there is no memory, that is what has been said.
      guard survey.present > 0 else { return [] }
      return [
        Finding(
          .note, "kernel.none",
          "no Linux kernel's VMCOREINFO was found in the guest's memory"
            + (kernels.staleCopies > 0 ? " (\(kernels.staleCopies) stale copies)" : "")
            + (survey.missingPages > 0 ? "; it may be in a page that is missing" : ""))
      ]
    }
    guard kernels.kernels.count > 1 else { return [] }
    let releases = kernels.kernels.map { $0.vmcoreinfo.release }.joined(separator: ", ")
    return [
      Finding(
        .note, "kernel.several",
        "the guest has several kernels in memory (it may be in its kdump kernel): \(releases);"
          + " the first is taken")
    ]
  }
}

extension Finding {
  /// What was taken from where the host had swapped it to.
  static func swapped<Location>(_ survey: PageSurvey<Location>) -> [Finding] {
    let parts = SwapStore.allCases.compactMap { store in
      survey.swapped[store].map { "\($0) from \(store.explanation)" }
    }
    guard !parts.isEmpty else { return [] }
    let count = survey.swapped.values.reduce(0, +)
    return [
      Finding(
        .note, "memory.swapped-in",
        "\(count) of \(survey.pages) pages (\(size(count << pageShift))) had been swapped out by"
          + " the host, and were recovered: " + parts.joined(separator: ", "))
    ]
  }

  /// What is missing of a guest's memory or of a VMM's, a finding for each reason.
  ///
  /// - Parameters:
  ///   - swap: knows the host's swap devices.
  ///   - expected: reasons for which the process can do without the pages.
  static func missing<Location>(
    _ survey: PageSurvey<Location>, in dump: DumpFile, _ swap: HostSwap?,
    expected: Set<MissingReason> = []
  ) -> [Finding] {
    MissingReason.allCases.compactMap { reason in
      guard let pages = survey.missing[reason], pages > 0 else { return nil }
      var text =
        "\(pages) of \(survey.pages) pages (\(size(pages << pageShift))) are missing:"
        + " \(reason.explanation)"
      let devices = survey.onDevice.filter { $0.key.reason == reason }
        .sorted { $0.key.device < $1.key.device }
        .map {
          "\($0.value) on \(swap?.name(ofDevice: $0.key.device) ?? "device \($0.key.device)")"
        }
      if !devices.isEmpty { text += ": " + devices.joined(separator: ", ") }
      if reason == .swappedOut, swap != nil {
        text += "; --swap reads them from a copy of the device"
      }
      if reason == .filtered, dump.process == nil {
        let level = dump.dumpLevel.map { "the dump was made with level \($0) (makedumpfile -d)" }
        text +=
          "; " + (level ?? "the dump's level is not recorded in it")
          + "; levels 0, 1, 16 and 17 keep the memory of all guests, 23 that of guests without"
          + " shared memory"
      }
      return Finding(
        expected.contains(reason) ? .note : .warning, "memory.\(reason.rawValue)", text)
    }
  }

  /// True of a note of which layout of the VMCS fitted, and which did not: told by `registers` and
  /// in JSON, and no news elsewhere.
  var isRoutine: Bool { severity == .note && name.hasPrefix("vcpu.vmcs-layout") }
}

/// A number of bytes as people say it.
func size(_ bytes: UInt64) -> String {
  let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
  var unit = 0
  var scaled = bytes
  var rest: UInt64 = 0
  while scaled >= 1024, unit < units.count - 1 {
    rest = scaled % 1024
    scaled /= 1024
    unit += 1
  }
  let tenths = scaled < 100 && rest > 0 ? ".\(rest * 10 / 1024)" : ""
  return "\(scaled)\(tenths) \(units[unit])"
}
