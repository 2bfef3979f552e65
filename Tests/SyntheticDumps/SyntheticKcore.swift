import Memory

extension SyntheticMemory {
  /// This memory as /proc/kcore shows it: loads of kernel virtual addresses, those that are RAM with
  /// their physical address, at offsets far apart in a huge file. Source: fs/proc/kcore.c.
  ///
  /// - Parameter text: frames that the load of the kernel's image shows a second time.
  public func kcore(vmcoreinfo: String, text: Range<PageFrameNumber>) -> SyntheticFile {
    let directMap: UInt64 = 0xffff_8880_0000_0000
    struct Load {
      var virtual: UInt64
      var physical: UInt64
      var size: UInt64
    }
    var loads = [
      Load(
        virtual: 0xffff_ffff_8100_0000, physical: text.lowerBound.address.rawValue,
        size: text.upperBound.distance(from: text.lowerBound) << pageShift),
      Load(virtual: 0xffff_c900_0000_0000, physical: .max, size: 1 << 38),
      Load(virtual: 0xffff_ffff_c000_0000, physical: .max, size: 0x3f00_0000),
    ]
    for range in frameRanges {
      let start = range.lowerBound.address.rawValue
      loads.append(
        Load(
          virtual: directMap + start, physical: start,
          size: range.upperBound.distance(from: range.lowerBound) << pageShift))
      loads.append(Load(virtual: 0xffff_ea00_0000_0000 + start / 64, physical: .max, size: 4096))
    }
    let notes =
      [
        SyntheticNote.processStatus(cpu: 0),
        SyntheticNote(name: "CORE", type: 3, description: [UInt8](repeating: 0, count: 136)),
        SyntheticNote(name: "CORE", type: 4, description: [UInt8](repeating: 0, count: 9024)),
        .vmcoreinfo(vmcoreinfo),
      ].flatMap(\.encoded.bytes)

    let count = UInt64(loads.count + 1)
    let noteOffset = 64 + 56 * count
    let dataOffset = (noteOffset + UInt64(notes.count) + 4095) & ~4095
    var file = SyntheticFile([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1])
    file.store(UInt16(4), at: 16)
    file.store(UInt16(62), at: 18)
    file.store(UInt32(1), at: 20)
    file.store(64 as UInt64, at: 32)
    file.store(UInt16(64), at: 52)
    file.store(UInt16(56), at: 54)
    file.store(UInt16(count), at: 56)
    var table: [UInt8] = []
    func add(_ type: UInt32, _ members: [UInt64]) {
      table.append(littleEndian: type)
      table.append(littleEndian: UInt32(7))
      for member in members { table.append(littleEndian: member) }
    }
    add(4, [noteOffset, 0, 0, UInt64(notes.count), 0, 0])
    var end = dataOffset
    for (index, load) in loads.enumerated() {
      // As far apart as file systems allow; in truth, as the addresses are.
      let offset = dataOffset + UInt64(index) << 39
      add(1, [offset, load.virtual, load.physical, load.size, load.size, 4096])
      end = max(end, offset + load.size)
      guard load.physical != .max else { continue }
      for frame in frames
      where (load.physical..<load.physical + load.size).contains(frame.address.rawValue) {
        file.write(self[frame] ?? [], at: offset + frame.address.rawValue - load.physical)
      }
    }
    file.write(table, at: 64)
    file.write(notes, at: noteOffset)
    file.resize(to: end)
    return file
  }
}
