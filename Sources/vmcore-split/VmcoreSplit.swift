import ArgumentParser
import Glibc
import Memory
import Output

/// The version told by `--version` and in the files written.
let toolVersion = "0.1.0"

@main
struct VmcoreSplit: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "vmcore-split",
    abstract: "Take the KVM guests out of a crashed host's vmcore.",
    discussion: """
      Finds every KVM guest in a dump of its host, or the guest in the core of its QEMU, and writes \
      one ELF vmcore per guest, with its registers, which crash opens. Needs no debuginfo: symbols \
      and types come from the dump.

      Exit status: 0 everything extracted; 1 error, nothing usable; 2 usage; 3 extracted with \
      findings (missing pages, unknown registers); 4 no guest in this dump.
      """,
    version: toolVersion,
    subcommands: [
      Extract.self, List.self, Registers.self, VMCS.self, Check.self, Excerpt.self, QEMUCore.self,
    ],
    defaultSubcommand: Extract.self)

  static func main() {
    openStandardStreams()
    removeUnfinishedFilesOnSignals()
    // A limit on file sizes, or a reader of our output that went away, is an error of the write, not
    // the program's end: it would leave an unfinished file behind.
    _ = signal(SIGXFSZ, SIG_IGN)
    _ = signal(SIGPIPE, SIG_IGN)
    var status = ExitStatus.success.rawValue
    do {
      var command = try parseAsRoot()
      try command.run()
    } catch {
      status = report(error)
    }
    // What was printed may still be on its way. A reader that has seen enough is no error.
    if fflush(nil) != 0, errno != EPIPE {
      Console.error(OutputError.cannotStream(errno: errno))
      status = ExitStatus.failure.rawValue
    }
    Glibc.exit(status)
  }

  /// A file that is opened must not become the standard output of somebody who closed that.
  private static func openStandardStreams() {
    for stream in STDIN_FILENO...STDERR_FILENO where fcntl(stream, F_GETFD) == -1 {
      // The lowest number that is free.
      unsafe _ = open("/dev/null", O_RDWR)
    }
  }

  /// Says what went wrong and returns the exit status for it.
  private static func report(_ error: any Error) -> Int32 {
    if let status = error as? ExitStatus { return status.rawValue }
    if let failure = error as? Failure {
      Console.error(failure.diagnosis)
      return failure.status.rawValue
    }
    let code = exitCode(for: error)
    let text = fullMessage(for: error)
    if code == .success {
      print(text)
      return ExitStatus.success.rawValue
    }
    Console.write(text + "\n")
    return code == .validationFailure ? ExitStatus.usage.rawValue : ExitStatus.failure.rawValue
  }

  /// Ctrl-C and kill leave nothing half-written behind.
  private static func removeUnfinishedFilesOnSignals() {
    var signals = sigset_t()
    unsafe sigemptyset(&signals)
    for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] { unsafe sigaddset(&signals, signal) }
    unsafe pthread_sigmask(SIG_BLOCK, &signals, nil)
    let awaited = signals
    // A thread that waits may take locks and free memory, which a signal handler may not.
    detachedThread {
      var awaited = awaited
      var signal: Int32 = 0
      guard unsafe sigwait(&awaited, &signal) == 0 else { return }
      UnfinishedFiles.removeAll()
      Console.write("\nvmcore-split: stopped; unfinished files were removed\n")
      // Other threads are still at work: nothing of theirs is waited for.
      _exit(128 + signal)
    }
  }
}

/// What the program's end tells its caller.
enum ExitStatus: Int32, Error {
  case success = 0
  case failure = 1
  case usage = 2
  case findings = 3
  case noGuest = 4
}
