import DumpFiles
import Guest
import LinuxKernel
import Memory
import SystemPackage

extension DumpFile {
  /// Opens what was named on the command line, says what is to be known of it, and does `body`,
  /// confined to what it needs.
  ///
  /// - Parameter directory: where files are written, if any are.
  static func open<Result>(
    _ options: CommonOptions, _ core: CoreOptions? = nil, writing directory: FilePath? = nil,
    _ body: (DumpFile) throws -> Result
  ) throws -> Result {
    let dump: DumpFile
    do throws(DumpFileError) {
      dump = try DumpFile.open(options.dumps.map { FilePath($0) })
    } catch {
      throw Failure(error)
    }
    for finding in dump.openingFindings { dump.tell(finding) }
    if !options.noSandbox {
      let named =
        [options.vmcsinfo, options.vmlinux, core?.qemuBinary].compactMap(\.self)
        + options.debugInformation.folders
      Confinement.begin(
        reading: named.map { FilePath($0) } + options.namedSwapImages.map(\.path)
          + [dump.programPath].compactMap(\.self),
        writing: directory)
    }
    // Damage shows when pages are read, whether that leads anywhere or not.
    defer { for finding in dump.damageFindings { dump.tell(finding) } }
    return try body(dump)
  }

  /// What the user must know of the dump as a whole, as far as it has been read.
  var findings: [Finding] { openingFindings + damageFindings }

  private func tell(_ finding: Finding) {
    Console.warning("\(path): \(finding.text) [\(finding.name)]")
  }

  private var openingFindings: [Finding] {
    var findings: [Finding] = []
    if format == .kcore {
      findings.append(
        Finding(
          .warning, "dump.live",
          "the host is running: what is read is not atomic, as its memory changes meanwhile;"
            + " pages, page tables and registers may not belong together"))
    }
    if isIncomplete {
      findings.append(
        Finding(
          .warning, "dump.incomplete",
          "the dump is incomplete; of the pages that its headers name, the file lacks "
            + Self.pages(lostPages)))
    }
    for part in missingParts {
      let last = part.frames.upperBound - 1
      findings.append(
        Finding(
          .warning, "dump.part-missing",
          "a part of the split dump is missing: the one with page frames "
            + "\(hexadecimal(part.frames.lowerBound.rawValue)) to \(hexadecimal(last.rawValue)), "
            + Self.pages(part.pages)))
    }
    return findings
  }

  private var damageFindings: [Finding] {
    let damage = damage
    guard damage.count > 0 else { return [] }
    let rest = damage.count - damage.first.count
    return [
      Finding(
        .warning, "dump.damaged",
        (damage.isCountLimited ? "more than " : "")
          + Self.pages(UInt64(damage.count)) + " of those read so far cannot be used: "
          + damage.first.map { "\($0)" }.joined(separator: "; ")
          + (rest > 0 ? "; and \(rest) more" : ""))
    ]
  }

  private static func pages(_ count: UInt64) -> String {
    count == 1 ? "1 page" : "\(count) pages (\(size(count << pageShift)))"
  }
}
