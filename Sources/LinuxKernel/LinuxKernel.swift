import Memory
import X86

/// A Linux kernel in a physical memory: its address space, symbols and types, all taken from that
/// memory alone.
///
/// The way in is VMCOREINFO: from it the page tables, then kallsyms (exported there since 6.0, else
/// found in the kernel's image), then BTF of the kernel and, by its list `btf_modules`, of each
/// module.
public struct LinuxKernel: Sendable {
  public let vmcoreinfo: Vmcoreinfo
  /// The kernel's own address space.
  public private(set) var memory: VirtualMemory
  public let types: BTF
  private let symbols: Kallsyms
  /// What is looked up in every host, found in one pass over the table.
  private let frequentSymbols: [String: VirtualAddress]

  private static let frequentNames: Set = [
    "__start_BTF", "__stop_BTF", "btf_modules", "empty_zero_page", "init_task",
    "kvm_uret_msrs_list", "kvm_x86_ops", "modules", "nr_swapfiles", "shmem_aops", "vm_list",
    "vmemmap_base", "vmx_vmexit",
  ]

  public init(_ vmcoreinfo: Vmcoreinfo, in physical: any PhysicalMemory) throws(KernelError) {
    self.vmcoreinfo = vmcoreinfo
    memory = try VirtualMemory(ofKernel: vmcoreinfo, in: physical)
    do throws(KallsymsError) {
      symbols = try Kallsyms(vmcoreinfo, in: memory)
    } catch {
      throw .symbols(error, release: vmcoreinfo.release)
    }
    frequentSymbols = symbols.addresses(of: Self.frequentNames)
    if let start = frequentSymbols["__start_BTF"], let stop = frequentSymbols["__stop_BTF"] {
      types = try BTF.read(
        at: start, size: stop.distance(from: start), of: "the kernel", in: memory, base: nil)
    } else if let found = KernelImage(vmcoreinfo, in: memory)?.types() {
      types = found
    } else {
      throw .noSymbol("__start_BTF", module: nil)
    }
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
