import Memory
import X86

/// Tells the names of open files as /proc shows them: `d_path` of fs/d_path.c, up to the root of all
/// mounts that the file can be reached from.
struct FileNames {
  private let mount: BTFType
  /// `d_dname` of dentries that are in no directory: memfd and shared memory (`simple_dname`), and
  /// anonymous inodes.
  private let simpleName: VirtualAddress?
  private let anonymousInodeName: VirtualAddress?

  /// As much as the kernel itself can tell: PATH_MAX.
  private static let maximumLength = 4096
  private static let maximumMounts = 256

  init(_ kernel: LinuxKernel) throws(KernelError) {
    mount = try kernel.structure("mount")
    simpleName = kernel.symbol("simple_dname")
    anonymousInodeName = kernel.symbol("anon_inodefs_dname")
  }

  /// The name of a `struct file`.
  func name(of file: KernelObject) throws(KernelError) -> String {
    let dentry = try file["f_path.dentry"].required()
    if let operations = try dentry["d_op"].dereferenced() {
      let name = try operations["d_dname"].pointer()
      if name == simpleName { return "/" + (try component(dentry)) + " (deleted)" }
      if name == anonymousInodeName { return "anon_inode:" + (try component(dentry)) }
    }
    var text = try path(of: dentry, below: try file["f_path.mnt"].required())
    if try isUnlinked(dentry) { text += " (deleted)" }
    return text
  }

  private func path(
    of dentry: KernelObject, below mounted: KernelObject
  ) throws(KernelError) -> String {
    var dentry = dentry
    var mounted = mounted
    var components: [String] = []
    var length = 0
    var mounts = 0
    while true {
      let parent = try dentry["d_parent"].required()
      if try dentry.address == mounted["mnt_root"].pointer() || dentry.address == parent.address {
        // The root of a file system: the way goes on where it is mounted.
        let mount = try mounted.container(of: self.mount, member: "mnt")
        let parentMount = try mount["mnt_parent"].required()
        if parentMount.address == mount.address { break }
        dentry = try mount["mnt_mountpoint"].required()
        mounted = try parentMount["mnt"]
        mounts += 1
      } else {
        let name = try component(dentry)
        components.append(name)
        length += name.utf8.count + 1
        dentry = parent
      }
      guard length <= Self.maximumLength, components.count <= Self.maximumLength,
        mounts <= Self.maximumMounts
      else {
        throw .endless(
          what: "the path of a file", at: dentry.address, limit: Self.maximumLength)
      }
    }
    return components.isEmpty ? "/" : components.reversed().reduce("") { $0 + "/" + $1 }
  }

  /// `d_unlinked`: not hashed, and not the root of a file system.
  private func isUnlinked(_ dentry: KernelObject) throws(KernelError) -> Bool {
    guard try dentry["d_parent"].pointer() != dentry.address else { return false }
    return try dentry["d_hash.pprev"].pointer().rawValue == 0
  }

  private func component(_ dentry: KernelObject) throws(KernelError) -> String {
    let name = try dentry["d_name.name"].pointer()
    let length = try dentry["d_name.len"].unsigned()
    // NAME_MAX is 255; names of memfds and anonymous inodes are not longer.
    guard length > 0, length <= 255 else {
      throw .unexpectedKind(type: "dentry.d_name", needed: "a name: its length is \(length)")
    }
    do throws(MemoryError) {
      return String(
        decoding: try dentry.memory.read(name, count: Int(length)), as: UTF8.self)
    } catch {
      throw .unreadable(what: "dentry.d_name", error)
    }
  }
}
