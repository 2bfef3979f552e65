import Memory
import Synchronization
import SystemPackage

/// A page whose bytes are in the dump and cannot be had.
public struct DamagedPage: Hashable, Sendable {
  /// What is wrong with it.
  public enum Damage: Hashable, Sendable {
    case readFailed(Errno)
    /// The page's descriptor names a number of bytes that no page has in its form.
    case badSize(UInt32)
    /// The page's descriptor names no compression or several.
    case unknownCompression(flags: UInt32)
    /// The data are not those of a page in that compression.
    case undecodable(codec: String)
  }

  public let frame: PageFrameNumber
  public let path: FilePath
  /// Of the page's data, or of its descriptor where that is wrong. In a flattened file, as it is
  /// when it has been put in order.
  public let offset: UInt64
  public let damage: Damage
}

extension DamagedPage: CustomStringConvertible {
  public var description: String {
    let what =
      switch damage {
      case .readFailed(let error): "cannot be read: \(error)"
      case .badSize(let size): "a size of \(size) bytes"
      case .unknownCompression(let flags): "unknown flags \(hexadecimal(UInt64(flags)))"
      case .undecodable(let codec): "no page in \(codec)"
      }
    return "page frame \(hexadecimal(frame.rawValue)) at offset \(hexadecimal(offset)) of \(path): "
      + what
  }
}

/// The damaged pages that were met so far, each counted once.
public struct DamageReport: Hashable, Sendable {
  public fileprivate(set) var count = 0
  /// There may be more than `count`.
  public fileprivate(set) var isCountLimited = false
  /// Those with the lowest frame numbers.
  public fileprivate(set) var first: [DamagedPage] = []
}

/// Takes down the damaged pages that reading meets.
final class DamageLog: Sendable {
  /// Bounds the memory for telling pages apart: about 4 MiB.
  private static let countLimit = 1 << 17
  private static let firstLimit = 5

  private struct State {
    var frames: Set<UInt64> = []
    var report = DamageReport()
  }

  private let state = Mutex(State())

  var report: DamageReport { state.withLock { $0.report } }

  func add(_ frame: UInt64, _ path: FilePath, _ offset: UInt64, _ damage: DamagedPage.Damage) {
    state.withLock { state in
      guard state.frames.count < Self.countLimit else {
        state.report.isCountLimited = true
        return
      }
      guard state.frames.insert(frame).inserted else { return }
      state.report.count += 1
      let page = DamagedPage(
        frame: PageFrameNumber(frame), path: path, offset: offset, damage: damage)
      let place = state.report.first.firstIndex { $0.frame > page.frame }
      state.report.first.insert(page, at: place ?? state.report.first.count)
      if state.report.first.count > Self.firstLimit { state.report.first.removeLast() }
    }
  }
}
