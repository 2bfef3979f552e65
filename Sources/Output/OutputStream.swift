import Glibc
import Memory
import SystemPackage

/// Standard output, for one vmcore: written from its start to its end.
public struct OutputStream: Sendable {
  private let descriptor: Int32

  public init() { descriptor = STDOUT_FILENO }

  /// The open stream, for those who write through swift-system.
  public var fileDescriptor: FileDescriptor { FileDescriptor(rawValue: descriptor) }

  public func write(_ bytes: UnsafeRawBufferPointer) throws(OutputError) {
    if let error = unsafe writeAll(bytes, to: descriptor) { throw .cannotStream(errno: error) }
  }

  public func write(_ bytes: [UInt8]) throws(OutputError) {
    let error = unsafe bytes.withUnsafeBytes { unsafe writeAll($0, to: descriptor) }
    if let error { throw .cannotStream(errno: error) }
  }
}
