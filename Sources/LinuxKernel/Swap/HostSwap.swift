import Compression
import Memory
import Synchronization
import X86

/// What a host has swapped out, as far as its memory or images of its swap devices have it.
///
/// The host's kernel would look for a page in the swap cache first, then in its notes of pages that are
/// zero, then in zswap, and last on the device, which can be a zram: so it is done here. What is in one
/// of the first places is on the device in an older version, if at all.
///
/// Found out when it is first asked for, as most hosts do not swap.
public final class HostSwap: Sendable {
  private let kernel: LinuxKernel
  private let source: any FrameSource
  private let frames: PageFrames?
  private let images: SwapImages
  private let cached = Mutex<Result<Devices, KernelError>?>(nil)

  /// Where a swapped page is.
  public enum Place: Hashable, Sendable {
    case frame(PageFrameNumber)
    case zero
    case stored(SwappedPage)
    case missing(MissingReason)
  }

  public init(
    of kernel: LinuxKernel, in source: any FrameSource, _ frames: PageFrames?,
    images: SwapImages = SwapImages()
  ) {
    self.kernel = kernel
    self.source = source
    self.frames = frames
    self.images = images
  }

  private struct Devices: Sendable {
    let all: [UInt8: Device]
    let cache: SwapCache?
    let zswap: Result<ZSwap?, KernelError>
    let objects: ZSMalloc?
  }

  private struct Device: Sendable {
    let swap: SwapDevice
    /// Of a swap device on zram.
    let zram: Result<ZRAM?, KernelError>
    let image: PlacedImage?
  }

  private var devices: Result<Devices, KernelError> {
    cached.withLock { cached in
      if let cached { return cached }
      let found = Result { () throws(KernelError) in try find() }
      cached = .some(found)
      return found
    }
  }

  private func find() throws(KernelError) -> Devices {
    let objects =
      frames.map { frames in
        Result { () throws(KernelError) in try ZSMalloc(kernel, frames) }
      } ?? .failure(.noType("page"))
    let devices = try kernel.swapDevices()
    let answers = (try? matched(devices)) ?? []
    var all: [UInt8: Device] = [:]
    for device in devices {
      let zram = Result { () throws(KernelError) in
        try device.disk.flatMap { disk throws(KernelError) in
          try ZRAM(disk, of: kernel) { () throws(KernelError) in try objects.get() }
        }
      }
      all[device.index] = Device(
        swap: device, zram: zram,
        image: answers.first { $0.device.index == device.index })
    }
    return Devices(
      all: all, cache: frames.map { SwapCache(kernel, $0) },
      zswap: Result { () throws(KernelError) in
        try ZSwap(kernel) { () throws(KernelError) in try objects.get() }
      },
      objects: try? objects.get())
  }

  private func matched(_ devices: [SwapDevice]) throws(SwapImageError) -> [PlacedImage] {
    try images.matched(to: devices) { device in frames.flatMap { device.header($0) } }
  }

  /// Which device each image that was given is of.
  public func imagedDevices() throws(SwapImageError) -> [(image: String, device: String)] {
    guard !images.isEmpty else { return [] }
    return try matched((try? kernel.swapDevices()) ?? [])
      .map { ($0.image.name, $0.device.name) }
  }

  /// What people call a device: `/dev/vda2`, `/dev/zram0 (zram, lzo-rle)`.
  public func name(ofDevice index: UInt8) -> String {
    guard let device = try? devices.get().all[index] else { return "swap device \(index)" }
    guard case .success(let zram?) = device.zram else { return device.swap.name }
    return "\(device.swap.name) (\(zram.description))"
  }

