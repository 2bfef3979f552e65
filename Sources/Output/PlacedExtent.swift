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
    let next = partitioningIndex { $0.start > address }
    guard next > 0 else { return nil }
    let extent = self[next - 1]
    let offset = address.distance(from: extent.start)
    guard offset < extent.fileSize else { return nil }
    return (extent.fileOffset + offset, extent.fileSize - offset)
  }

  /// The address whose byte is at an offset of the file.
  public func location(ofFileOffset offset: UInt64) -> Element.Location? {
    let next = partitioningIndex { $0.fileOffset > offset }
    guard next > 0, offset - self[next - 1].fileOffset < self[next - 1].fileSize else { return nil }
    return self[next - 1].start + (offset - self[next - 1].fileOffset)
  }

  /// The pages of runs that are in the source, each with its place in the file. Those without a
  /// place are left out.
  func pieces(of runs: [PageRun<Element.Location>]) -> [PlacedPiece] {
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
        let count = Swift.min(run.pages - done, room, UInt64(UInt32.max))
        placed.append(
          PlacedPiece(frame: first + done, pages: UInt32(count), fileOffset: place.fileOffset))
        done += count
      }
    }
    return placed
  }
}

/// Pages that lie behind each other in the source and in the file.
struct PlacedPiece: Hashable, Sendable {
  let frame: PageFrameNumber
  let pages: UInt32
  let fileOffset: UInt64
}
