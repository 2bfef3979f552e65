import Glibc
import Synchronization
import SystemPackage

/// Files under a temporary name, to be removed should the program be told to end.
public enum UnfinishedFiles {
  private static let paths = Mutex<Set<String>>([])

  /// Creates a file by `open` and remembers it in one step: a signal finds it created and known, or
  /// neither. Returns the descriptor, or a negative number as `open` does.
  static func create(_ path: FilePath, by open: () -> Int32) -> Int32 {
    paths.withLock { paths in
      let descriptor = open()
      if descriptor >= 0 { paths.insert(path.string) }
      return descriptor
    }
  }

  static func remove(_ path: FilePath) { paths.withLock { _ = $0.remove(path.string) } }

  /// Removes them all.
  public static func removeAll() {
    paths.withLock { paths in
      for path in paths { unsafe _ = unlink(path) }
      paths.removeAll()
    }
  }
}
