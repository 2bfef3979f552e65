import Glibc
import Memory
import SystemPackage

/// The file that a dump is read from: positioned reads only, so that threads can share it.
final class InputFile: Sendable {
  let path: FilePath
  /// Size in bytes when the file was opened.
  let size: UInt64
  private let descriptor: CInt

  init(_ path: FilePath) throws(DumpFileError) {
    let descriptor = unsafe path.withPlatformString { unsafe open($0, O_RDONLY | O_CLOEXEC) }
    guard descriptor >= 0 else { throw .cannotOpen(path, Errno(rawValue: errno)) }
    self.path = path
    self.descriptor = descriptor
    var status = stat()
    guard unsafe fstat(descriptor, &status) == 0 else {
      let error = Errno(rawValue: errno)
      close(descriptor)
      throw .cannotOpen(path, error)
    }
    let type = status.st_mode & S_IFMT
    // A block device has no size of its own in its inode; seeking tells it.
    let end = type == S_IFBLK ? lseek(descriptor, 0, SEEK_END) : off_t(status.st_size)
    guard type == S_IFREG || type == S_IFBLK, let size = UInt64(exactly: end) else {
      close(descriptor)
      throw .notAFile(path, isDirectory: type == S_IFDIR)
    }
    self.size = size
  }

  deinit {
    close(descriptor)
  }

  /// Fills `buffer` from `offset` on and returns how many bytes there were before the file's end.
  func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(Errno) -> Int {
    guard let base = buffer.baseAddress, var position = off_t(exactly: offset) else {
      return 0
    }
    var done = 0
    while done < buffer.count {
      let got = unsafe pread(descriptor, base + done, buffer.count - done, position)
      if got > 0 {
        done += got
        let (next, isTooFar) = position.addingReportingOverflow(got)
        if isTooFar { break }
        position = next
      } else if got == 0 {
        break
      } else if errno != EINTR {
        throw Errno(rawValue: errno)
      }
    }
    return done
  }

  /// Up to `count` bytes from `offset` on, fewer at the file's end.
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
