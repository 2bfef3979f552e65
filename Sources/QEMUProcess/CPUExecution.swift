import DumpFiles
import Memory

/// Members of `CPUState` (QEMU include/hw/core/cpu.h) that tell which vCPU it is, and whether QEMU's
/// copy of its registers is current.
///
/// KVM's registers are copied to QEMU when it asks for them, which sets `vcpu_dirty`, and back before
/// the vCPU runs again, which clears it. While it is clear the copy is old, however sound it looks.
///
///     int cpu_index;
///     int cluster_index;              // -1 on x86
///     uint32_t tcg_cflags;
///     uint32_t halted;
///     uint32_t can_do_io;             // up to 8.1
///     int32_t exception_index;
///     bool vcpu_dirty;                // up to 8.0, and since 10.1
///     AccelCPUState *accel;           // since 8.1
///     bool vcpu_dirty;                // 8.1 to 9.0
///     bool throttle_thread_scheduled;
///
/// and, before that, behind `struct kvm_run *kvm_run`:
///
///     int kvm_vcpu_stats_fd;          // since 8.1
///     bool vcpu_dirty;                // 9.1 to 10.0
struct CPUExecution: Hashable, Sendable {
  let index: Int32
  /// `vcpu_dirty`: QEMU's copy is newer than KVM's.
  let isDirty: Bool

  private enum Offset {
    static let cluster = 4
    static let halted = 12
    static let ability = 16
    static let exception = 20
    static let behindException = 24
    static let behindAccelerator = 32
  }

  /// Offsets from `kvm_run`, behind kvm_dirty_gfns, kvm_fetch_index and dirty_pages.
  private enum KVMOffset {
    static let statistics = 32
    static let dirty = 36
  }

  /// Those of all vCPUs, from the one place where each can have them and their indices differ.
  ///
  /// - Parameter objects: from the same place in each vCPU's `CPUState` on, up to its registers.
  static func all(
    of threads: [CPUThread], in objects: [[UInt8]], _ image: ProcessImage
  ) -> [CPUExecution]? {
    let end = objects.map(\.count).min() ?? 0
    let places = stride(from: 0, to: end, by: 8).filter { offset in
      let indices = objects.compactMap { index(in: $0, at: offset) }
      return indices.count == objects.count && Set(indices).count == indices.count
    }
    guard places.count == 1 else { return nil }
    return zip(threads, objects).map { thread, bytes in
      CPUExecution(bytes, at: places[0], of: thread, image)
    }
  }

  /// The vCPU's index, if what lies at `offset` can be these members.
  private static func index(in bytes: [UInt8], at offset: Int) -> Int32? {
    guard let index: Int32 = bytes.load(at: offset), index >= 0, index < 1 << 13,
      let cluster: Int32 = bytes.load(at: offset + Offset.cluster), cluster == -1,
      let halted: UInt32 = bytes.load(at: offset + Offset.halted), halted <= 1,
      let word: Int32 = bytes.load(at: offset + Offset.ability),
      let next: Int32 = bytes.load(at: offset + Offset.exception),
      isException(word) || (0...1).contains(word) && isException(next)
    else { return nil }
    return index
  }

  /// No exception, or one of QEMU's own (EXCP_INTERRUPT and on).
  private static func isException(_ number: Int32) -> Bool {
    number == -1 || (0x1_0000..<0x1_0100).contains(number)
  }

  private init(
    _ bytes: [UInt8], at offset: Int, of thread: CPUThread, _ image: ProcessImage
  ) {
    index = Self.index(in: bytes, at: offset) ?? 0
    func bool(_ position: Int) -> Bool {
      bytes.load(UInt32.self, at: position).map { $0 & ~0x0101 == 0 && $0 & 1 != 0 } ?? false
    }
    let hasAbility = bytes.load(Int32.self, at: offset + Offset.ability).map {
      !Self.isException($0)
    }
    let isDirtyForKVM = Self.kvmRun(in: bytes, image).map { run in
      bytes.load(Int32.self, at: run + KVMOffset.statistics) != 0 && bool(run + KVMOffset.dirty)
    }
    // Since 9.1 this is whether the vCPU's thread is about to be throttled, which no stopped one is;
    // and up to 8.0 the time for which it is.
    let isDirtyOrThrottled = thread.isStopped && bool(offset + Offset.behindAccelerator)
    isDirty =
      isDirtyForKVM == true || isDirtyOrThrottled
      || bool(offset + (hasAbility == true ? Offset.behindException : Offset.exception))
  }

  /// KVM gives each vCPU a file, of which QEMU maps `struct kvm_run`: `anon_inode:kvm-vcpu:0`.
  static let file = "anon_inode:kvm-vcpu"

  /// `kvm_run`: the start of the mapping of the vCPU's file.
  private static func kvmRun(in bytes: [UInt8], _ image: ProcessImage) -> Int? {
    stride(from: 0, to: bytes.count, by: 8).first { offset in
      guard let pointer: UInt64 = bytes.load(at: offset), pointer.isMultiple(of: pageSize),
        pointer != 0
      else { return false }
      return image.core.file(at: VirtualAddress(pointer)).map {
        $0.start.rawValue == pointer && $0.path.hasPrefix(Self.file)
      } ?? false
    }
  }
}
