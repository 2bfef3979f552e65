import Glibc
import Guest
import GuestVmcore
import KVMHost
import LinuxKernel
import Memory
import Output
import SystemPackage
import Testing
import X86

@Suite struct GuestOfSampleTests {
  let sample: Sample

  init() throws { sample = try Sample.shared.get() }

  @Test func `the guest is named by its command line`() throws {
    let found = try sample.guests()
    #expect(found.failures.isEmpty)
    #expect(found.guests.map(\.identity.displayName) == ["sample"])
    let identity = found.guests[0].identity
    #expect(identity.command == "qemu-system-x86")
    #expect(identity.backend == "KVM (AMD SVM)")
    #expect(found.guests[0].processors.count == 2)
    #expect(found.guests[0].findings.isEmpty)
  }

  @Test func `every register equals the hypervisor's own notes`() throws {
    let guest = try sample.guest()
    let statuses = try sample.trueNotes("CORE")
    let states = try sample.trueNotes("QEMU")
    #expect(statuses.count == 2 && states.count == 2)
    for processor in guest.processors {
      let index = processor.index
      #expect(processor.state == .exited)
      #expect(processor.registers.isComplete)
      #expect(
        ProcessorNotes.processStatus(index: index, processor.registers) == statuses[index])
      #expect(ProcessorNotes.qemuState(processor.registers) == states[index])
    }
  }

  @Test func `every page of the vmcore equals the truth, with any number of threads`() throws {
    let guest = try sample.guest()
    let kernels = GuestKernels(of: guest, in: sample.dump, threads: 2)
    let survey = MemorySurvey(of: guest.memory)
    #expect(survey.missingPages == 0)
    let truth = try sample.truePages()
    let vmcore = VmcoreContents(
      guest, kernels: kernels, survey: survey, in: sample.dump,
      provenance: Provenance(
        tool: "test", version: "0", source: .init(path: "sample", format: "kdump"),
        guest: GuestReport(guest, kernels: kernels, survey: survey)))
    var first: [UInt8]?
    for threads in [1, 2, 8] {
      let path = FilePath("/tmp/vmcore-split-test-\(UInt64.random(in: 0 ... .max))")
      defer { _ = unsafe unlink(path.string) }
      let file = try OutputFile(path, force: false)
      let extraction = Extraction(
        source: sample.dump, threads: threads, progress: MoveProgress())
      let summary = try extraction.write([(vmcore, file)], as: .elf)[0].get()
      #expect(summary.lost.isEmpty)
      let bytes = try contents(of: path)
      #expect(bytes.count == Int(summary.fileSize))
      if let first {
        #expect(bytes == first, "\(threads) threads")
      } else {
        first = bytes
        let check = try VmcoreCheck(path)
        #expect(check.isSound, "\(check.rules.filter { !$0.isKept })")
        let (compared, different) = try Self.differences(bytes, from: truth)
        #expect(compared == 16448)
        #expect(different == 0)
      }
    }
  }

  /// Compares every page of the loads with the truth: pages that it does not list are zero.
  private static func differences(
    _ file: [UInt8], from truth: [UInt64: UInt32]
  ) throws -> (compared: Int, different: Int) {
    let zeros = crc32([UInt8](repeating: 0, count: 4096)[...])
    var compared = 0
    var different = 0
    let headers = Int(try #require(file.load(UInt16.self, at: 56)))
    for index in 1..<headers {
      let header = 64 + 56 * index
      let offset = Int(try #require(file.load(UInt64.self, at: header + 8)))
      let start = try #require(file.load(UInt64.self, at: header + 24))
      let size = Int(try #require(file.load(UInt64.self, at: header + 32)))
      for page in stride(from: 0, to: size, by: 4096) {
        compared += 1
        let found = crc32(file[(offset + page)..<(offset + page + 4096)])
        if found != truth[start + UInt64(page)] ?? zeros { different += 1 }
      }
    }
    return (compared, different)
  }

  @Test func `the guest's kernel is found without help`() throws {
    let guest = try sample.guest()
    let kernels = GuestKernels(of: guest, in: sample.dump, threads: 2)
    #expect(kernels.kernels.map(\.vmcoreinfo.release) == ["6.1.192-small"])
    #expect(kernels.kernels.first?.processors == [0, 1])
    #expect(kernels.kernels.first?.hasCrashed == false)
  }
}
