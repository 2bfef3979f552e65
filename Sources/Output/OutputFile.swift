import Glibc
import Memory
import SystemPackage

/// A file that appears under its name whole or not at all: readable by its owner alone, synced, and
/// only then given its name. Unless finished, nothing stays.
///
/// Where the file system allows, the file has no name at all until it is finished, so that even a
/// program that is killed leaves nothing; elsewhere it has a temporary name beside the final one.
/// The directory is opened once: whoever exchanges it, or puts links in it, leads nothing astray.
public final class OutputFile {
  public let path: FilePath
  let descriptor: Int32
  private let directory: OutputDirectory
  private let name: String
  /// Nil for a file without a name.
  private var temporaryName: String?
  private let replacesExisting: Bool

  /// - Parameter force: replace a file that has the name already.
  public init(_ path: FilePath, force: Bool) throws(OutputError) {
    guard let last = path.lastComponent, last.kind == .regular else {
      throw .cannotCreate(path, errno: EISDIR)
    }
    self.path = path
    name = last.string
    replacesExisting = force
    do throws(Errno) {
      directory = try OutputDirectory(path.removingLastComponent())
    } catch {
      throw .cannotCreate(path, errno: error.rawValue)
    }
    switch directory.kind(of: name) {
    case nil: break
    case .some where !force: throw .exists(path)
    case .some(S_IFREG): break
    // Replacing a device or a link as root is nothing that anybody means.
    case .some: throw .notReplaceable(path)
    }
    do throws(Errno) {
      if let unnamed = directory.createUnnamed() {
        descriptor = unnamed
      } else {
        let temporary = try directory.createTemporary(beside: name)
        descriptor = temporary.descriptor
        temporaryName = temporary.name
      }
    } catch {
      throw .cannotCreate(path, errno: error.rawValue)
    }
  }

  deinit {
    close(descriptor)
    if let temporaryName { directory.remove(temporaryName) }
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
    do throws(Errno) {
      guard fsync(descriptor) == 0 else { throw Errno(rawValue: errno) }
      try giveName()
    } catch {
      throw error == .fileExists ? .exists(path) : .cannotWrite(path, errno: error.rawValue)
    }
    directory.sync()
  }

  private func giveName() throws(Errno) {
    if temporaryName == nil {
      guard replacesExisting else { return try directory.link(descriptor, as: name) }
      // A link replaces nothing; a renaming does.
      temporaryName = try directory.linkTemporarily(descriptor, beside: name)
    }
    guard let temporaryName else { return }
    try directory.rename(temporaryName, to: name, replacing: replacesExisting)
    self.temporaryName = nil
  }
}

/// An output could not be written.
public enum OutputError: Error, Sendable {
  case exists(FilePath)
  /// What has the name is no regular file.
  case notReplaceable(FilePath)
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
    case .notReplaceable: "output.not-replaceable"
    case .cannotCreate: "output.cannot-create"
    case .cannotWrite: "output.cannot-write"
    case .cannotStream: "output.cannot-stream"
    case .nothingToExtract: "output.nothing-to-extract"
    }
  }

  public var problem: String {
    switch self {
    case .exists(let path): "\(path) exists already"
    case .notReplaceable(let path): "\(path) is no regular file, and is not replaced by one"
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
    case .notReplaceable: "name another file, or where a link leads to"
    case .cannotCreate: "write elsewhere with -o"
    case .cannotWrite(_, let errno):
      errno == ENOSPC || errno == EDQUOT ? "make room, or write to another disk with -o" : nil
    case .cannotStream(EPIPE): "the program that reads it ended first: see what it says"
    case .cannotStream: nil
    case .nothingToExtract(_, _, let advice): advice
    }
  }
}
