import CShim
import Glibc
import Memory
import SystemPackage

/// The open directory that a file is written to.
final class OutputDirectory: Sendable {
  private let descriptor: Int32

  init(_ path: FilePath) throws(Errno) {
    descriptor = unsafe open(
      path.isEmpty ? "." : path.string, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard descriptor >= 0 else { throw Errno(rawValue: errno) }
  }

  deinit { close(descriptor) }

  /// What has a name, as the S_IFMT bits of its mode; of a link, not of what it leads to. Nil if
  /// nothing has the name.
  func kind(of name: String) -> mode_t? {
    var status = stat()
    guard unsafe fstatat(descriptor, name, &status, AT_SYMLINK_NOFOLLOW) == 0 else { return nil }
    return status.st_mode & S_IFMT
  }

  /// Creates a file that has no name and can be given one; nil where that is not to be had.
  func createUnnamed() -> Int32? {
    // Not to find out when the file is written: whether it is possible depends on the file system,
    // on what the program may do, and without privileges on /proc.
    guard let trial = openUnnamed() else { return nil }
    defer { close(trial) }
    guard let name = try? linkTemporarily(trial, beside: "trial") else { return nil }
    remove(name)
    return openUnnamed()
  }

  private func openUnnamed() -> Int32? {
    let file = shim_openUnnamed(descriptor)
    return file >= 0 ? file : nil
  }

  /// Creates a file under a name that says what it is to be.
  func createTemporary(beside name: String) throws(Errno) -> (descriptor: Int32, name: String) {
    var file: Int32 = -1
    let temporary = try withTemporaryName(beside: name) { temporary throws(Errno) in
      file = unsafe openat(
        descriptor, temporary, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600)
      if file < 0 { throw Errno(rawValue: errno) }
    }
    return (file, temporary)
  }

  /// Gives an unnamed file a temporary name.
  func linkTemporarily(_ file: Int32, beside name: String) throws(Errno) -> String {
    try withTemporaryName(beside: name) { temporary throws(Errno) in
      try link(file, as: temporary)
    }
  }

  /// Does `body` with a name that nothing has yet. If it succeeds the name is remembered in the same
  /// step: a signal finds the file made and known, or neither.
  private func withTemporaryName(
    beside name: String, _ body: (String) throws(Errno) -> Void
  ) throws(Errno) -> String {
    // The name may be as long as a name can be.
    let start = String(decoding: name.utf8.prefix(200), as: UTF8.self)
    var random = SystemRandomNumberGenerator()
    for _ in 0..<100 {
      let temporary = ".\(start).partial-" + String(random.next() as UInt32, radix: 36)
      do throws(Errno) {
        try UnfinishedFiles.create(temporary, in: descriptor) { () throws(Errno) in
          try body(temporary)
        }
        return temporary
      } catch {
        if error != .fileExists { throw error }
      }
    }
    throw .fileExists
  }

  /// Gives an unnamed file a name that nothing has yet.
  func link(_ file: Int32, as name: String) throws(Errno) {
    // Root needs no /proc, which a capture kernel's initramfs may lack; others do.
    let origins = [
      (file, "", AT_EMPTY_PATH), (AT_FDCWD, "/proc/self/fd/\(file)", AT_SYMLINK_FOLLOW),
    ]
    for (origin, path, flags) in origins {
      if unsafe linkat(origin, path, descriptor, name, flags) == 0 { return }
      if errno == EEXIST { break }
    }
    throw Errno(rawValue: errno)
  }

  /// Gives a file under a temporary name its own.
  func rename(_ temporary: String, to name: String, replacing: Bool) throws(Errno) {
    if replacing {
      guard unsafe renameat(descriptor, temporary, descriptor, name) == 0 else {
        throw Errno(rawValue: errno)
      }
    } else {
      try renameWithoutReplacing(temporary, to: name)
    }
    UnfinishedFiles.forget(temporary, in: descriptor)
  }

  private func renameWithoutReplacing(_ temporary: String, to name: String) throws(Errno) {
    let flags = UInt32(RENAME_NOREPLACE)
    if unsafe renameat2(descriptor, temporary, descriptor, name, flags) == 0 { return }
    guard errno == EINVAL || errno == ENOSYS else { throw Errno(rawValue: errno) }
    // Network file systems do not know the flag, but make links, which replace nothing either.
    if unsafe linkat(descriptor, temporary, descriptor, name, 0) == 0 {
      unsafe _ = unlinkat(descriptor, temporary, 0)
      return
    }
    guard errno != EEXIST else { throw .fileExists }
    // What knows neither cannot do better than to look first.
    guard kind(of: name) == nil else { throw .fileExists }
    guard unsafe renameat(descriptor, temporary, descriptor, name) == 0 else {
      throw Errno(rawValue: errno)
    }
  }

  /// Removes a file under a temporary name.
  func remove(_ temporary: String) {
    unsafe _ = unlinkat(descriptor, temporary, 0)
    UnfinishedFiles.forget(temporary, in: descriptor)
  }

  /// A name is on disk only when the directory is synced too.
  func sync() { fsync(descriptor) }
}
