import Glibc
import Synchronization
import SystemPackage

/// Files under a temporary name, to be removed should the program be told to end.
public enum UnfinishedFiles {
  private struct Entry: Hashable {
    /// Open as long as the entry stands.
    let directory: Int32
    let name: String
  }

  private static let entries = Mutex<Set<Entry>>([])

  /// Creates a file by `body` and remembers it in one step: a signal finds it created and known, or
  /// neither.
  static func create(
    _ name: String, in directory: Int32, by body: () throws(Errno) -> Void
  ) throws(Errno) {
    try entries.withLock { entries throws(Errno) in
      try body()
      entries.insert(Entry(directory: directory, name: name))
    }
  }

  static func forget(_ name: String, in directory: Int32) {
    entries.withLock { _ = $0.remove(Entry(directory: directory, name: name)) }
  }

  /// Removes them all.
  public static func removeAll() {
    entries.withLock { entries in
      for entry in entries { unsafe _ = unlinkat(entry.directory, entry.name, 0) }
      entries.removeAll()
    }
  }
}
