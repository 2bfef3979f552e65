import Glibc

/// Runs `body` on `count` threads, one of them the caller's, and returns when all have ended.
///
/// Plain threads: the work blocks in reads and writes, which would starve the cooperative pool.
/// Where fewer can be started, fewer run: the work must be handed out piece by piece.
public func onThreads(_ count: Int, _ body: @escaping @Sendable (Int) -> Void) {
  alongside(threads: count - 1, { body($0 + 1) }) { body(0) }
}

/// Runs `body` on `count` threads and, on the caller's, `foreground`; returns when all have ended.
public func alongside<Result, Failure: Error>(
  threads count: Int, _ body: @escaping @Sendable (Int) -> Void,
  _ foreground: () throws(Failure) -> Result
) throws(Failure) -> Result {
  var threads: [pthread_t] = []
  for index in 0..<max(0, count) {
    if let thread = startThread({ body(index) }) { threads.append(thread) }
  }
  defer { for thread in threads { pthread_join(thread, nil) } }
  return try foreground()
}

/// Starts a thread that nobody waits for.
public func detachedThread(_ body: @escaping @Sendable () -> Void) {
  if let thread = startThread(body) { pthread_detach(thread) }
}

private func startThread(_ body: @escaping @Sendable () -> Void) -> pthread_t? {
  let argument = unsafe Unmanaged.passRetained(Work(body))
  var thread = pthread_t()
  let result = unsafe pthread_create(
    &thread, nil,
    { argument in
      guard let argument = unsafe argument else { return nil }
      unsafe Unmanaged<Work>.fromOpaque(argument).takeRetainedValue().run()
      return nil
    }, argument.toOpaque())
  guard result == 0 else {
    unsafe argument.release()
    return nil
  }
  return thread
}

private final class Work: Sendable {
  let run: @Sendable () -> Void
  init(_ run: @escaping @Sendable () -> Void) { self.run = run }
}

/// Processors that this process may run on. Found out once: what tells of them is in /sys.
public let availableProcessors = max(1, sysconf(Int32(_SC_NPROCESSORS_ONLN)))