  /// Where a page is. Reads none of it.
  public func place(of entry: SwapEntry) -> Place {
    guard let devices = try? devices.get(), let device = devices.all[entry.device],
      let cache = devices.cache
    else { return .missing(.swappedOut) }
    do throws(KernelError) {
      if let frame = try cache.frame(of: entry, on: device.swap) { return .frame(frame) }
      if try cache.isNotedAsZero(entry, on: device.swap) { return .zero }
    } catch {
      // What is on the device may be older.
      return .missing(error.meansUnknownTypes ? .swappedOut : .swapUnreadable)
    }
    do throws(StoredPageError) {
      if let page = try devices.zswap.get(orThrow: StoredPageError.kernel)?.page(entry) {
        return place(of: page, entry, .zswap)
      }
      if let zram = try device.zram.get(orThrow: StoredPageError.kernel) {
        guard let block = device.swap.block(of: entry.offset) else {
          return .missing(.swapUnreadable)
        }
        return place(of: try zram.page(block), entry, .zram)
      }
    } catch {
      return .missing(error.reason)
    }
    guard let image = device.image, image.has(entry.offset),
      let page = SwappedPage(entry, in: .image)
    else { return .missing(.swappedOut) }
    return .stored(page)
  }

  private func place(of page: StoredPage, _ entry: SwapEntry, _ store: SwapStore) -> Place {
    switch page {
    case .fill(0): return .zero
    case .fill: break
    case .object(let location, _, _), .plain(let location):
      for frame in [location.frame, location.next].compactMap(\.self) {
        if let absence = source.presence(from: frame, limit: 1).absence {
          return .missing(absence == .excluded ? .filtered : .swapUnreadable)
        }
      }
    case .bytes(let address, _, _):
      guard (try? kernel.memory.translate(address)) != nil else { return .missing(.swapUnreadable) }
    }
    return SwappedPage(entry, in: store).map { .stored($0) } ?? .missing(.swapUnreadable)
  }

  /// The bytes of a page whose place is ``Place/stored(_:)``, into 4096 bytes of room.
  func read(
    _ page: SwappedPage, into room: UnsafeMutableRawBufferPointer,
    _ decompressor: PageDecompressor
  ) -> Absence? {
    guard let devices = try? devices.get(), let device = devices.all[page.entry.device] else {
      return .corrupt
    }
    do {
      let stored: StoredPage?
      switch page.store {
      case .image:
        guard let image = device.image, let bytes = image.page(page.entry.offset),
          bytes.count == room.count
        else { return .truncated }
        unsafe room.copyBytes(from: bytes)
        return nil
      case .zswap: stored = try devices.zswap.get()?.page(page.entry)
      case .zram:
        stored = try device.swap.block(of: page.entry.offset)
          .flatMap { try device.zram.get()?.page($0) }
      }
      guard let stored, let objects = devices.objects else { return .corrupt }
      return unsafe try read(stored, objects, into: room, decompressor) ? nil : .corrupt
    } catch {
      return .corrupt
    }
  }

  /// False if the page's data is not what its description says.
  private func read(
    _ page: StoredPage, _ objects: ZSMalloc, into room: UnsafeMutableRawBufferPointer,
    _ decompressor: PageDecompressor
  ) throws(MemoryError) -> Bool {
    let bytes: [UInt8]?
    let form: PageCompression?
    switch page {
    case .fill(let word):
      for offset in stride(from: 0, to: room.count, by: 8) {
        unsafe room.storeBytes(of: word.littleEndian, toByteOffset: offset, as: UInt64.self)
      }
      return true
    case .object(let location, let size, let compression):
      bytes = try objects.read(location, size: size)
      form = compression
    case .plain(let location):
      bytes = try objects.read(location, size: room.count)
      form = nil
    case .bytes(let address, let size, let compression):
      bytes = try kernel.memory.read(address, count: size)
      form = compression
    }
    guard let bytes else { return false }
    guard let form else {
      guard bytes.count == room.count else { return false }
      unsafe room.copyBytes(from: bytes)
      return true
    }
    return unsafe bytes.withUnsafeBytes { stored in
      unsafe decompressor.decompress(stored, form, into: room)
    }
  }
}

extension Result {
  fileprivate func get<Other: Error>(
    orThrow wrap: (Failure) -> Other
  ) throws(Other) -> Success {
    switch self {
    case .success(let value): return value
    case .failure(let error): throw wrap(error)
    }
  }
}
