import Memory

/// A Linux kernel in a memory could not be read as far as was needed.
public enum KernelError: Error, Sendable {
  /// Nothing in the dump says where the kernel is.
  case noVmcoreinfo
  /// VMCOREINFO lacks an entry without which the kernel cannot be found.
  case vmcoreinfoLacks(key: String, release: String)
  /// The page tables that VMCOREINFO names are not those of the kernel that it describes.
  case pageTablesUnverified(release: String, root: PhysicalAddress, why: String)
  /// The kernel's symbol table could not be decoded.
  case symbols(KallsymsError, release: String)
  /// The kernel does not have this symbol.
  case noSymbol(String, module: String?)
  /// A type description could not be decoded.
  case types(BTFError, of: String)
  /// Neither the dump nor a file describes the types of the kernel or a module.
  case noTypes(of: String, DebugFileError)
  /// The file that the user gave as the kernel's is not.
  case givenFile(DebugFileError)
  /// No type description knows this structure.
  case noType(String)
  /// A structure has none of these members.
  case noMember(type: String, anyOf: [String])
  /// An object is not of the kind that was needed there.
  case unexpectedKind(type: String, needed: String)
  /// Memory of an object is not at hand.
  case unreadable(what: String, MemoryError)
  /// A list, tree or table of the kernel is longer than can be, or runs in a circle.
  case endless(what: String, at: VirtualAddress, limit: Int)
}

extension KernelError: Diagnosis {
  public var name: String {
    switch self {
    case .noVmcoreinfo: "kernel.no-vmcoreinfo"
    case .vmcoreinfoLacks: "kernel.vmcoreinfo-incomplete"
    case .pageTablesUnverified: "kernel.page-tables-unverified"
    case .symbols: "kernel.symbols"
    case .noSymbol: "kernel.no-symbol"
    case .types: "kernel.types"
    case .noTypes: "kernel.no-types"
    case .givenFile: "kernel.vmlinux"
    case .noType: "kernel.no-type"
    case .noMember: "kernel.no-member"
    case .unexpectedKind: "kernel.unexpected-kind"
    case .unreadable: "kernel.unreadable"
    case .endless: "kernel.endless"
    }
  }

  public var problem: String {
    switch self {
    case .noVmcoreinfo:
      "no VMCOREINFO of a Linux kernel in the dump"
    case .vmcoreinfoLacks(let key, let release):
      "VMCOREINFO of kernel \(release) has no entry \(key)"
    case .pageTablesUnverified(let release, let root, let why):
      "the page tables of kernel \(release) at physical address \(root) do not lead to it: \(why)"
    case .symbols(let error, let release):
      "the symbol table of kernel \(release) cannot be read: \(error.problem)"
    case .noSymbol(let symbol, let module):
      "no symbol \(symbol) in " + (module.map { "module \($0)" } ?? "the kernel")
    case .types(let error, let owner):
      "the type information (BTF) of \(owner) cannot be read: \(error.problem)"
    case .noTypes(let owner, let error):
      "no types of \(owner) are at hand: \(error.problem)"
    case .givenFile(let error): error.problem
    case .noType(let type):
      "the kernel's type information has no struct \(type)"
    case .noMember(let type, let members):
      "struct \(type) has no member \(members.joined(separator: " or "))"
    case .unexpectedKind(let type, let needed):
      "\(type) is not \(needed)"
    case .unreadable(let what, let error):
      "\(what) cannot be read: \(error)"
    case .endless(let what, let address, let limit):
      "\(what), at \(address), does not end after \(limit) elements: damaged or in a circle"
    }
  }

  public var advice: String? {
    switch self {
    case .noVmcoreinfo:
      "a host dump made by kdump carries it; for one made by QEMU, start the host with"
        + " '-device vmcoreinfo'"
    case .vmcoreinfoLacks:
      "the note may be cut off, or be of a kernel for another processor than x86-64"
    case .pageTablesUnverified:
      "the VMCOREINFO may be a stale copy, or the dump damaged"
    case .symbols(let error, _): error.advice
    case .types(let error, _): error.advice
    case .noTypes(_, let error), .givenFile(let error): error.advice
    case .noSymbol, .noType:
      "the kernel may have been built without CONFIG_KALLSYMS_ALL or CONFIG_DEBUG_INFO_BTF"
    case .noMember, .unexpectedKind:
      "this kernel's layout is new to this program: please report it, with 'vmcore-split excerpt'"
    case .unreadable, .endless: nil
    }
  }
}
