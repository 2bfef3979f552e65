import Glibc
import Memory
import Output
import Synchronization

/// Shows how far an extraction is: on a terminal one line, renewed ten times a second; elsewhere a
/// plain line every ten seconds.
final class ProgressDisplay: Sendable {
  private let title: String
  private let pages: UInt64
  private let progress: MoveProgress
  private let start = ContinuousClock.now
  private let hasEnded = Mutex(false)

  init(title: String, pages: UInt64, progress: MoveProgress, isShown: Bool) {
    self.title = title
    self.pages = pages
    self.progress = progress
    guard isShown else { return }
    let isTerminal = Console.isTerminal
    detachedThread { [self] in
      var ticks = 0
      while true {
        usleep(100_000)
        ticks += 1
        let goesOn = hasEnded.withLock { hasEnded in
          if hasEnded { return false }
          if isTerminal {
            Console.write("\r\u{1b}[K\(line)")
          } else if ticks % 100 == 0 {
            Console.write("vmcore-split: \(line)\n")
          }
          return true
        }
        guard goesOn else { return }
      }
    }
  }

  /// Takes the line away.
  func end() {
    hasEnded.withLock { hasEnded in
      if !hasEnded, Console.isTerminal { Console.write("\r\u{1b}[K") }
      hasEnded = true
    }
  }

  private var line: String {
    let done = min(progress.pagesDone, pages)
    let elapsed = start.duration(to: .now)
    let seconds = Double(elapsed.components.seconds) + Double(elapsed.components.attoseconds) / 1e18
    let percent = pages == 0 ? 100 : done * 100 / pages
    var text = "\(title): \(percent) % of \(size(pages << pageShift))"
    if done > 0, seconds > 0.5 {
      let rate = Double(done << pageShift) / seconds
      let rest = Double((pages - done) << pageShift) / rate
      text += ", \(size(UInt64(rate)))/s, \(Self.time(UInt64(rest))) left"
    }
    return text
  }

  private static func time(_ seconds: UInt64) -> String {
    let minutes = seconds / 60
    if minutes >= 60 { return "\(minutes / 60) h \(minutes % 60) min" }
    return minutes > 0 ? "\(minutes) min \(seconds % 60) s" : "\(seconds) s"
  }
}
