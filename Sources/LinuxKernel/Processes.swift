import Memory
import X86

/// What a process calls itself.
public struct ProcessIdentity: Hashable, Sendable {
  /// `task_struct.comm`, if a task of the process was found.
  public let command: String?
  /// The arguments it was started with; empty if the pages that hold them are not at hand.
  public let arguments: [String]

  public init(command: String?, arguments: [String]) {
    self.command = command
    self.arguments = arguments
  }
}

extension LinuxKernel {
  /// The identity of the process that owns an address space. A task that cannot be read, or found,
  /// costs the command only.
  ///
  /// - Parameter page: gives the page of the process that holds an address.
  public func identity(
    of mm: KernelObject, page: (VirtualAddress) throws(MemoryError) -> [UInt8]
  ) throws(KernelError) -> ProcessIdentity {
    ProcessIdentity(
      command: try? owner(of: mm)?["comm"].text(), arguments: try arguments(of: mm, page))
  }

  /// `mm.owner` exists with CONFIG_MEMCG; without it the task list is searched.
  func owner(of mm: KernelObject) throws(KernelError) -> KernelObject? {
    if let owner = try mm.memberIfPresent("owner")?.dereferenced() { return owner }
    let type = try structure("task_struct")
    let first = try object("init_task", type: "task_struct")
    let tasks = try first["tasks"].listElements(of: type, link: "tasks", limit: 1 << 22)
    for task in tasks where try task["mm"].pointer() == mm.address { return task }
    return nil
  }

  private func arguments(
    of mm: KernelObject, _ page: (VirtualAddress) throws(MemoryError) -> [UInt8]
  ) throws(KernelError) -> [String] {
    let start = VirtualAddress(try mm["arg_start"].unsigned())
    let end = VirtualAddress(try mm["arg_end"].unsigned())
    let length = end.distance(from: start)
    guard length > 0, length <= 1 << 20 else { return [] }
    let text: [UInt8]
    do throws(MemoryError) {
      text = try start.read(count: Int(length), page: page)
    } catch {
      // The pages may be swapped out or filtered: the process then has no name but `comm`.
      return []
    }
    return text.split(separator: 0, omittingEmptySubsequences: false)
      .map { String(decoding: $0, as: UTF8.self) }
  }
}
