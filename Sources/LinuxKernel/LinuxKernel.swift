import Memory
import X86

/// A Linux kernel in a physical memory: its address space, symbols and types, taken from that memory
/// as far as it has them.
///
/// The way in is VMCOREINFO: from it the page tables, then kallsyms (exported there since 6.0, else
/// found in the kernel's image), then BTF of the kernel and, by its list `btf_modules`, of each
/// module. Where there is no BTF, types come from files with debug information.
public struct LinuxKernel: Sendable {
  public let vmcoreinfo: Vmcoreinfo
  /// The kernel's own address space.
  public private(set) var memory: VirtualMemory
  public let types: BTF
  /// Where types come from that the memory does not have.
  let debug: DebugInformation
  private let symbols: Kallsyms
  /// What is looked up in every host, found in one pass over the table.
  private let frequentSymbols: [String: VirtualAddress]

  private static let frequentNames: Set = [
    "__start_BTF", "__start_notes", "__stop_BTF", "__stop_notes", "btf_modules",
    "empty_zero_page", "init_task", "kvm_uret_msrs_list", "kvm_x86_ops", "modules",
    "nr_swapfiles", "nr_zswap_trees", "shmem_aops", "swap_info", "swapper_spaces", "vm_list",
    "vmemmap_base", "vmx_vmexit", "zswap_trees",
  ]

  /// - Parameter debug: files with debug information.
  public init(
    _ vmcoreinfo: Vmcoreinfo, in physical: any PhysicalMemory,
    debug: DebugInformation = DebugInformation()
  ) throws(KernelError) {
    self.vmcoreinfo = vmcoreinfo
    self.debug = debug
    memory = try VirtualMemory(ofKernel: vmcoreinfo, in: physical)
    do throws(KallsymsError) {
      symbols = try Kallsyms(vmcoreinfo, in: memory)
    } catch {
      throw .symbols(error, release: vmcoreinfo.release)
    }
    frequentSymbols = symbols.addresses(of: Self.frequentNames)
    let buildID = vmcoreinfo.buildID ?? Self.buildID(frequentSymbols, in: memory)
    do throws(DebugFileError) {
      try debug.checkGivenKernel(vmcoreinfo.release, buildID: buildID)
    } catch {
      throw .givenFile(error)
    }
    if debug.only != .dwarf,
      let own = try Self.ownTypes(vmcoreinfo, frequentSymbols, in: memory)
    {
      types = own
    } else if debug.only == .btf {
      throw .noSymbol("__start_BTF", module: nil)
    } else {
      do throws(DebugFileError) {
        types = try debug.typesOfKernel(vmcoreinfo.release, buildID: buildID)
      } catch {
        throw .noTypes(of: "kernel \(vmcoreinfo.release)", error)
      }
    }
  }

  /// The kernel's BTF: by its symbols, else by its form in the kernel's image.
  private static func ownTypes(
    _ vmcoreinfo: Vmcoreinfo, _ symbols: [String: VirtualAddress], in memory: VirtualMemory
  ) throws(KernelError) -> BTF? {
    guard let start = symbols["__start_BTF"], let stop = symbols["__stop_BTF"] else {
      return KernelImage(vmcoreinfo, in: memory)?.types()
    }
    return try BTF.read(
      at: start, size: stop.distance(from: start), of: "the kernel", in: memory, base: nil)
  }

  /// The build-id in the kernel's notes, for kernels whose VMCOREINFO has none (before 5.9).
  private static func buildID(
    _ symbols: [String: VirtualAddress], in memory: VirtualMemory
  ) -> String? {
    guard let start = symbols["__start_notes"], let stop = symbols["__stop_notes"],
      let size = Int(exactly: stop.distance(from: start)), size <= 64 << 10,
      let notes = try? memory.read(start, count: size)
    else { return nil }
    return buildID(inNotes: notes)
  }

  /// The build-id among ELF notes (`NT_GNU_BUILD_ID`).
  static func buildID(inNotes notes: [UInt8]) -> String? {
    var offset = 0
    // Elf64_Nhdr: n_namesz, n_descsz, n_type, four bytes each; name and content padded to four.
    while let nameSize: UInt32 = notes.load(at: offset),
      let size: UInt32 = notes.load(at: offset + 4), let type: UInt32 = notes.load(at: offset + 8),
      Int(nameSize) <= notes.count, Int(size) <= notes.count
    {
      let content = offset + 12 + (Int(nameSize) + 3) & ~3
      guard content + Int(size) <= notes.count else { return nil }
      if type == 3, notes[(offset + 12)..<content].starts(with: Array("GNU\0".utf8)) {
        return buildIDText(notes[content..<(content + Int(size))])
      }
      offset = content + (Int(size) + 3) & ~3
    }
    return nil
  }

  /// The same kernel seen through another memory that holds it.
  public func seen(through physical: any PhysicalMemory) -> LinuxKernel {
    var copy = self
    copy.memory = VirtualMemory(physical: physical, tables: memory.tables)
    return copy
  }

  /// The address of a symbol, or nil if the kernel has none of that name.
  public func symbol(_ name: String) -> VirtualAddress? {
    Self.frequentNames.contains(name) ? frequentSymbols[name] : symbols.address(of: name)
  }

  public func structure(_ name: String) throws(KernelError) -> BTFType {
    guard let type = types.structure(named: name) else { throw .noType(name) }
    return type
  }

  public func address(of symbol: String) throws(KernelError) -> VirtualAddress {
    guard let address = self.symbol(symbol) else {
      throw .noSymbol(symbol, module: nil)
    }
    return address
  }

  /// The object of type `type` that a symbol of the kernel names.
  public func object(_ symbol: String, type: String) throws(KernelError) -> KernelObject {
    KernelObject(
      in: memory, at: try address(of: symbol), type: try structure(type), path: symbol)
  }

  /// The page tables of a process, from its `mm_struct`.
  public func pageTables(of mm: KernelObject) throws(KernelError) -> PageTables {
    let pgd = try mm["pgd"].pointer()
    do throws(MemoryError) {
      return PageTables(
        root: try memory.translate(pgd), levels: memory.tables.levels,
        encryptionMask: memory.tables.encryptionMask)
    } catch {
      throw .unreadable(what: "mm_struct.pgd", error)
    }
  }
}

extension BTF {
  /// The BTF blob at an address. Bounded: the largest kernels have 10 MiB of it.
  static func read(
    at address: VirtualAddress, size: UInt64, of owner: String, in memory: VirtualMemory, base: BTF?
  ) throws(KernelError) -> BTF {
    guard size <= 64 << 20 else {
      throw .unexpectedKind(type: "the BTF of \(owner)", needed: "of a size below 64 MiB")
    }
    let bytes: [UInt8]
    do throws(MemoryError) {
      bytes = try memory.read(address, count: Int(size))
    } catch {
      throw .unreadable(what: "the BTF of \(owner)", error)
    }
    do throws(BTFError) {
      return try BTF(bytes, base: base)
    } catch {
      throw .types(error, of: owner)
    }
  }
}
