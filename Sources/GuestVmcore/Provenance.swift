import FoundationEssentials
import Guest

/// What the note in a guest's vmcore says of where it comes from.
public struct Provenance: Codable, Sendable {
  public var tool: String
  public var version: String
  public var source: Source
  public var guest: GuestReport
  /// If they were asked for.
  public var checksums: Checksums?

  public struct Source: Codable, Hashable, Sendable {
    public var path: String
    public var format: String

    public init(path: String, format: String) {
      self.path = path
      self.format = format
    }
  }

  public init(tool: String, version: String, source: Source, guest: GuestReport) {
    self.tool = tool
    self.version = version
    self.source = source
    self.guest = guest
  }

  func adding(lost: [MemoryRun]) -> Provenance {
    var copy = self
    copy.guest.memory.add(lost: lost)
    return copy
  }

  func encoded() -> [UInt8] {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    // Every member is a string or a number: there is nothing that cannot be encoded.
    return (try? encoder.encode(self)).map { Array($0) } ?? []
  }

  public init?(encoded bytes: [UInt8]) {
    guard let value = try? JSONDecoder().decode(Self.self, from: Data(bytes)) else { return nil }
    self = value
  }
}
