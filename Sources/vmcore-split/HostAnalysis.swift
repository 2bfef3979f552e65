import ControlBlocks
import DumpFiles
import Guest
import KVMHost
import LinuxKernel
import Memory
import QEMUProcess
import SystemPackage
import X86

/// A host's dump, opened as far as its guests.
struct HostAnalysis {
  let dump: DumpFile
  let kernel: LinuxKernel
  let host: KVMHost
  let guests: [Guest]
  let failures: [KVMError]
  let controlStructures: [ControlStructure]
  /// On the host as a whole.
  let findings: [Finding]

  /// - Parameters:
  ///   - recorder: told of every page that finding the guests needed.
  ///   - searchesForVMCSs: search the host's memory for VMCSs that no vCPU leads to.
  init(
    of dump: DumpFile, _ options: CommonOptions, recorder: FrameRecorder? = nil,
    searchesForVMCSs: Bool = false
  ) throws {
    guard dump.process == nil else { throw Failure(DumpFileError.processCore(dump.path)) }
    let source: any FrameSource = recorder.map { RecordingSource(dump, $0) } ?? dump
    let kernel = try Self.kernel(of: dump, source, options)
    let processors = HostProcessors(
      notes: dump.notes.map { ($0.name, $0.type, $0.description) })
    let layouts = try VMCSLayouts.sources(options, dump, source)
    let images = try Self.swapImages(options)
    let found: KVMHost.Guests
    do throws(KVMError) {
      host = try KVMHost(
        kernel, in: source, processors: processors, vmcsLayouts: layouts,
        swapImages: images)
      found = try host.guests(searchingForVMCSs: searchesForVMCSs)
    } catch {
      throw Failure(error, status: error.meansNoGuest ? .noGuest : .failure)
    }
    do throws(SwapImageError) {
      findings = try host.swap.imagedDevices().map { image, device in
        Finding(.note, "swap.image", "\(image) is an image of the host's \(device)")
      }
    } catch {
      throw Failure(error)
    }
    let guests = try selectGuests(options.guest, from: found.guests)
    if guests.isEmpty, found.controlStructures.isEmpty, let failure = found.failures.first {
      throw Failure(failure, status: failure.meansNoGuest ? .noGuest : .failure)
    }
    failures = found.failures
    controlStructures = found.controlStructures.filter { structure in
      structure.owner.map { owner in guests.contains { $0.identity == owner.guest } }
        ?? options.guest.isEmpty
    }
    self.dump = dump
    self.guests = guests
    self.kernel = kernel
  }

  private static func swapImages(_ options: CommonOptions) throws -> SwapImages {
    do throws(DumpFileError) {
      return SwapImages(
        try options.namedSwapImages.map { path, device throws(DumpFileError) in
          (try DiskImage(path), device)
        })
    } catch {
      throw Failure(error)
    }
  }

  /// The kernel that the dump's VMCOREINFO describes; if there is none or it is not to be trusted,
  /// the one whose note is in memory.
  private static func kernel(
    of dump: DumpFile, _ source: any FrameSource, _ options: CommonOptions
  ) throws -> LinuxKernel {
    var failure = KernelError.noVmcoreinfo
    if let vmcoreinfo = dump.vmcoreinfo.flatMap(Vmcoreinfo.init(text:)) {
      do throws(KernelError) {
        return try LinuxKernel(vmcoreinfo, in: source, debug: options.debugInformation)
      } catch {
        guard case .pageTablesUnverified = error else { throw Failure(error) }
        failure = error
      }
    }
    let search = VmcoreinfoSearch(MemoryMap(wholeOf: dump), dump, threads: options.threadCount)
    for candidate in search.candidates()
    where (try? VirtualMemory(ofKernel: candidate.vmcoreinfo, in: source)) != nil {
      do throws(KernelError) {
        return try LinuxKernel(
          candidate.vmcoreinfo, in: source, debug: options.debugInformation)
      } catch {
        throw Failure(error)
      }
    }
    throw Failure(failure)
  }
}

extension KVMError {
  /// True if the dump is sound and simply has no guest.
  fileprivate var meansNoGuest: Bool {
    switch self {
    case .noKVM, .noGuests: true
    case .processEnded, .machine, .kernel: false
    }
  }
}

/// A guest with what was found out of its memory.
struct GuestAnalysis {
  var guest: Guest
  let kernels: GuestKernels
  let survey: MemorySurvey

  init(_ guest: Guest, in source: SourceAnalysis, threads: Int) {
    let memory = source.memory
    survey = MemorySurvey(of: guest.memory)
    kernels = GuestKernels(of: guest, in: memory, threads: threads)
    self.guest =
      kernels.kernels.first.map { guest.derivingLostRegisters(from: $0, in: memory) } ?? guest
    self.guest.findings += Self.findings(guest, survey, kernels, source)
    swap = source.swap
  }

  private let swap: HostSwap?

  var report: GuestReport {
    GuestReport(guest, kernels: kernels, survey: survey) { device in
      swap?.name(ofDevice: device) ?? "swap device \(device)"
    }
  }

  var hasWarnings: Bool { guest.findings.contains { $0.severity == .warning } }
}
