import DumpFiles
import Memory

extension QEMUProcess {
  /// Why the memory of a block is not in the core, and what would have kept it; nil if any of it is
  /// there.
  func whyNotDumped(_ block: RAMBlock) -> String? {
    // A core that tells itself why it lacks memory was not made by the kernel's rules.
    if case .missing = image.core.segment(at: block.host)?.gap { return nil }
    let frames = block.usedLength >> pageShift
    let (absence, count) = image.source.presence(
      from: PageFrameNumber(block.host.rawValue >> pageShift), limit: frames)
    guard count >= frames, absence == .excluded || absence == .notInDump else { return nil }
    let size =
      block.usedLength >= 1 << 20
      ? "\(block.usedLength >> 20) MiB" : "\(block.usedLength >> 10) KiB"
    let start =
      "RAM block \(block.displayName) (\(size) at \(block.host)) is not in"
      + " the core: "
    guard let file = image.core.file(at: block.host) else {
      return start
        + "it is memory without a file that was marked not to be dumped (dump-guest-core=off, or"
        + " dump=off of its memory backend), or is shared or of huge pages and the process's"
        + " coredump_filter leaves such out; set dump-guest-core=on, and bits 1, 5 and 6 of"
        + " /proc/PID/coredump_filter"
    }
    return start
      + "it is mapped from \(file.path), and "
      + (file.path.hasPrefix("/memfd:")
        ? "memory of a memfd is dumped if bit 1 of /proc/PID/coredump_filter is set, bit 6 for huge"
          + " pages"
        : "files are dumped if bit 3 of /proc/PID/coredump_filter is set, bit 6 for hugetlbfs")
      + ", and dump-guest-core is not off; the file itself may still have the memory"
  }
}
