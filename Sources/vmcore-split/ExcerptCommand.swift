import ArgumentParser
import DumpFiles
import Guest
import KVMHost
import LinuxKernel
import Memory
import Output
import SystemPackage

struct Excerpt: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Copy only the pages that finding the guests needs, for a bug report.",
    discussion: """
      The copy is a kdump-compressed file that works like the dump. It holds memory of the host's \
      kernel and of the VMMs' command lines, and none of the guests' unless asked for; with \
      --solve, the guests' page tables and what else inferring the layout of VMCSs looks at.
      """)

  @OptionGroup var common: CommonOptions

  @Option(
    name: .shortAndLong, help: ArgumentHelp("The file to write.", valueName: "file"),
    completion: .file())
  var output: String

  @Option(
    name: .long,
    help: ArgumentHelp(
      "Copy this guest's memory too. May be given several times.", valueName: "name"))
  var withGuest: [String] = []

  @Flag(name: .long, help: "Replace the file if it exists.")
  var force = false

  func run() throws {
    try DumpFile.open(common, writing: FilePath(output).directory) { try run(on: $0) }
  }

  private func run(on dump: DumpFile) throws {
    let recorder = FrameRecorder()
    let host = try HostAnalysis(of: dump, common, recorder: recorder)
    if common.solve {
      // The copy answers those too who do not solve.
      var plain = common
      plain.solve = false
      _ = try HostAnalysis(of: dump, plain, recorder: recorder)
    }
    // What the other commands ask for is asked for here, so that the copy answers them all.
    for guest in host.guests {
      _ = MemorySurvey(of: guest.memory)
      if let process = try? host.host.process(of: guest.identity) {
        _ = PageSurvey(of: process.memory)
      }
    }
    let wanted = try selectGuests(withGuest, from: withGuest.isEmpty ? [] : host.guests)
    for guest in wanted {
      guest.memory.forEachWindow { _, runs in
        for piece in runs.flatMap(\.pieces) {
          for index in 0..<piece.pages {
            let frame = piece.frame + UInt64(index)
            // Reading a swapped page shows what it takes.
            if SwappedPage(frame) == nil {
              recorder.record(frame)
            } else {
              _ = try? host.host.memory.page(frame)
            }
          }
        }
      }
    }
    let frames = recorder.frames
    do {
      try copy(frames, of: host)
    } catch let error as OutputError {
      throw Failure(error)
    } catch let error as KdumpWriterError {
      throw Failure(error)
    } catch let error as MemoryError {
      throw Failure(PageError(path: host.dump.path, error: error))
    }
    if !common.quiet {
      print("\(output): \(frames.count) pages, \(size(UInt64(frames.count) << pageShift))")
    }
  }

  private func copy(_ frames: [PageFrameNumber], of host: HostAnalysis) throws {
    let dump = host.dump
    let file = try OutputFile(FilePath(output), force: force)
    var writer = try KdumpWriter(
      file.fileDescriptor, path: file.path,
      system: SystemName(release: host.kernel.vmcoreinfo.release),
      vmcoreinfo: host.kernel.vmcoreinfo.text, notes: dump.notes,
      // Everything else is left out, whatever it was.
      dumpLevel: [.zeroPages, .cache, .privateCache, .userData, .freePages],
      ram: dump.frameRanges, capacity: UInt64(frames.count))
    for frame in frames { try writer.append(frame, try dump.page(frame)) }
    try writer.finish()
    try file.finish()
  }
}

/// A page of the dump could not be read.
struct PageError: Diagnosis {
  let path: FilePath
  let error: MemoryError

  var name: String { "dump.page" }
  var problem: String { "\(path): \(error)" }
  var advice: String? { nil }
}
