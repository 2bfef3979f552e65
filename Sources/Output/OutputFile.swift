import Glibc
import Memory
import SystemPackage

/// A file that appears under its name whole or not at all: written under a temporary name beside
/// it, readable by its owner alone, synced, then renamed. Unless finished, nothing stays.
public final class OutputFile {
  public let path: FilePath
  let descriptor: Int32
  private let temporaryPath: FilePath
  private let replacesExisting: Bool
  private var isFinished = false

  /// - Parameter force: replace a file that has the name already.
  public init(_ path: FilePath, force: Bool) throws(OutputError) {
    self.path = path
    replacesExisting = force
    if !force, unsafe access(path.string, F_OK) == 0 { throw .exists(path) }
    let name = path.lastComponent?.string ?? "vmcore"
    temporaryPath = path.removingLastComponent().appending(".\(name).partial-\(getpid())")
    let temporary = temporaryPath
    descriptor = UnfinishedFiles.create(temporary) {
      unsafe open(
        temporary.string, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600)
    }
    guard descriptor >= 0 else { throw .cannotCreate(path, errno: errno) }
  }

  deinit {
    close(descriptor)
    if !isFinished {
      unsafe _ = unlink(temporaryPath.string)
      UnfinishedFiles.remove(temporaryPath)
    }
  }

  /// The open file, for those who write through swift-system.
  public var fileDescriptor: FileDescriptor { FileDescriptor(rawValue: descriptor) }

  public func resize(to size: UInt64) throws(OutputError) {
    guard ftruncate(descriptor, off_t(clamping: size)) == 0 else {
      throw .cannotWrite(path, errno: errno)
    }
  }

  public func write(_ bytes: [UInt8], at offset: UInt64) throws(OutputError) {
    let error = unsafe bytes.withUnsafeBytes { unsafe writeAll($0, to: descriptor, at: offset) }
    if let error { throw .cannotWrite(path, errno: error) }
  }

  /// Syncs the file and gives it its name.
  public func finish() throws(OutputError) {
    guard fsync(descriptor) == 0 else { throw .cannotWrite(path, errno: errno) }
    var result = unsafe renameat2(
      AT_FDCWD, temporaryPath.string, AT_FDCWD, path.string,
      replacesExisting ? 0 : UInt32(RENAME_NOREPLACE))
    // Some network file systems do not know the flag.
    if result != 0, errno == EINVAL, unsafe replacesExisting || access(path.string, F_OK) != 0 {
      result = unsafe rename(temporaryPath.string, path.string)
    }
    guard result == 0 else {
      throw errno == EEXIST ? .exists(path) : .cannotWrite(path, errno: errno)
    }
    isFinished = true
    UnfinishedFiles.remove(temporaryPath)
    // The name itself is on disk only when the directory is synced too.
    let directory = path.removingLastComponent()
    let parent = unsafe open(directory.isEmpty ? "." : directory.string, O_RDONLY | O_DIRECTORY)
    if parent >= 0 {
      fsync(parent)
      close(parent)
    }
  }
}

/// An output could not be written.
public enum OutputError: Error, Sendable {
  case exists(FilePath)
  case cannotCreate(FilePath, errno: Int32)
  case cannotWrite(FilePath, errno: Int32)
  /// Standard output takes no more; what it took is not whole.
  case cannotStream(errno: Int32)
  /// Nothing of the guest's memory is in the dump.
  case nothingToExtract(guest: String, why: String, advice: String?)
}

extension OutputError: Diagnosis {
  public var name: String {
    switch self {
    case .exists: "output.exists"
    case .cannotCreate: "output.cannot-create"
    case .cannotWrite: "output.cannot-write"
    case .cannotStream: "output.cannot-stream"
    case .nothingToExtract: "output.nothing-to-extract"
    }
  }

  public var problem: String {
    switch self {
    case .exists(let path): "\(path) exists already"
    case .cannotCreate(let path, let errno):
      "\(path) cannot be created: \(Errno(rawValue: errno))"
    case .cannotWrite(let path, let errno):
      "\(path) cannot be written: \(Errno(rawValue: errno)); nothing was left behind"
    case .cannotStream(let errno):
      "standard output cannot be written: \(Errno(rawValue: errno)); what went there is not whole"
    case .nothingToExtract(let guest, let why, _):
      "guest \(guest): none of its memory can be extracted: \(why)"
    }
  }

  public var advice: String? {
    switch self {
    case .exists: "use --force to replace it, or -o to write elsewhere"
    case .cannotCreate: "write elsewhere with -o"
    case .cannotWrite(_, let errno):
      errno == ENOSPC || errno == EDQUOT ? "make room, or write to another disk with -o" : nil
    case .cannotStream(EPIPE): "the program that reads it ended first: see what it says"
    case .cannotStream: nil
    case .nothingToExtract(_, _, let advice): advice
    }
  }
}
