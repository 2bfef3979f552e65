import Guest
import Memory

/// A range of an address space with a place in a file.
public protocol PlacedExtent: Sendable {
  associatedtype Location: Address
  var start: Location { get }
  var fileOffset: UInt64 { get }
  /// Bytes of the range that are in the file: all of them, or none.
  var fileSize: UInt64 { get }
}

/// Extents that ascend in memory and in the file.
extension Array where Element: PlacedExtent {
  /// Where in the file an address is, and how many bytes of its extent are left there; nil if the
  /// file has no place for it.
  public func place(of address: Element.Location) -> (fileOffset: UInt64, rest: UInt64)? {
    guard let extent = last(where: { $0.start <= address }) else { return nil }
    let offset = address.distance(from: extent.start)
    guard offset < extent.fileSize else { return nil }
    return (extent.fileOffset + offset, extent.fileSize - offset)
  }

  /// The address whose byte is at an offset of the file.
  public func location(ofFileOffset offset: UInt64) -> Element.Location? {
    guard let extent = last(where: { $0.fileOffset <= offset }),
      offset - extent.fileOffset < extent.fileSize
    else { return nil }
    return extent.start + (offset - extent.fileOffset)
  }

  /// The pages of runs that are in the source, cut into pieces, each with its place in the file.
  /// Those without a place are left out.
  public func pieces(of runs: [PageRun<Element.Location>]) -> [PlacedPiece] {
    var placed: [PlacedPiece] = []
    for run in runs {
      guard case .frames(let first) = run.content else { continue }
      var done: UInt64 = 0
      while done < run.pages {
        guard let place = place(of: run.start + done << pageShift) else {
          done += 1
          continue
        }
        let room = Swift.max(1, place.rest >> pageShift)
        let count = Swift.min(run.pages - done, room, UInt64(maximumPiecePages))
        placed.append(
          PlacedPiece(frame: first + done, pages: Int(count), fileOffset: place.fileOffset))
        done += count
      }
    }
    return placed
  }

  /// The last extent for which `isNotBehind` is true: it must be so for a first part of them only.
  private func last(where isNotBehind: (Element) -> Bool) -> Element? {
    var low = 0
    var high = count
    while low < high {
      let middle = (low + high) / 2
      if isNotBehind(self[middle]) { low = middle + 1 } else { high = middle }
    }
    return low > 0 ? self[low - 1] : nil
  }
}

/// Pages that lie behind each other in the source and in the file.
public struct PlacedPiece: Hashable, Sendable {
  public let frame: PageFrameNumber
  /// At most ``maximumPiecePages``.
  public let pages: Int
  public let fileOffset: UInt64
}
