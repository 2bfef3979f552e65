import DumpFiles
import Glibc
import Memory
import SyntheticDumps
import SystemPackage

/// A host with guests whose memory is not held in ours: only what finding them needs is.
struct BenchHost {
  private var host = SyntheticHost()
  private let guestPages: UInt64
  private let guests: UInt64
  /// Every so many groups one is mapped by pages of 4 KiB; 0: none.
  private let smallGroups: UInt64

  /// Behind all that the host's kernel and page tables take.
  private static let firstFrame: UInt64 = 1 << 18
  private static let ram = VirtualAddress(0x7000_0000_0000)
  /// Pages of which a part is mapped in one way: 64 MiB.
  private static let groupPages: UInt64 = 1 << 14
  private static let hugePages: UInt64 = 512

  init(guestPages: UInt64, guests: UInt64, smallGroups: UInt64) {
    self.guestPages = guestPages
    self.guests = guests
    self.smallGroups = smallGroups
    for guest in 0..<guests { add(guest) }
  }

  private mutating func add(_ guest: UInt64) {
    let process = host.addProcess(
      pid: Int32(100 + guest), arguments: ["qemu-system-x86_64", "-name", "bench\(guest)"])
    let machine = host.addMachine(
      process, slots: [.init(id: 0, guestFrame: 0, pages: guestPages, address: Self.ram)],
      processors: 2)
    for page in stride(from: 0, to: guestPages, by: Int(Self.hugePages)) {
      if isHuge(page) {
        process.tables.map(
          Self.ram + page << pageShift, to: frame(of: page, guest), .page2MiB,
          in: &host.kernel.machine)
      } else {
        for page in page..<page + Self.hugePages {
          process.tables.map(
            Self.ram + page << pageShift, to: frame(of: page, guest), in: &host.kernel.machine)
        }
      }
    }
    let kernel = GuestKernel()
    for processor in machine.processors {
      guard let block = processor.block else { continue }
      host.kernel.set(block, "save.cr3", kernel.kernel.tables.root.rawValue)
      host.kernel.set(processor.vcpu, "arch.cr0", 0x8005_0033)
      host.kernel.set(processor.vcpu, "arch.cr4", 0x6f0)
      host.kernel.set(processor.vcpu, "arch.efer", 0xd01)
    }
  }

  private func isHuge(_ page: UInt64) -> Bool {
    smallGroups == 0 || page / Self.groupPages % smallGroups != smallGroups - 1
  }

  /// Odd factors shuffle what is a power of two.
  private func frame(of page: UInt64, _ guest: UInt64) -> PageFrameNumber {
    let group = page / Self.groupPages
    let index = page % Self.groupPages
    let hugeIndex = index / Self.hugePages * 5 % (Self.groupPages / Self.hugePages)
    let place =
      isHuge(page)
      ? hugeIndex * Self.hugePages + index % Self.hugePages : index * 4099 % Self.groupPages
    return PageFrameNumber(
      Self.firstFrame + guest * guestPages + group * Self.groupPages + place)
  }

  consuming func write(to path: String, isFilled: Bool) throws {
    let text = host.finish()
    let memory = host.kernel.machine.memory
    var loads = memory.frameRanges.map { range in
      SyntheticELF.Load(
        physical: range.lowerBound.address.rawValue,
        fileSize: range.upperBound.distance(from: range.lowerBound) << pageShift)
    }
    precondition(host.kernel.machine.nextFrame <= Self.firstFrame, "too many page tables")
    loads.append(
      SyntheticELF.Load(
        physical: Self.firstFrame << pageShift, fileSize: guests * guestPages << pageShift,
        content: []))
    var file = memory.elf(SyntheticELF(notes: [.vmcoreinfo(text)], loads: loads))
    // The offset that the last program header has.
    let offset = file.load(UInt64.self, at: 64 + 56 * UInt64(loads.count) + 8)
    file.resize(to: offset + guests * guestPages << pageShift)
    try file.write(to: path)
    let descriptor = unsafe open(path, O_WRONLY)
    defer { close(descriptor) }
    if isFilled { try fill(descriptor, at: offset) }
    let kernel = GuestKernel()
    for guest in 0..<guests {
      for page in kernel.kernel.machine.memory.frames {
        guard let bytes = kernel.kernel.machine.memory[page] else { continue }
        let place = frame(of: page.rawValue, guest).rawValue - Self.firstFrame
        Self.write(bytes, descriptor, at: offset + place << pageShift)
      }
    }
  }

  /// 2 MiB of every 4, each page another, and all like those of the host in the sample: how fast
  /// they decompress is that of a machine's memory.
  private func fill(_ descriptor: Int32, at start: UInt64) throws {
    let sample = try DumpFile.open(
      FilePath(#filePath).removingLastComponent().appending("../../Samples/amd-host.kdump"))
    let pages = sample.sampleFrames(count: .max).compactMap { frame in
      (try? sample.page(frame)).flatMap { $0.isZero ? nil : $0 }
    }
    var generator = SeededGenerator(seed: 1)
    for chunk in stride(from: 0, to: guests * guestPages, by: 1024) {
      var bytes: [UInt8] = []
      bytes.reserveCapacity(2 << 20)
      for page in chunk..<chunk + 512 {
        let pattern = pages[Int(generator.next() % UInt64(pages.count))]
        bytes.append(littleEndian: page)
        bytes += pattern[8...]
      }
      Self.write(bytes, descriptor, at: start + chunk << pageShift)
    }
  }

  private static func write(_ bytes: [UInt8], _ descriptor: Int32, at offset: UInt64) {
    let error = unsafe bytes.withUnsafeBytes {
      unsafe writeAll($0, to: descriptor, at: offset)
    }
    precondition(error == nil, "cannot write")
  }
}

/// A kernel for a guest, with its VMCOREINFO where a variable of it points at.
private struct GuestKernel {
  private(set) var kernel: SyntheticKernel

  init() {
    let area: UInt64 = 0x40_0000
    var options = SyntheticKernel.Options()
    options.release = "6.1.0-bench"
    options.imageAddress = PhysicalAddress(area)
    options.memorySize = 32 << 20
    options.directMap = VirtualAddress(0xffff_9100_0000_0000)
    kernel = SyntheticKernel(
      KernelTypes([:], seed: 1), options, firstFrame: (area + 0x20_0000) >> pageShift)
    kernel.store(options.directMap.rawValue, at: kernel.define("page_offset_base", size: 8))
    kernel.store(UInt64.max, at: kernel.define("elfcorehdr_addr", size: 8))
    let pointer = kernel.define("vmcoreinfo_note", size: 8)
    let note = SyntheticNote.vmcoreinfo(kernel.finish()).bytes
    let frame = kernel.machine.allocate((note.count + 4095) / 4096)
    kernel.machine.memory.write(note, at: frame.address)
    kernel.store(kernel.direct(frame.address).rawValue, at: pointer)
  }
}
