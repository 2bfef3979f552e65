import DumpFiles
import Glibc
import Memory
import SyntheticDumps
import SystemPackage
import Testing

@Suite struct FileKindTests {
  @Test(arguments: [
    ([], "empty", "disk"),
    ([0x1f, 0x8b, 8, 0], "compressed", "gzip -dk"),
    ([0xfd, 0x37, 0x7a, 0x58, 0x5a, 0], "compressed", "xz -dk"),
    ([0x28, 0xb5, 0x2f, 0xfd, 4], "compressed", "zstd -d"),
    ([0x89, 0x4c, 0x5a, 0x4f, 0, 0x0d, 0x0a, 0x1a, 0x0a], "compressed", "lzop -d"),
    (Array("QEVM\0\0\0\u{3}".utf8), "migration-stream", "--memory-only"),
    (Array("LibvirtQemudSave".utf8), "migration-stream", "--memory-only"),
    ([0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 3], "disk-image", "memory dump"),
    (Array("Salted__abcdefgh".utf8), "encrypted", "decrypt"),
    (Array("PAGEDU64".utf8), "foreign", "vmcores"),
    (Array("Nov 22 13:14:15 host kernel: panic\n".utf8), "text", "vmcores"),
    (Array(repeating: 0, count: 5000), "zeros", "copy"),
    ([0xde, 0xad, 0xbe, 0xef], "unknown", "vmcores"),
  ])
  func namesWhatTheFileIs(bytes: [UInt8], name: String, advice: String) {
    let error = openingError(SyntheticFile(bytes))
    #expect(error?.name == "dump.not-a-dump." + name)
    #expect(error?.advice?.contains(advice) == true)
  }

  @Test func saysWhyAPathCannotBeOpened() {
    func error(_ path: FilePath) -> DumpFileError? {
      do throws(DumpFileError) {
        _ = try DumpFile.open(path)
        return nil
      } catch {
        return error
      }
    }
    #expect(error("/nonexistent/vmcore")?.name == "dump.not-found")
    #expect(error("/nonexistent/vmcore")?.problem.contains("No such file") == true)
    #expect(error("/")?.name == "dump.not-a-file")
    #expect(error("/dev/null")?.name == "dump.not-a-file")
    #expect(error("/dev/null/vmcore")?.name == "dump.cannot-open")
  }

  @Test(arguments: ELFDefect.allCases.map(\.file) + KdumpDefect.allCases.map(\.file))
  func everyMessageNamesTheFileAndWhatToDo(file: SyntheticFile) throws {
    let saved = try file.save()
    do throws(DumpFileError) {
      _ = try DumpFile.open(FilePath(saved.path))
      Issue.record("opened")
    } catch {
      #expect(error.problem.hasPrefix(saved.path + ": "))
      #expect(error.advice?.isEmpty == false)
    }
  }
}
