import Memory
import X86

/// The images of swap devices that the user gave, and which device each answers for.
public struct SwapImages: Sendable {
  private let given: [Given]

  private struct Given: Sendable {
    let image: any SwapImage
    /// The device that the user says it is of.
    let device: String?
  }

  /// - Parameter given: images, each with the device that it is of, if that is known.
  public init(_ given: [(image: any SwapImage, device: String?)] = []) {
    self.given = given.map { Given(image: $0.image, device: $0.device) }
  }

  var isEmpty: Bool { given.isEmpty }

  /// Says for each image which device it is of.
  ///
  /// - Parameter headers: the first page of a device's swap area, as far as the dump has it.
  func matched(
    to devices: [SwapDevice], headers: (SwapDevice) -> SwapHeader?
  ) throws(SwapImageError) -> [PlacedImage] {
    var matches: [PlacedImage] = []
    for given in given {
      var candidates = devices.filter { given.device == nil || given.device == $0.path }
        .compactMap { PlacedImage(given.image, of: $0) }
      let proven = candidates.filter { headers($0.device)?.uuid == $0.header.uuid }
      candidates.removeAll { candidate in
        headers(candidate.device).map { $0.uuid != candidate.header.uuid } ?? false
      }
      if !proven.isEmpty { candidates = proven }
      guard let match = candidates.first else {
        throw .fitsNone(image: given.image.name, devices: devices.map(\.summary))
      }
      guard candidates.count == 1 else {
        throw .fitsSeveral(image: given.image.name, devices: candidates.map(\.device.name))
      }
      if let other = matches.first(where: { $0.device.index == match.device.index }) {
        throw .twice(
          device: match.device.name, images: [other.image.name, match.image.name])
      }
      matches.append(match)
    }
    return matches
  }
}

/// An image with what it is of.
struct PlacedImage: Sendable {
  let image: any SwapImage
  let device: SwapDevice
  let header: SwapHeader
  /// It holds the swap area from its first byte on; else, the file system that a swap file is in.
  private let isArea: Bool

  /// Nil if there is no swap area of the device's size in it, where the device has it.
  init?(_ image: any SwapImage, of device: SwapDevice) {
    self.image = image
    self.device = device
    if let header = SwapHeader(image.page(at: 0)), header.pages == device.size {
      isArea = true
      self.header = header
      return
    }
    guard let block = device.block(of: 0), block < 1 << 50,
      let header = SwapHeader(image.page(at: block << pageShift)), header.pages == device.size
    else { return nil }
    isArea = false
    self.header = header
  }

  private func position(of offset: UInt64) -> UInt64? {
    guard offset < device.size, let block = isArea ? offset : device.block(of: offset),
      block < image.size >> pageShift
    else { return nil }
    return block << pageShift
  }

  func has(_ offset: UInt64) -> Bool { position(of: offset) != nil }

  func page(_ offset: UInt64) -> [UInt8]? { position(of: offset).flatMap { image.page(at: $0) } }
}

/// The first page of a swap area: `union swap_header` (include/linux/swap.h).
struct SwapHeader: Hashable, Sendable {
  /// The area's size, its header included.
  let pages: UInt64
  let uuid: [UInt8]

  private static let signature = Array("SWAPSPACE2".utf8)
  private static let information = 1024

  init?(_ page: [UInt8]?) {
    guard let page, page.count == Int(pageSize), page.suffix(10).elementsEqual(Self.signature),
      let lastPage: UInt32 = page.load(at: Self.information + 4)
    else { return nil }
    pages = UInt64(lastPage) + 1
    uuid = Array(page[(Self.information + 12)..<(Self.information + 28)])
  }
}

extension SwapDevice {
  /// The first page of the swap area, if the page cache has it: swapon reads it through that.
  func header(_ frames: PageFrames) -> SwapHeader? {
    guard let mapping = try? info["swap_file"].dereferenced()?["f_mapping"].dereferenced(),
      case .frame(let frame)? = try? frames.cachedPage(of: mapping, at: 0).page
    else { return nil }
    return SwapHeader(try? info.memory.physical.page(frame))
  }

  fileprivate var summary: String { "\(name) (\(size) pages)" }
}

/// An image of a swap device cannot be used.
public enum SwapImageError: Error, Hashable, Sendable {
  /// No swap device of the host has such contents.
  case fitsNone(image: String, devices: [String])
  case fitsSeveral(image: String, devices: [String])
  case twice(device: String, images: [String])
}

extension SwapImageError: Diagnosis {
  public var name: String {
    switch self {
    case .fitsNone: "swap.unknown-image"
    case .fitsSeveral: "swap.ambiguous-image"
    case .twice: "swap.two-images"
    }
  }

  public var problem: String {
    switch self {
    case .fitsNone(let image, let devices):
      "\(image) is not an image of a swap device that the host uses: "
        + (devices.isEmpty
          ? "it uses none" : "these are " + devices.joined(separator: ", "))
    case .fitsSeveral(let image, let devices):
      "\(image) can be an image of each of \(devices.joined(separator: ", "))"
    case .twice(let device, let images):
      "\(images.joined(separator: " and ")) are both images of \(device)"
    }
  }

  public var advice: String? {
    switch self {
    case .fitsNone:
      "give a copy of the whole partition or swap file, made after the host went down and before"
        + " it swapped again"
    case .fitsSeveral(let image, let devices):
      "say which: --swap \(devices.first ?? "DEVICE")=\(image)"
    case .twice: "give one of them"
    }
  }
}
