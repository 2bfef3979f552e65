import DumpFiles
import Memory
import SyntheticDumps
import SystemPackage
import Testing

/// Damage of any kind must neither trap nor hang: the test process is the witness.
@Suite struct DamageTests {
  static let memory: SyntheticMemory = {
    var generator = SeededGenerator(seed: 3)
    return SyntheticMemory(randomIn: [0..<12, 60..<70], using: &generator)
  }()

  static func samples() -> [SyntheticFile] {
    let notes: [SyntheticNote] = [.processStatus(cpu: 0), .vmcoreinfo("OSRELEASE=6.1.0\n")]
    var files = [
      memory.elf(SyntheticELF(notes: notes)),
      memory.elf(SyntheticELF(style: .qemu, notes: notes, hasExtendedCount: true)),
    ]
    for compression in Compression.allCases {
      var options = SyntheticKdump()
      options.compression = compression
      options.level = 1
      options.notes = notes
      options.vmcoreinfo = "OSRELEASE=6.1.0\n"
      files.append(memory.kdump(options))
    }
    var diskdump = SyntheticKdump()
    diskdump.isDiskdump = true
    files.append(memory.kdump(diskdump))
    var generator = SeededGenerator(seed: 12)
    files.append(SyntheticFile(flattened: files[0].records(using: &generator)))
    files.append(SyntheticFile(flattened: files[2].records(using: &generator)))
    return files
  }

  /// Offsets worth damage: headers, tables and the first pages' data; for bit flips anywhere.
  static func damage(_ file: inout SyntheticFile, using generator: inout SeededGenerator) {
    for _ in 0..<Int.random(in: 1...4, using: &generator) {
      let places: [Range<UInt64>] = [
        0..<512, 4096..<4096 + 256, 8192..<8192 + 32, 12288..<12288 + 32, 16384..<16384 + 600,
        0..<file.size,
      ]
      let place = places.randomElement(using: &generator) ?? 0..<1
      let offset = UInt64.random(in: place, using: &generator)
      switch Int.random(in: 0..<6, using: &generator) {
      case 0: file.store(UInt8.random(in: 0...255, using: &generator), at: offset)
      case 1:
        file.store(file.load(UInt8.self, at: offset) ^ 1 << (generator.next() % 8), at: offset)
      case 2: file.store(UInt64.max, at: offset & ~7)
      case 3: file.store(UInt64.random(in: 0...file.size, using: &generator), at: offset & ~7)
      case 4: file.store(generator.next(), at: offset & ~3)
      default: file.resize(to: UInt64.random(in: 0...file.size, using: &generator))
      }
    }
  }

  /// Opens the file and reads what it says it has, up to a bound.
  static func readAll(_ path: FilePath) -> Bool {
    guard let dump = try? DumpFile.open(path) else { return false }
    let reader = dump.makeReader()
    var pages = 0
    for range in dump.frameRanges.prefix(200) {
      var frame = range.lowerBound
      while frame < range.upperBound, pages < 300 {
        let (_, count) = dump.presence(from: frame, limit: 50)
        let run = reader.read(from: frame, count: Int(min(count, 50)))
        #expect(run.count == Int(min(count, 50)))
        _ = dump.read(frame)
        pages += run.count
        frame = frame + count
      }
    }
    return true
  }

  @Test(arguments: 0..<8 as Range<UInt64>)
  func neverTrapsOnADamagedFile(seed: UInt64) throws {
    var generator = SeededGenerator(seed: seed)
    let samples = Self.samples()
    let saved = try TemporaryFile()
    var opened = 0
    let rounds = 500
    for round in 0..<rounds {
      var file = samples[round % samples.count]
      Self.damage(&file, using: &generator)
      try saved.replace(with: file)
      if Self.readAll(FilePath(saved.path)) { opened += 1 }
    }
    // Damage that is always refused would test the header checks only.
    #expect((rounds / 10..<rounds).contains(opened))
  }

  // A file can change while it is read.
  @Test func survivesAFileThatShrinks() throws {
    for sample in Self.samples() {
      let saved = try sample.save()
      let dump = try DumpFile.open(FilePath(saved.path))
      try saved.replace(with: SyntheticFile([1, 2, 3]))
      let run = dump.makeReader().read(from: PageFrameNumber(0), count: 12)
      #expect(run == Array(repeating: .absent(.truncated), count: 12))
      #expect(dump.read(PageFrameNumber(61)) == .absent(.truncated))
    }
  }
}
