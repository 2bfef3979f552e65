import Glibc
import Memory

/// Where the types of a kernel and its modules may come from.
public enum TypeSource: String, Hashable, Sendable, CaseIterable {
  /// What the kernel keeps in memory.
  case btf
  /// Files with debug information.
  case dwarf
}

/// The files with debug information that a kernel's types are taken from where its memory has none.
public struct DebugInformation: Sendable {
  /// The only source to be used; nil for BTF, and DWARF where there is none.
  public var only: TypeSource?
  /// The kernel's own file. Nil: it is searched for like those of modules.
  public var vmlinux: String?
  /// Folders in which debug packages lie, installed or unpacked.
  public var folders: [String]

  /// Where distributions install debug packages.
  public static let usualFolders = ["/usr/lib/debug"]

  public init(
    only: TypeSource? = nil, vmlinux: String? = nil, folders: [String] = usualFolders
  ) {
    self.only = only
    self.vmlinux = vmlinux
    self.folders = folders
  }

  /// The types of the kernel of that build.
  func typesOfKernel(_ release: String, buildID: String?) throws(DebugFileError) -> BTF {
    let owner = "kernel \(release)"
    guard let buildID else { throw .unknownBuild(owner: owner) }
    if let given = try givenKernel(owner, buildID) { return try given.types(base: nil) }
    return try file(of: owner, release, buildID, Self.placesOfKernel(release)).types(base: nil)
  }

  /// Fails if the user gave another kernel's file, even if nothing of it is needed.
  func checkGivenKernel(_ release: String, buildID: String?) throws(DebugFileError) {
    if let buildID { _ = try givenKernel("kernel \(release)", buildID) }
  }

  private func givenKernel(
    _ owner: String, _ buildID: String
  ) throws(DebugFileError) -> DebugFile? {
    guard let vmlinux else { return nil }
    let file = try DebugFile(vmlinux)
    guard file.buildID == buildID else {
      throw .mismatch(path: vmlinux, owner: owner, found: file.buildID, wanted: buildID)
    }
    return file
  }

  /// The types of the module of that build.
  func typesOfModule(
    _ name: String, of release: String, buildID: String?, base: BTF
  ) throws(DebugFileError) -> BTF {
    let owner = "module \(name)"
    guard let buildID else { throw .unknownBuild(owner: owner) }
    return try file(of: owner, release, buildID, Self.placesOfModule(name, release))
      .types(base: base)
  }

  // MARK: Places

  /// The first file of the build, by its build-id or by its usual place in a debug package.
  private func file(
    of owner: String, _ release: String, _ buildID: String, _ places: [String]
  ) throws(DebugFileError) -> DebugFile {
    let byBuild = ".build-id/\(buildID.prefix(2))/\(buildID.dropFirst(2)).debug"
    var failure: DebugFileError?
    for folder in folders {
      for place in ["", "usr/lib/debug/"].map({ $0 + byBuild }) + places {
        let path = folder + "/" + place
        guard unsafe access(path, R_OK) == 0 else { continue }
        do throws(DebugFileError) {
          let file = try DebugFile(path)
          guard file.buildID == buildID else {
            throw .mismatch(path: path, owner: owner, found: file.buildID, wanted: buildID)
          }
          guard file.hasDWARF else { throw .noDWARF(path: path) }
          return file
        } catch {
          failure = failure ?? error
        }
      }
    }
    throw failure
      ?? .notFound(
        owner: owner, buildID: buildID, folders: folders, package: Self.package(release))
  }

  /// Debian and Ubuntu: `boot`, RHEL: `lib/modules`, SUSE: both, with `.debug` behind the names. A
  /// package unpacked into a folder has `usr/lib/debug` before that.
  private static func placesOfKernel(_ release: String) -> [String] {
    let names = [
      "boot/vmlinux-\(release)", "lib/modules/\(release)/vmlinux",
      "usr/lib/modules/\(release)/vmlinux",
    ]
    return
      (["", "usr/lib/debug/"].flatMap { prefix in names.map { prefix + $0 } }
      + ["vmlinux-\(release)", "vmlinux"])
      .flatMap { [$0, $0 + ".debug"] }
  }

  /// The modules that are asked for are those of KVM, and lie in one folder.
  private static func placesOfModule(_ name: String, _ release: String) -> [String] {
    let folder = "lib/modules/\(release)/kernel/arch/x86/kvm/"
    let folders = ["", "usr/", "usr/lib/debug/", "usr/lib/debug/usr/"].map { $0 + folder } + [""]
    let names = Set([name, name.replacing("_", with: "-")]).sorted()
    let endings = [
      ".ko.debug", ".ko", ".ko.xz", ".ko.zst", ".ko.gz", ".ko.debug.xz", ".ko.debug.zst",
    ]
    return folders.flatMap { folder in
      names.flatMap { name in endings.map { folder + name + $0 } }
    }
  }

  /// The package that has the files, by the release's form.
  static func package(_ release: String) -> String {
    if release.contains(".el") || release.contains(".fc") { return "kernel-debuginfo-\(release)" }
    if release.hasSuffix("-generic") { return "linux-image-unsigned-\(release)-dbgsym" }
    if release.hasSuffix("-default") { return "kernel-default-debuginfo" }
    if release.hasSuffix("-amd64") { return "linux-image-\(release)-dbg" }
    return "the debug package of kernel \(release)"
  }
}
