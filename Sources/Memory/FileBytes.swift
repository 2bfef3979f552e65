import Glibc

/// Writes all bytes at an offset of a file. Returns the error (an errno) of the write that failed,
/// nil if none did.
public func writeAll(
  _ bytes: UnsafeRawBufferPointer, to descriptor: Int32, at offset: UInt64
) -> Int32? {
  var done = 0
  while done < bytes.count {
    let count = unsafe pwrite(
      descriptor, bytes.baseAddress.map { unsafe $0 + done }, bytes.count - done,
      off_t(clamping: offset + UInt64(done)))
    if count > 0 {
      done += count
    } else if count == 0 {
      return EIO
    } else if errno != EINTR {
      return errno
    }
  }
  return nil
}

/// Writes all bytes to where a stream stands, and waits for its reader where it must. Returns the
/// error (an errno) of the write that failed, nil if none did.
public func writeAll(_ bytes: UnsafeRawBufferPointer, to descriptor: Int32) -> Int32? {
  var done = 0
  while done < bytes.count {
    let count = unsafe write(
      descriptor, bytes.baseAddress.map { unsafe $0 + done }, bytes.count - done)
    if count > 0 {
      done += count
    } else if count == 0 {
      return EIO
    } else if errno == EAGAIN {
      // Whoever shares the pipe, ssh for one, may have made it non-blocking.
      var waited = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
      unsafe _ = poll(&waited, 1, -1)
    } else if errno != EINTR {
      return errno
    }
  }
  return nil
}

/// Reads from an offset of a file on until `buffer` is full or the file ends. Returns how many bytes
/// there were, and the error (an errno) of the read that failed, nil if none did.
public func readAll(
  from descriptor: Int32, at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer
) -> (count: Int, error: Int32?) {
  var done = 0
  while done < buffer.count {
    let (position, isTooFar) = offset.addingReportingOverflow(UInt64(done))
    guard !isTooFar, let position = off_t(exactly: position) else { break }
    let count = unsafe pread(
      descriptor, buffer.baseAddress.map { unsafe $0 + done }, buffer.count - done, position)
    if count > 0 {
      done += count
    } else if count == 0 {
      break
    } else if errno != EINTR {
      return (done, errno)
    }
  }
  return (done, nil)
}
