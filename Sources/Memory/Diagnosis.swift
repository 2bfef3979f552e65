/// An error as it is told to the user: what is wrong, where, and what to do about it.
public protocol Diagnosis: Error, Sendable {
  /// A stable name, for scripts and for searching: `dump.truncated-header`.
  var name: String { get }
  /// What is wrong, with the place (file and offset, or address) and the value met.
  var problem: String { get }
  /// What the user can do about it.
  var advice: String? { get }
}
