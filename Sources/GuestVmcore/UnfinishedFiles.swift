import Glibc
import Synchronization
import SystemPackage

/// Files under a temporary name, to be removed should the program be told to end.
public enum UnfinishedFiles {
  private static let paths = Mutex<Set<String>>([])

  static func add(_ path: FilePath) { paths.withLock { _ = $0.insert(path.string) } }
  static func remove(_ path: FilePath) { paths.withLock { _ = $0.remove(path.string) } }

  /// Removes them all.
  public static func removeAll() {
    paths.withLock { paths in
      for path in paths { unsafe _ = unlink(path) }
      paths.removeAll()
    }
  }
}
