import DumpFiles
import Memory
import SyntheticDumps
import Testing

@Suite struct ConcurrencyTests {
  @Test func threadsReadTheSameDumpAtOnce() async throws {
    var generator = SeededGenerator(seed: 4)
    let memory = SyntheticMemory(randomIn: [0..<1000], using: &generator)
    var options = SyntheticKdump()
    options.compression = .mixed
    options.level = 1
    for file in [memory.elf(), memory.kdump(options)] {
      let dump = try openDump(file)
      let wrong = await withTaskGroup(of: Int.self) { group in
        for task in 0..<8 {
          group.addTask {
            var generator = SeededGenerator(seed: UInt64(task))
            let reader = dump.makeReader()
            var wrong = 0
            for _ in 0..<200 {
              let frame = PageFrameNumber(UInt64.random(in: 0..<990, using: &generator))
              let truth = (0..<10).map { memory[frame + $0].map { Expected.bytes($0) } }
              if dump.read(frame) != truth[0] { wrong += 1 }
              if task % 2 == 0, reader.read(from: frame, count: 10) != truth { wrong += 1 }
            }
            return wrong
          }
        }
        return await group.reduce(0, +)
      }
      #expect(wrong == 0)
    }
  }
}
