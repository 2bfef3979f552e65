import DumpFiles
import Memory

/// A vCPU's `CPUState` (QEMU include/hw/core/cpu.h), known by the members that tell its thread:
///
///     struct QemuThread *thread;
///     int thread_id;
///     bool running, has_waiter;
///     struct QemuCond *halt_cond;
///     bool thread_kicked, created, stop, stopped;
///
/// They lie together since QEMU 2.8 (ab129972c8b4), where in the structure differs. What is there is
/// checked: the thread must be one of the process, and `QemuThread` must hold that thread's
/// `pthread_t`, which glibc has in the thread's FS base.
struct CPUThread: Hashable, Sendable {
  /// Where `thread_id` is.
  let address: VirtualAddress
  let id: Int32
  /// The vCPU's thread is between `cpu_exec_start` and `cpu_exec_end`: it runs the guest.
  let isRunning: Bool
  /// The guest is stopped, by its owner or by itself, and the vCPU's thread knows.
  let isStopped: Bool

  private enum Offset {
    static let running: UInt64 = 4
    static let haltCondition: UInt64 = 8
    static let created: UInt64 = 17
    static let stopped: UInt64 = 19
  }

  init?(at address: VirtualAddress, in image: ProcessImage, threads: ThreadTable) {
    guard let id: Int32 = try? image.load(address), let base = threads.bases[id],
      let thread = try? image.pointer(address - 8), thread.rawValue != 0,
      (try? image.load(thread, as: UInt64.self)) == base,
      let running: UInt8 = try? image.load(address + Offset.running), running <= 1,
      let condition = try? image.pointer(address + Offset.haltCondition), condition.rawValue != 0,
      let created: UInt8 = try? image.load(address + Offset.created), created == 1,
      let stopped: UInt8 = try? image.load(address + Offset.stopped), stopped <= 1
    else { return nil }
    self.address = address
    self.id = id
    isRunning = running == 1
    isStopped = stopped == 1
  }
}

/// The threads of a process: their FS bases by their numbers.
struct ThreadTable: Sendable {
  let bases: [Int32: UInt64]

  init(_ core: ProcessCore) {
    // `struct user_regs_struct` has fs_base as its 22nd member.
    let index = 21
    bases = Dictionary(
      core.threads.compactMap { thread in
        thread.registers.indices.contains(index) && thread.registers[index] != 0
          ? (thread.id, thread.registers[index]) : nil
      }, uniquingKeysWith: { first, _ in first })
  }

  /// Whether an aligned word can be `thread_id`, `running` and `has_waiter`.
  func canBeThread(_ word: UInt64) -> Bool {
    word >> 32 & ~0x0101 == 0 && bases[Int32(truncatingIfNeeded: word)] != nil
  }
}

// MARK: - Finding all of them

extension CPUThread {
  /// No QEMU has more vCPUs; a list that goes on is damaged.
  private static let limit = 1 << 13

  /// Members of `CPUState` that are looked for lie no further behind its start.
  static let objectSize = 0x1000

  /// By QEMU's list of vCPUs, in its order: that of their index, if none was unplugged.
  ///
  /// `cpus_queue`, before 8.2 `cpus`, is a QTAILQ: the first vCPU, then the last one's link. A vCPU's
  /// link is where it points back to the head.
  static func all(
    listedIn symbols: ExportedSymbols, of image: ProcessImage, threads: ThreadTable
  ) -> [CPUThread]? {
    (symbols.address(of: "cpus_queue") ?? symbols.address(of: "cpus")).flatMap {
      all(listedAt: $0, of: image, threads: threads)
    }
  }

  static func all(
    listedAt head: VirtualAddress, of image: ProcessImage, threads: ThreadTable
  ) -> [CPUThread]? {
    guard let first = try? image.pointer(head),
      let bytes = try? image.read(first, count: objectSize)
    else { return nil }
    let backLinks = stride(from: 8, to: bytes.count, by: 8).filter {
      bytes.load(UInt64.self, at: $0) == head.rawValue
    }
    guard let backLink = backLinks.first, backLinks.count == 1 else { return nil }
    var objects: [VirtualAddress] = []
    var object = first
    var previous = head
    while object.rawValue != 0 {
      let link = object + UInt64(backLink - 8)
      guard objects.count < limit, (try? image.pointer(link + 8)) == previous,
        let next = try? image.pointer(link)
      else { return nil }
      objects.append(object)
      previous = link
      object = next
    }
    let found = objects.compactMap { thread(in: $0, of: image, threads: threads) }
    return found.count == objects.count ? found : nil
  }

  /// The only place in an object that can be a vCPU's thread.
  private static func thread(
    in object: VirtualAddress, of image: ProcessImage, threads: ThreadTable
  ) -> CPUThread? {
    guard let bytes = try? image.read(object, count: objectSize) else { return nil }
    let found = stride(from: 8, to: bytes.count, by: 8).compactMap { offset -> CPUThread? in
      guard let word: UInt64 = bytes.load(at: offset), threads.canBeThread(word) else {
        return nil
      }
      return CPUThread(at: object + UInt64(offset), in: image, threads: threads)
    }
    return found.count == 1 ? found[0] : nil
  }

  /// By their structure, out of all memory that is not the guest's; in the order of their threads'
  /// numbers, in which QEMU creates them.
  static func all(
    in ranges: [Range<VirtualAddress>], of image: ProcessImage, threads: ThreadTable
  ) -> [CPUThread] {
    var found: [CPUThread] = []
    image.forEachWord(in: ranges) { address, word in
      if threads.canBeThread(word),
        let thread = CPUThread(at: address, in: image, threads: threads)
      {
        found.append(thread)
      }
      return found.count < limit
    }
    return found.sorted { ($0.id, $0.address) < ($1.id, $1.address) }
  }
}
