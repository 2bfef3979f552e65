import Memory
import X86

/// A module of a running kernel, with its symbols and types.
public struct KernelModule: Sendable {
  public let name: String
  private let symbols: [String: VirtualAddress]
  /// The module's own types, with the kernel's behind them.
  public let types: BTF
  /// Why there are only the kernel's, if it is so.
  public let missingTypes: KernelError?

  public func address(of symbol: String) throws(KernelError) -> VirtualAddress {
    guard let address = symbols[symbol] else { throw .noSymbol(symbol, module: name) }
    return address
  }

  public func structure(_ name: String) throws(KernelError) -> BTFType {
    guard let type = types.structure(named: name) else { throw missingTypes ?? .noType(name) }
    return type
  }

  init(
    _ module: KernelObject, named name: String, types: BTF, missingTypes: KernelError?
  ) throws(KernelError) {
    self.name = name
    self.types = types
    self.missingTypes = missingTypes
    symbols = try Self.symbols(of: module, named: name)
  }

  /// The module's ELF symbol table: `module.kallsyms` says where it is (since 4.5, 8244062ef1e54;
  /// before, the module itself), once loaded always in `core_kallsyms`.
  private static func symbols(
    of module: KernelObject, named name: String
  ) throws(KernelError) -> [String: VirtualAddress] {
    let table =
      try module.memberIfPresent("kallsyms")?.dereferenced()
      ?? module.memberIfPresent("core_kallsyms") ?? module
    let count = try table["num_symtab"].unsigned()
    guard count <= 1 << 20 else {
      throw .endless(what: "symbol table of module \(name)", at: table.address, limit: 1 << 20)
    }
    let symtab = try table["symtab"].pointer()
    let strtab = try table["strtab"].pointer()
    do throws(MemoryError) {
      let memory = module.memory
      let entries = try memory.read(symtab, count: Int(count) * ElfSymbol.size)
      let all = (0..<Int(count)).compactMap { ElfSymbol(entries, at: $0 * ElfSymbol.size) }
      let defined = all.filter { $0.value != 0 && $0.name != 0 }
      // Names are read in one piece: the table ends at most a name's length behind the last one.
      let last = defined.map(\.name).max() ?? 0
      guard last < 16 << 20 else { return [:] }
      let names = try memory.bytesAvailable(strtab, limit: Int(last) + maximumNameLength)
      var addresses: [String: VirtualAddress] = [:]
      for symbol in defined {
        guard let name = names.cString(at: Int(symbol.name), limit: maximumNameLength) else {
          continue
        }
        addresses[name] = VirtualAddress(symbol.value)
      }
      return addresses
    } catch {
      throw .unreadable(what: "symbol table of module \(name)", error)
    }
  }
}

/// KSYM_NAME_LEN (include/linux/kallsyms.h).
private let maximumNameLength = 512

/// `Elf64_Sym` of the System V ABI.
private struct ElfSymbol {
  static let size = 24
  let name: UInt32
  let value: UInt64

  init?(_ bytes: [UInt8], at offset: Int) {
    guard let name = bytes.load(UInt32.self, at: offset),
      let value = bytes.load(UInt64.self, at: offset + 8)
    else { return nil }
    self.name = name
    self.value = value
  }
}

extension LinuxKernel {
  /// The loaded module of that name, or nil when there is none (it may be built in).
  public func module(_ name: String) throws(KernelError) -> KernelModule? {
    let type = try structure("module")
    let (modules, failure) = try object("modules", type: "list_head")
      .reachableListElements(of: type, link: "list", limit: 1 << 14)
    for module in modules where (try? module["name"].text()) == name {
      return try self.module(module, named: name)
    }
    if let failure { throw failure }
    return nil
  }

  private func module(
    _ module: KernelObject, named name: String
  ) throws(KernelError) -> KernelModule {
    var types = types
    var missingTypes: KernelError?
    if debug.only != .dwarf, let own = try self.types(ofModule: module) {
      types = own
    } else if debug.only == .btf {
      missingTypes = .noSymbol("btf_modules", module: nil)
    } else {
      do throws(DebugFileError) {
        types = try debug.typesOfModule(
          name, of: vmcoreinfo.release, buildID: Self.buildID(ofModule: module), base: types)
      } catch {
        missingTypes = .noTypes(of: "module \(name)", error)
      }
    }
    return try KernelModule(module, named: name, types: types, missingTypes: missingTypes)
  }

  /// `module.build_id` (5.14, 9294523e3768, where stack traces show it), else the notes that sysfs
  /// shows.
  private static func buildID(ofModule module: KernelObject) -> String? {
    if let member = module.memberIfPresent("build_id"), let size = member.type.size, size <= 64,
      let bytes = try? member.memory.read(member.address, count: Int(size)), !bytes.isZero
    {
      return buildIDText(bytes)
    }
    guard let notes = try? module.memberIfPresent("notes_attrs")?.dereferenced() else { return nil }
    for section in noteSections(notes) {
      guard let place = try? section["private"].pointer(),
        let size = try? section["size"].unsigned(), size <= 4096,
        let bytes = try? module.memory.read(place, count: Int(size))
      else { continue }
      if let buildID = buildID(inNotes: bytes) { return buildID }
    }
    return nil
  }

  /// The `struct bin_attribute` of each section with notes: so many, since 6.14 in a list of pointers
  /// that ends with a null one.
  private static func noteSections(_ notes: KernelObject) -> [KernelObject] {
    let limit = 64
    if let count = try? notes["notes"].unsigned() {
      guard let attributes = try? notes["attrs"] else { return [] }
      return (0..<min(Int(clamping: count), limit)).compactMap { try? attributes.element($0) }
    }
    guard let list = try? notes["grp.bin_attrs"].dereferenced() else { return [] }
    var sections: [KernelObject] = []
    for index in 0..<limit {
      let entry = KernelObject(
        in: list.memory, at: list.address + UInt64(8 * index), type: list.type)
      guard let section = try? entry.dereferenced() else { break }
      sections.append(section)
    }
    return sections
  }

  /// The split BTF that the kernel keeps of a loaded module (CONFIG_DEBUG_INFO_BTF_MODULES, 5.11,
  /// 5f9ae91f7c0d), or nil if it has none.
  private func types(ofModule module: KernelObject) throws(KernelError) -> BTF? {
    guard symbol("btf_modules") != nil else { return nil }
    let (entries, failure) = try object("btf_modules", type: "list_head")
      .reachableListElements(of: try structure("btf_module"), link: "list", limit: 1 << 14)
    for entry in entries where (try? entry["module"].pointer()) == module.address {
      let btf = try entry["btf"].required()
      return try BTF.read(
        at: try btf["data"].pointer(), size: try btf["data_size"].unsigned(),
        of: "module " + (try module["name"].text()), in: memory, base: types)
    }
    if let failure { throw failure }
    return nil
  }
}

extension VirtualMemory {
  /// The bytes from `address` on, up to `limit` or to the first page that is not at hand.
  public func bytesAvailable(_ address: VirtualAddress, limit: Int) throws(MemoryError) -> [UInt8] {
    var bytes = try read(address, count: min(limit, Int(pageSize) - address.pageOffset))
    while bytes.count < limit {
      let next = address + UInt64(bytes.count)
      do throws(MemoryError) {
        bytes += try read(next, count: min(limit - bytes.count, Int(pageSize)))
      } catch {
        break
      }
    }
    return bytes
  }
}
