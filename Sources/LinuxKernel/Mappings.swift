import Memory

/// A part of a process's address space: a `vm_area_struct`.
public struct ProcessMapping: Sendable {
  public let start: VirtualAddress
  /// The first address behind it.
  public let end: VirtualAddress
  public let flags: Flags
  /// vm_pgoff: where in its file the mapping starts, in pages.
  public let filePage: UInt64
  /// What its pages are filled from when they are first touched.
  public let backing: Backing

  public var size: UInt64 { end.distance(from: start) }

  /// Members of vm_flags (include/linux/mm.h), the same since Linux 2.6.
  public struct Flags: OptionSet, Hashable, Sendable {
    public let rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }

    public static let readable = Flags(rawValue: 0x1)
    public static let writable = Flags(rawValue: 0x2)
    public static let executable = Flags(rawValue: 0x4)
    public static let shared = Flags(rawValue: 0x8)
    /// VM_PFNMAP: frames that have no descriptor.
    public static let rawFrames = Flags(rawValue: 0x400)
    /// VM_IO: a device's memory.
    public static let device = Flags(rawValue: 0x4000)
    /// VM_HUGETLB: pages of hugetlbfs.
    public static let hugetlb = Flags(rawValue: 0x40_0000)
  }

  public enum Backing: Sendable {
    /// Nothing: a page that was never touched is zero.
    case anonymous
    case file(MappedFile)
    /// The kernel's own copy of code that it lends to processes: the vDSO.
    case kernel(VirtualAddress)
    /// A driver or the kernel fills the pages in its own way.
    case special
  }

  /// A device's memory is not RAM: no dump has it.
  public var hasMemory: Bool { flags.isDisjoint(with: [.rawFrames, .device]) }

  public var file: MappedFile? {
    if case .file(let file) = backing { file } else { nil }
  }
}

/// The file of a mapping.
public struct MappedFile: Sendable {
  /// As /proc shows it, with ` (deleted)` behind what has no name any more. Nil if it cannot be
  /// read. Whoever made the file chose the name: it may hold anything.
  public let path: String?
  /// The file's pages: its `address_space`.
  public let pages: KernelObject
}

extension LinuxKernel {
  /// More than any process has: `vm.max_map_count` is 65,530 unless raised.
  private static let mappingLimit = 1 << 20

  /// The mappings of a process, ascending, and what could not be read of them.
  public func mappings(
    of mm: KernelObject
  ) throws(KernelError) -> (mappings: [ProcessMapping], failures: [KernelError]) {
    var (areas, failures) = try areas(of: mm)
    let vdso = VDSO(of: mm)
    let names = try? FileNames(self)
    var files: [VirtualAddress: MappedFile] = [:]
    var mappings: [ProcessMapping] = []
    for area in areas {
      do throws(KernelError) {
        let start = VirtualAddress(try area["vm_start"].unsigned())
        let end = VirtualAddress(try area["vm_end"].unsigned())
        guard start < end, start.isPageAligned, end.isPageAligned,
          mappings.last.map({ $0.end <= start }) ?? true
        else {
          throw .unexpectedKind(type: "vm_area_struct", needed: "a mapping behind the last one")
        }
        var backing = ProcessMapping.Backing.anonymous
        if let file = try area["vm_file"].dereferenced() {
          if files[file.address] == nil {
            files[file.address] = MappedFile(
              path: try? names?.name(of: file), pages: try file["f_mapping"].required())
          }
          backing = files[file.address].map { .file($0) } ?? .special
        } else if start == vdso?.start, let image = vdso?.image {
          backing = .kernel(image)
        } else if try area["vm_ops"].pointer().rawValue != 0 {
          backing = .special
        }
        mappings.append(
          ProcessMapping(
            start: start, end: end,
            flags: .init(rawValue: try area.member("vm_flags", "__vm_flags").unsigned()),
            filePage: try area["vm_pgoff"].unsigned(), backing: backing))
      } catch {
        if failures.count < 16 { failures.append(error) }
      }
    }
    return (mappings, failures)
  }

  /// Every `vm_area_struct` in the order of addresses: in a maple tree since 6.1 (d4af56c5c7c6),
  /// before that in a list (removed by 763ecb035029).
  private func areas(
    of mm: KernelObject
  ) throws(KernelError) -> (areas: [KernelObject], failures: [KernelError]) {
    let type = try structure("vm_area_struct")
    if let tree = mm.memberIfPresent("mm_mt") {
      let entries = try MapleTree(tree).entries(limit: Self.mappingLimit)
      return (
        entries.pointers.map { KernelObject(in: mm.memory, at: $0, type: type) },
        entries.failures
      )
    }
    var areas: [KernelObject] = []
    var last = VirtualAddress(0)
    do throws(KernelError) {
      var next = try mm["mmap"].dereferenced()
      while let area = next {
        // Addresses rise, so a list that runs in a circle is noticed at once.
        let start = VirtualAddress(try area["vm_start"].unsigned())
        guard areas.count < Self.mappingLimit, areas.isEmpty || start > last else {
          throw .endless(what: "list mm_struct.mmap", at: mm.address, limit: Self.mappingLimit)
        }
        areas.append(area)
        last = start
        next = try area["vm_next"].dereferenced()
      }
    } catch {
      return (areas, [error])
    }
    return (areas, [])
  }
}

/// Where the kernel mapped its vDSO, and its own copy of it (arch/x86/entry/vdso/vma.c).
private struct VDSO {
  let start: VirtualAddress
  let image: VirtualAddress

  init?(of mm: KernelObject) {
    guard let context = try? mm["context"], let start = try? context["vdso"].unsigned(),
      let data = try? context["vdso_image"].dereferenced()?["data"].pointer()
    else { return nil }
    self.start = VirtualAddress(start)
    image = data
  }
}
