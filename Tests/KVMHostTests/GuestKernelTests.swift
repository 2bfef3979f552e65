import Guest
import KVMHost
import LinuxKernel
import Memory
import Synchronization
import SyntheticDumps
import Testing
import X86

/// Kernels in a guest's memory, found by their VMCOREINFO.
@Suite struct GuestKernelTests {
  /// A kernel for a guest, with its note in its memory.
  private struct Inner {
    var kernel: SyntheticKernel
    let text: String
    let note: PhysicalAddress

    /// - Parameters:
    ///   - area: where in guest-physical memory the kernel's 4 MiB are; 2 MiB aligned.
    ///   - dumps: where the kernel has the headers of one that crashed; nil if it cannot dump one.
    ///   - isPointedAt: the kernel's variable holds the note's address.
    init(
      _ release: String, area: UInt64, levels: Int = 4, mask: UInt64 = 0, lines: [String] = [],
      dumps: UInt64? = .max, isPointedAt: Bool = true
    ) {
      var options = SyntheticKernel.Options()
      options.release = release
      options.levels = levels
      options.encryptionMask = mask
      options.imageAddress = PhysicalAddress(area)
      options.memorySize = 32 << 20
      options.directMap = VirtualAddress(0xffff_9100_0000_0000)
      options.moreVmcoreinfo = lines
      kernel = SyntheticKernel(
        KernelTypes([:], seed: 1), options, firstFrame: (area + 0x20_0000) >> 12)
      let base = kernel.define("page_offset_base", size: 8)
      kernel.store(options.directMap.rawValue, at: base)
      if let dumps {
        kernel.store(dumps, at: kernel.define("elfcorehdr_addr", size: 8))
      }
      let pointer = kernel.define("vmcoreinfo_note", size: 8)
      text = kernel.finish()
      let note = SyntheticNote.vmcoreinfo(text)
      let bytes = note.bytes
      let frame = kernel.machine.allocate((bytes.count + 4095) / 4096)
      kernel.machine.memory.write(bytes, at: frame.address)
      kernel.store(isPointedAt ? kernel.direct(frame.address).rawValue : 0, at: pointer)
      self.note = frame.address
    }
  }

  /// A host whose guest has these pages, put in frames in descending order.
  private func analysis(
    _ memories: [SyntheticMemory], current: Inner?, processors: Int = 2, userBit: UInt64 = 0
  ) throws -> (GuestKernels, Analysis) {
    let ram = VirtualAddress(0x7f12_4000_0000)
    var host = SyntheticHost()
    let process = host.addProcess(pid: 1, arguments: ["qemu"])
    let machine = host.addMachine(
      process, slots: [.init(id: 0, guestFrame: 0, pages: 0x2000, address: ram)],
      processors: processors)
    for memory in memories {
      for frame in memory.frames.reversed() {
        guard let page = memory[frame] else { continue }
        process.tables.map(
          ram + frame.rawValue << pageShift, to: host.frame(page), in: &host.kernel.machine)
      }
    }
    for processor in machine.processors {
      guard let current, let block = processor.block else { break }
      host.kernel.set(block, "save.cr3", current.kernel.tables.root.rawValue | userBit)
      host.kernel.set(processor.vcpu, "arch.cr0", 0x8005_0033)
      host.kernel.set(
        processor.vcpu, "arch.cr4", current.kernel.options.levels == 5 ? 0x16f0 : 0x6f0)
      host.kernel.set(processor.vcpu, "arch.efer", 0xd01)
    }
    let found = try Analysis(host)
    return (GuestKernels(of: try found.guest, in: found.source, threads: 2), found)
  }

  @Test(arguments: [4, 5], [0, 1 << 47] as [UInt64])
  func `a guest's kernel with its vCPUs`(levels: Int, mask: UInt64) throws {
    let inner = Inner("5.15.0-guest", area: 0x40_0000, levels: levels, mask: mask)
    let (kernels, _) = try analysis([inner.kernel.machine.memory], current: inner)
    #expect(kernels.staleCopies == 0)
    let kernel = try #require(kernels.kernels.first)
    #expect(kernels.kernels.count == 1)
    #expect(kernel.vmcoreinfo.release == "5.15.0-guest")
    #expect(kernel.noteAddress.rawValue == inner.note.rawValue)
    #expect(kernel.processors == [0, 1])
    #expect(kernel.symbols != nil)
    #expect(kernel.pageOffsetBase == 0xffff_9100_0000_0000)
    #expect(!kernel.hasCrashed)
  }

