import Glibc
import Memory

/// Messages for people, on standard error.
enum Console {
  static func write(_ text: String) {
    var bytes = Array(text.utf8)[...]
    while !bytes.isEmpty {
      let count = unsafe bytes.withUnsafeBytes { bytes in
        unsafe Glibc.write(STDERR_FILENO, bytes.baseAddress, bytes.count)
      }
      if count > 0 {
        bytes = bytes.dropFirst(count)
      } else if errno != EINTR {
        return
      }
    }
  }

  static func error(_ diagnosis: any Diagnosis) {
    write("vmcore-split: error: \(printable(diagnosis.problem)) [\(diagnosis.name)]\n")
    if let advice = diagnosis.advice { write("  \(printable(advice))\n") }
  }

  static func warning(_ text: String) { write("vmcore-split: \(printable(text))\n") }

  static var isTerminal: Bool { isatty(STDERR_FILENO) == 1 }
}

/// Text from a dump, safe to show: a guest chooses its name, and control characters command a
/// terminal.
func printable(_ text: String) -> String {
  String(
    String.UnicodeScalarView(text.unicodeScalars.map { $0.isInvisible ? "\u{fffd}" : $0 }))
}

extension Unicode.Scalar {
  /// Whether it is to be read by a terminal and not by people.
  var isInvisible: Bool {
    switch properties.generalCategory {
    case .control, .format, .surrogate, .privateUse, .unassigned, .lineSeparator,
      .paragraphSeparator:
      true
    default: false
    }
  }
}

/// An error with the exit status that it ends the program with.
struct Failure: Error {
  let diagnosis: any Diagnosis
  let status: ExitStatus

  init(_ diagnosis: any Diagnosis, status: ExitStatus = .failure) {
    self.diagnosis = diagnosis
    self.status = status
  }
}
