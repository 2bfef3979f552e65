import Guest
import KVMHost
import LinuxKernel
import Memory
import SyntheticDumps
import Testing
import X86

/// A host whose structures are damaged, one word at a time: everything ends, in bounded time, and
/// nothing traps.
@Suite struct DamageTests {
  private struct Victim {
    let memory: SyntheticMemory
    let kernel: LinuxKernel
    /// Every word of the objects that lead to the guest.
    let words: [PhysicalAddress]
    /// Values that lead somewhere.
    let pointers: [UInt64]

    init(_ change: @escaping @Sendable (inout KernelTypes) -> Void) throws {
      var options = SyntheticHost.Options()
      options.change = change
      options.swapDevices = 1
      var one = try OneGuest(
        options,
        slots: [
          .init(id: 0, guestFrame: 0, pages: OneGuest.pages, address: OneGuest.ram),
          .init(
            id: 1, guestFrame: 0x1000, pages: 8, address: VirtualAddress(0x7e00_0000_0000)),
        ], processors: 3)
      let file = one.host.addFile()
      let cached = one.host.frame(OneGuest.bytes(7), as: .cache(file, index: 70))
      one.process.tables.map(
        VirtualAddress(0x7e00_0000_4000), to: cached, in: &one.host.kernel.machine)
      one.host.fill(file, [70: one.host.descriptor(of: cached).address.rawValue, 5000: 11])
      _ = one.host.addProcess(pid: 5, command: "bash", arguments: ["bash"])
      let text = one.host.finish()
      memory = one.host.kernel.machine.memory
      kernel = try LinuxKernel(try #require(Vmcoreinfo(text: Array(text.utf8))), in: memory)
      let objects = one.host.kernel.objects
      words = objects.flatMap { [kernel] object, size in
        stride(from: 0, to: UInt64(size), by: 8).compactMap {
          try? kernel.memory.translate(object.address + $0)
        }
      }
      pointers =
        objects.map(\.object.address.rawValue)
        + objects.map { $0.object.address.rawValue + 8 }
    }

    func garbage(using generator: inout SeededGenerator) -> UInt64 {
      switch Int.random(in: 0..<8, using: &generator) {
      case 0: 0
      case 1: .max
      case 2: generator.next()
      case 3: 1 << UInt64.random(in: 0..<64, using: &generator)
      case 4: UInt64.random(in: 0...70000, using: &generator)
      case 5: 0xffff_9a40_0000_0000 + UInt64.random(in: 0..<0x4000_0000, using: &generator)
      default: pointers.randomElement(using: &generator) ?? 0
      }
    }
  }

  /// Everything that is asked of a host.
  private static func analyse(_ kernel: LinuxKernel, _ memory: SyntheticMemory) {
    let source = SyntheticSource(memory, dumpLevel: [])
    do throws(KVMError) {
      let host = try KVMHost(
        kernel.seen(through: source), in: source, processors: HostProcessors(notes: []))
      for guest in try host.guests().guests.prefix(3) {
        _ = MemorySurvey(of: guest.memory)
        _ = GuestKernels(of: guest, in: source, threads: 1)
      }
    } catch {
      #expect(!error.problem.isEmpty)
    }
  }

  private static let kernels: [@Sendable (inout KernelTypes) -> Void] = [
    { _ in },
    {
      Variant.linux5_10(&$0); Variant.noOwner(&$0)
    },
  ]

  @Test(.timeLimit(.minutes(10)), arguments: 0..<2, 0..<4)
  func `any word of the host's structures may be garbage`(kernel: Int, part: Int) throws {
    let victim = try Victim(Self.kernels[kernel])
    var generator = SeededGenerator(seed: UInt64(100 + 10 * kernel + part))
    for _ in 0..<150 {
      var memory = victim.memory
      let place = try #require(victim.words.randomElement(using: &generator))
      let value = victim.garbage(using: &generator)
      memory.store(value, at: place)
      let time = ContinuousClock().measure { Self.analyse(victim.kernel, memory) }
      #expect(time < .seconds(20), "\(place) := \(hexadecimal(value))")
    }
  }
}