  @Test(arguments: [.max, nil] as [UInt64?], [0, 0x1000] as [UInt64])
  func `the kernel that a vCPU executes is found without reading all memory`(
    dumps: UInt64?, userBit: UInt64
  ) throws {
    let inner = Inner("6.1.0-quick", area: 0x40_0000, dumps: dumps)
    var other = SyntheticMemory()
    for frame in 0x1000..<0x1800 as Range<UInt64> {
      other[PageFrameNumber(frame)] = [UInt8](repeating: 0x5a, count: 4096)
    }
    let (kernels, found) = try analysis(
      [inner.kernel.machine.memory, other], current: inner, userBit: userBit)
    #expect(kernels.kernels.map(\.processors) == [[0, 1]])
    #expect(kernels.kernels.first?.noteAddress.rawValue == inner.note.rawValue)
    let source = CountingSource(found.source)
    _ = GuestKernels(of: try found.guest, in: source, threads: 2)
    // The image is of 512 pages, and the rest of the kernel's memory of some dozens.
    #expect(source.pagesMoved <= 512)
    // A kernel that was started to dump another makes all be read.
    let capture = Inner("6.1.0-capture", area: 0x40_0000, dumps: 0x700_0000)
    let (_, all) = try analysis([capture.kernel.machine.memory, other], current: capture)
    let second = CountingSource(all.source)
    _ = GuestKernels(of: try all.guest, in: second, threads: 2)
    #expect(second.pagesMoved >= 0x800)
  }

  @Test func `a note that spans pages, which lie apart in the host`() throws {
    let lines = (0..<150).map { "NUMBER(filler_\($0))=\(String(repeating: "7", count: 40))" }
    let inner = Inner("6.9.0-long", area: 0x40_0000, lines: lines + ["NUMBER(last)=12"])
    #expect(inner.text.utf8.count > 8192)
    let (kernels, _) = try analysis([inner.kernel.machine.memory], current: inner)
    #expect(kernels.kernels.first?.vmcoreinfo.number("last") == 12)
  }

  @Test func `in a guest's kdump kernel the crashed one comes first`() throws {
    // The higher address and the fewer vCPUs: neither decides.
    let crashed = Inner("6.1.0-crashed", area: 0x100_0000, lines: ["CRASHTIME=1700000000"])
    let capture = Inner("6.1.0-capture", area: 0x40_0000, dumps: 0x7000_0000)
    let (kernels, _) = try analysis(
      [crashed.kernel.machine.memory, capture.kernel.machine.memory], current: capture)
    #expect(
      kernels.kernels.map(\.vmcoreinfo.release) == ["6.1.0-crashed", "6.1.0-capture"])
    #expect(kernels.kernels.map(\.processors) == [[], [0, 1]])
    #expect(kernels.kernels.map(\.hasCrashed) == [true, false])
    #expect(kernels.staleCopies == 0)
  }

  @Test func `copies of notes are not kernels`() throws {
    let inner = Inner("6.1.0-real", area: 0x40_0000, isPointedAt: false)
    var copies = SyntheticMemory()
    // The same text elsewhere, one of another boot, one of another kernel, one that is cut off.
    copies.write(SyntheticNote.vmcoreinfo(inner.text).bytes, at: PhysicalAddress(0x20_0000))
    let moved = inner.text.replacing("NUMBER(phys_base)=", with: "NUMBER(phys_base)=-")
    copies.write(SyntheticNote.vmcoreinfo(moved).bytes, at: PhysicalAddress(0x20_2004))
    let other = inner.text.replacing("6.1.0-real", with: "6.1.0-gone")
    copies.write(SyntheticNote.vmcoreinfo(other).bytes, at: PhysicalAddress(0x20_4000))
    var cut = SyntheticNote.vmcoreinfo(inner.text).bytes
    cut.replaceSubrange(4..<8, with: [0xff, 0xff, 0xff, 0x7f])
    copies.write(cut, at: PhysicalAddress(0x20_6000))
    let (kernels, _) = try analysis([copies, inner.kernel.machine.memory], current: inner)
    #expect(kernels.kernels.map(\.vmcoreinfo.release) == ["6.1.0-real"])
    #expect(kernels.staleCopies == 2)
  }

  @Test func `a guest without a Linux kernel has none`() throws {
    let (kernels, _) = try analysis([], current: nil)
    #expect(kernels.kernels.isEmpty && kernels.staleCopies == 0)
  }
}

/// Counts the pages that are read many at once.
struct CountingSource: FrameSource {
  private let source: SyntheticSource
  private let counter = Counter()

  final class Counter: Sendable {
    let value = Atomic<Int>(0)
  }

  init(_ source: SyntheticSource) { self.source = source }

  var pagesMoved: Int { counter.value.load(ordering: .relaxed) }
  var dumpLevel: DumpLevel? { source.dumpLevel }
  var frameRanges: [Range<PageFrameNumber>] { source.frameRanges }

  func page(_ frame: PageFrameNumber) throws(MemoryError) -> [UInt8] { try source.page(frame) }

  func presence(
    from frame: PageFrameNumber, limit: UInt64
  ) -> (absence: Absence?, count: UInt64) {
    source.presence(from: frame, limit: limit)
  }

  func makeReader() -> Reader { Reader(source.makeReader(), counter) }

  final class Reader: FrameReader {
    private let reader: SyntheticSource.Reader
    private let counter: Counter

    init(_ reader: SyntheticSource.Reader, _ counter: Counter) {
      self.reader = reader
      self.counter = counter
    }

    func read(
      from frame: PageFrameNumber, into buffer: UnsafeMutableRawBufferPointer
    ) -> [Absence?] {
      counter.value.add(buffer.count / Int(pageSize), ordering: .relaxed)
      return unsafe reader.read(from: frame, into: buffer)
    }
  }
}
