import Memory
import X86

/// A process of the dumped kernel: what the kernel's own core dumper would tell of it, besides the
/// contents of its memory (fs/binfmt_elf.c).
public struct UserProcess: Sendable {
  /// The process's number on the host, whatever it is in the process's own namespace.
  public let id: Int32
  public let identity: ProcessIdentity
  public let tables: PageTables
  /// Ascending.
  public let mappings: [ProcessMapping]
  /// The leader of the thread group first, if it is at hand.
  public var threads: [ProcessThread]
  /// `mm_struct.saved_auxv`: pairs of type and value, up to the one of type AT_NULL.
  public let auxiliaryVector: [UInt64]
  public let credentials: Credentials
  /// What of the process could not be read.
  public let failures: [KernelError]

  /// What the kernel keeps of a process besides. What cannot be read is 0.
  public struct Credentials: Hashable, Sendable {
    public var parent: Int32 = 0
    public var processGroup: Int32 = 0
    public var session: Int32 = 0
    public var user: UInt32 = 0
    public var group: UInt32 = 0
    /// From -20 to 19.
    public var nice: Int8 = 0
    /// `task_struct.flags`.
    public var flags: UInt64 = 0
    /// `task_struct.__state`: 0 for one that runs.
    public var state: UInt64 = 0
  }
}

extension LinuxKernel {
  /// The process that owns an address space.
  ///
  /// - Parameter page: gives the page of the process that holds an address.
  public func process(
    of mm: KernelObject, page: (VirtualAddress) throws(MemoryError) -> [UInt8]
  ) throws(KernelError) -> UserProcess {
    guard let owner = try owner(of: mm), let leader = try owner["group_leader"].dereferenced()
    else { throw .unexpectedKind(type: "mm_struct.owner", needed: "a task") }
    let (mappings, mappingFailures) = try mappings(of: mm)
    var failures = mappingFailures
    var threads: [ProcessThread] = []
    do throws(KernelError) {
      let (found, threadFailures) = try self.threads(of: leader)
      threads = found
      failures += threadFailures
    } catch {
      failures.append(error)
    }
    let vector: [UInt64]
    do throws(KernelError) {
      vector = try auxiliaryVector(of: mm)
    } catch {
      vector = []
      failures.append(error)
    }
    return UserProcess(
      id: Int32(truncatingIfNeeded: try leader["tgid"].signed()),
      identity: try identity(of: mm, page: page),
      tables: try pageTables(of: mm), mappings: mappings, threads: threads,
      auxiliaryVector: vector, credentials: credentials(of: leader), failures: failures)
  }

  private func auxiliaryVector(of mm: KernelObject) throws(KernelError) -> [UInt64] {
    let array = try mm["saved_auxv"]
    var vector: [UInt64] = []
    for index in stride(from: 0, to: Int(clamping: array.type.elementCount ?? 0) & ~1, by: 2) {
      let type = try array.element(index).unsigned()
      vector += [type, try array.element(index + 1).unsigned()]
      // The kernel leaves room for vectors of 30 entries or so; a damaged type tells any number.
      if type == 0 || vector.count > 256 { break }
    }
    return vector
  }

  private func credentials(of leader: KernelObject) -> UserProcess.Credentials {
    var credentials = UserProcess.Credentials()
    func number(_ kind: String) -> Int32? {
      guard let index = types.enumerator(named: kind),
        let pid = try? leader["signal"].required()["pids"].element(Int(index)).required(),
        let number = try? pid["numbers"].element(0)["nr"].signed()
      else { return nil }
      return Int32(truncatingIfNeeded: number)
    }
    func value(_ path: String) -> UInt64? { try? leader[path].unsigned() }
    let cred = try? leader["cred"].required()
    credentials.parent =
      (try? leader["real_parent"].required()["tgid"].signed())
      .map { Int32(truncatingIfNeeded: $0) } ?? 0
    credentials.processGroup = number("PIDTYPE_PGID") ?? 0
    credentials.session = number("PIDTYPE_SID") ?? 0
    credentials.user = UInt32(truncatingIfNeeded: (try? cred?["uid.val"].unsigned()) ?? 0)
    credentials.group = UInt32(truncatingIfNeeded: (try? cred?["gid.val"].unsigned()) ?? 0)
    // Nice 0 is priority 120 (include/linux/sched/prio.h).
    credentials.nice = Int8(clamping: Int64(clamping: value("static_prio") ?? 120) - 120)
    credentials.flags = value("flags") ?? 0
    credentials.state = (try? leader.member("__state", "state").unsigned()) ?? 0
    return credentials
  }
}
