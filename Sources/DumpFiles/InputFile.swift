import Glibc
import Memory
import SystemPackage

/// The bytes of a dump, whether they lie in the file as they stand in the dump or in a flattened
/// file's records: positioned reads only, so that threads can share it.
final class InputFile: Sendable {
  let path: FilePath
  /// Size in bytes when the file was opened; of a flattened file, of the dump in it.
  let size: UInt64
  private let storage: Storage

  private enum Storage: Sendable {
    case plain(Descriptor)
    case flattened(FlattenedFile)
  }

  /// A file descriptor, closed by whom holds it last.
  private final class Descriptor: Sendable {
    let rawValue: CInt

    init(_ rawValue: CInt) { self.rawValue = rawValue }

    deinit { close(rawValue) }
  }

  /// A file as it lies there.
  init(_ path: FilePath) throws(DumpFileError) {
    // A core may name a pipe as its program: opening that would wait for a writer.
    let rawValue = unsafe path.withPlatformString {
      unsafe open($0, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)
    }
    guard rawValue >= 0 else { throw .cannotOpen(path, Errno(rawValue: errno)) }
    let descriptor = Descriptor(rawValue)
    var status = stat()
    guard unsafe fstat(rawValue, &status) == 0 else {
      throw .cannotOpen(path, Errno(rawValue: errno))
    }
    let type = status.st_mode & S_IFMT
    // A block device has no size of its own in its inode; seeking tells it.
    let end = type == S_IFBLK ? lseek(rawValue, 0, SEEK_END) : off_t(status.st_size)
    guard type == S_IFREG || type == S_IFBLK, let size = UInt64(exactly: end) else {
      throw .notAFile(path, isDirectory: type == S_IFDIR)
    }
    self.path = path
    self.size = size
    storage = .plain(descriptor)
  }

  private init(_ flattened: FlattenedFile) {
    path = flattened.file.path
    size = flattened.size
    storage = .flattened(flattened)
  }

  /// Opens a dump: a flattened one is put in order.
  static func dump(_ path: FilePath) throws(DumpFileError) -> InputFile {
    let file = try InputFile(path)
    let start = try file.bytes(at: 0, count: FlattenedFile.signature.count)
    return start == FlattenedFile.signature ? InputFile(try FlattenedFile(file)) : file
  }

  /// Where a flattened file's records end too early, nil if the file is whole or not flattened.
  var flattenedCut: FlattenedFile.Cut? {
    if case .flattened(let flattened) = storage { flattened.cut } else { nil }
  }

  var isFlattened: Bool {
    if case .flattened = storage { true } else { false }
  }

  /// Of a file as it lies there, for those who do more with it than reading.
  var plainDescriptor: CInt? {
    if case .plain(let descriptor) = storage { descriptor.rawValue } else { nil }
  }

  /// Fills `buffer` from `offset` on and returns how many bytes there were before the dump's end,
  /// or before bytes that no record of a flattened file has.
  func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(Errno) -> Int {
    switch storage {
    case .plain(let descriptor):
      let (count, error) = unsafe readAll(from: descriptor.rawValue, at: offset, into: buffer)
      if let error { throw Errno(rawValue: error) }
      return count
    case .flattened(let flattened):
      return unsafe try flattened.read(at: offset, into: buffer)
    }
  }

  /// Up to `count` bytes from `offset` on, fewer where ``read(at:into:)`` ends.
  ///
  /// `count` must be bounded by the caller: it is allocated.
  func bytes(at offset: UInt64, count: Int) throws(DumpFileError) -> [UInt8] {
    var failure: Errno?
    let bytes = unsafe [UInt8](unsafeUninitializedCapacity: count) { buffer, initialized in
      do throws(Errno) {
        initialized = unsafe try read(at: offset, into: UnsafeMutableRawBufferPointer(buffer))
      } catch {
        failure = error
      }
    }
    if let failure { throw .readFailed(path, offset: offset, failure) }
    return bytes
  }
}
