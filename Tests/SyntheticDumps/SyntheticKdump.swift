import Memory

/// How a kdump-compressed file of a ``SyntheticMemory`` is to look.
public struct SyntheticKdump: Sendable {
  public var version: Int32 = 6
  public var compression = Compression.zlib
  /// makedumpfile -d. With bit 1 all pages of zeros share one block of data.
  public var level: Int32 = 0
  /// Frames of RAM; nil: those of the memory.
  public var ram: [Range<PageFrameNumber>]?
  /// Frames of the memory that are left out.
  public var excluded: Set<PageFrameNumber> = []
  public var vmcoreinfo: String?
  /// In the file from version 4 on.
  public var notes: [SyntheticNote] = []
  public var machine = "x86_64"
  /// A part of a split set: the frames that it has.
  public var split: Range<PageFrameNumber>?
  public var isIncomplete = false
  /// The older format, whose signature is DISKDUMP and whose sub-header says nothing.
  public var isDiskdump = false
  /// One bitmap that says both what is RAM and what is stored.
  public var hasOneBitmap = false

  public init() {}
}

extension SyntheticMemory {
  /// A kdump-compressed file of this memory. Layout: makedumpfile's diskdump_mod.h.
  public func kdump(_ options: SyntheticKdump = SyntheticKdump()) -> SyntheticFile {
    let block: UInt64 = 4096
    // All parts of a split set have the bitmaps of the whole.
    let inBitmap = frames.filter { !options.excluded.contains($0) }
    let stored = inBitmap.filter { frame in options.split.map { $0.contains(frame) } ?? true }
    let ram = options.ram ?? frameRanges
    let frameLimit = max(
      ram.last?.upperBound.rawValue ?? 0, inBitmap.last.map { $0.rawValue + 1 } ?? 0)

    // The sub-header's block or blocks: fields, then notes, or the text alone before version 4.
    var extra: [UInt8] = []
    var vmcoreinfo: (offset: UInt64, size: UInt64) = (0, 0)
    let extraOffset = block + 104
    if options.version >= 4 {
      for note in options.notes { extra += note.encoded.bytes }
      if let text = options.vmcoreinfo {
        let note = SyntheticNote.vmcoreinfo(text).encoded
        vmcoreinfo = (
          extraOffset + UInt64(extra.count + note.descriptionOffset), UInt64(text.utf8.count)
        )
        extra += note.bytes
      }
    } else if let text = options.vmcoreinfo {
      vmcoreinfo = (extraOffset, UInt64(text.utf8.count))
      extra = Array(text.utf8)
    }
    let subBlocks = (104 + UInt64(extra.count) + block - 1) / block
    let bitmapBlocks = (frameLimit + 8 * block - 1) / (8 * block) * (options.hasOneBitmap ? 1 : 2)
    let bitmapOffset = block * (1 + subBlocks)
    let descriptorOffset = bitmapOffset + block * bitmapBlocks

    var file = SyntheticFile()
    file.write(Array((options.isDiskdump ? "DISKDUMP" : "KDUMP   ").utf8), at: 0)
    file.store(options.version, at: 8)
    file.write(Array("Linux".utf8), at: 12)
    file.write(Array(options.machine.utf8), at: 12 + 4 * 65)
    let status = options.isDiskdump ? (options.isIncomplete ? 1 : 8) : options.compression.flag
    file.store(status | (options.isIncomplete && !options.isDiskdump ? 8 : 0), at: 424)
    file.store(UInt32(block), at: 428)
    file.store(UInt32(subBlocks), at: 432)
    file.store(UInt32(bitmapBlocks), at: 436)
    file.store(UInt32(clamping: frameLimit), at: 440)
    file.store(UInt32(1), at: 460)

    if !options.isDiskdump {
      // Fields that the version does not have hold garbage: readers must not look.
      for offset in stride(from: block, to: block + 104, by: 8) {
        file.store(0x5a5a_5a5a_5a5a_5a5a as UInt64, at: offset)
      }
      file.store(0x1000 as UInt64, at: block)
      if options.version >= 1 { file.store(options.level, at: block + 8) }
      if options.version >= 2 {
        file.store(UInt32(options.split == nil ? 0 : 1), at: block + 12)
        file.store(options.split?.lowerBound.rawValue ?? 0, at: block + 16)
        file.store(options.split?.upperBound.rawValue ?? 0, at: block + 24)
      }
      if options.version >= 3 {
        file.store(vmcoreinfo.offset, at: block + 32)
        file.store(vmcoreinfo.size, at: block + 40)
      }
      if options.version >= 4 {
        file.store(extra.isEmpty ? 0 : extraOffset, at: block + 48)
        file.store(UInt64(extra.count), at: block + 56)
      }
      if options.version >= 5 {
        file.store(0 as UInt64, at: block + 64)
        file.store(0 as UInt64, at: block + 72)
      }
      if options.version >= 6 {
        file.store(options.split?.lowerBound.rawValue ?? 0, at: block + 80)
        file.store(options.split?.upperBound.rawValue ?? 0, at: block + 88)
        file.store(frameLimit, at: block + 96)
      }
    }
    file.write(extra, at: extraOffset)

    let bitmapSize = block * bitmapBlocks
    file.resize(to: descriptorOffset)
    if !options.hasOneBitmap {
      for range in ram {
        for frame in range.lowerBound.rawValue..<range.upperBound.rawValue {
          file.setBit(frame, ofBitmapAt: bitmapOffset)
        }
      }
    }
    let storedOffset = options.hasOneBitmap ? bitmapOffset : bitmapOffset + bitmapSize / 2
    for frame in inBitmap { file.setBit(frame.rawValue, ofBitmapAt: storedOffset) }

    var descriptors: [UInt8] = []
    var offset = descriptorOffset + 24 * UInt64(stored.count)
    func addDescriptor(_ offset: UInt64, _ form: (bytes: [UInt8], flag: UInt32)) {
      descriptors.append(littleEndian: offset)
      descriptors.append(littleEndian: UInt32(form.bytes.count))
      descriptors.append(littleEndian: form.flag)
      descriptors.append(littleEndian: UInt64(0))
    }
    var shared: (offset: UInt64, form: (bytes: [UInt8], flag: UInt32))?
    for (index, frame) in stored.enumerated() {
      guard let page = self[frame] else { continue }
      let sharesData = options.level & 1 != 0 && page.isZero
      if sharesData, let shared {
        addDescriptor(shared.offset, shared.form)
        continue
      }
      let form = options.compression.encode(page, index: index)
      if sharesData { shared = (offset, form) }
      addDescriptor(offset, form)
      file.write(form.bytes, at: offset)
      offset += UInt64(form.bytes.count)
    }
    file.write(descriptors, at: descriptorOffset)
    return file
  }
}
