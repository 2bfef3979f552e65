import ControlBlocks
import DumpFiles
import Guest
import KVMHost
import LinuxKernel
import Memory
import QEMUProcess
import SystemPackage

/// What was given, a host's dump or a QEMU's core, opened as far as its guests.
struct SourceAnalysis {
  let dump: DumpFile
  /// The dump's memory, and what the host had swapped out.
  let memory: any FrameSource
  /// Of a host's dump.
  let swap: HostSwap?
  let origin: Origin
  let guests: [Guest]
  /// Intel's control structures, in the order of the guests.
  let controlStructures: [ControlStructure]
  /// Why some guests could not be read.
  let failures: [any Diagnosis]

  /// On the dump as a whole, besides the dump file's own.
  let findings: [Finding]

  /// Whose memory it is.
  enum Origin {
    case host(LinuxKernel)
    /// A VMM's process, with the program's path.
    case process(program: String?)
  }

  /// - Parameter searchesForVMCSs: search a host's memory for VMCSs that no vCPU leads to.
  init(
    of dump: DumpFile, _ options: CommonOptions, _ core: CoreOptions,
    searchesForVMCSs: Bool = false
  ) throws {
    self.dump = dump
    if let process = dump.process {
      guard !searchesForVMCSs, options.swapImages.isEmpty else {
        throw Failure(DumpFileError.processCore(dump.path))
      }
      let notes = ControlBlockNotes(
        dump.notes.map { ($0.name, $0.type, $0.description) },
        layouts: try VMCSLayouts.ofUser(options))
      let guest: Guest
      if let noted = NotedProcess(process, in: dump, notes: notes) {
        origin = .process(program: noted.executable?.path)
        guest = noted.guest()
      } else {
        let qemu = try Self.qemu(process, in: dump, notes, core)
        origin = .process(program: qemu.executable?.path)
        guest = qemu.guest()
      }
      memory = dump
      swap = nil
      findings = []
      guests = try selectGuests(options.guest, from: [guest])
      controlStructures = notes.structures(of: guest.identity)
      failures = []
    } else {
      let host = try HostAnalysis(of: dump, options, searchesForVMCSs: searchesForVMCSs)
      memory = host.host.memory
      swap = host.host.swap
      findings = host.findings
      origin = .host(host.kernel)
      guests = host.guests
      controlStructures = host.controlStructures
      failures = host.failures
    }
  }

  private static func qemu(
    _ process: ProcessCore, in dump: DumpFile, _ notes: ControlBlockNotes, _ options: CoreOptions
  ) throws -> QEMUProcess {
    let program: ProgramFile?
    do throws(DumpFileError) {
      program = try options.qemuBinary.map { path throws(DumpFileError) in
        try ProgramFile(FilePath(path))
      }
    } catch {
      throw Failure(error)
    }
    do throws(QEMUError) {
      return try QEMUProcess(
        process, in: dump, program: program, notes: notes, isTruncated: dump.isIncomplete)
    } catch {
      throw Failure(error)
    }
  }

  /// One line on what was given.
  var summary: String {
    switch origin {
    case .host(let kernel):
      "\(dump.path): \(dump.formatDescription), host Linux \(kernel.vmcoreinfo.release)"
    case .process(let program):
      "\(dump.path): \(dump.formatDescription)" + (program.map { ", \($0)" } ?? "")
    }
  }
}

/// The guests that were asked for, or all.
func selectGuests(_ selection: [String], from guests: [Guest]) throws -> [Guest] {
  guard !selection.isEmpty else { return guests }
  var selected: [Guest] = []
  for wanted in selection {
    let matches = guests.filter {
      $0.identity.displayName == wanted || $0.identity.uuid == wanted
        || String($0.identity.pid) == wanted
    }
    guard !matches.isEmpty else {
      throw Failure(
        SelectionError(wanted: wanted, known: guests.map(\.identity.displayName)))
    }
    for guest in matches
    where !selected.contains(where: { $0.identity == guest.identity }) {
      selected.append(guest)
    }
  }
  return selected
}

/// The guest of an output that has room for one.
func onlyGuest(of guests: [Guest], in dump: DumpFile) throws -> Guest {
  guard let guest = guests.first, guests.count == 1 else {
    throw Failure(
      SeveralGuestsError(path: dump.path, names: guests.map(\.identity.displayName)))
  }
  return guest
}

/// An output has room for one guest, and more than one was meant.
struct SeveralGuestsError: Diagnosis {
  let path: FilePath
  let names: [String]

  var name: String { "guest.several" }
  var problem: String { "\(path): \(names.count) guests are meant, and the output is for one" }
  var advice: String? { "choose one with --guest: \(names.joined(separator: ", "))" }
}

/// No guest is called that.
struct SelectionError: Diagnosis {
  let wanted: String
  let known: [String]

  var name: String { "guest.unknown" }
  var problem: String { "no guest is called \(wanted)" }
  var advice: String? { "guests in this dump: \(known.joined(separator: ", "))" }
}
