import Memory

/// The kernel's symbol table could not be read.
public enum KallsymsError: Error, Hashable, Sendable {
  /// VMCOREINFO does not say where a table lies (kernels say so since 6.0), and the kernel's image
  /// has nothing of the tables' structure.
  case notFound(table: String, release: String)
  /// A table is not in the memory at hand.
  case unreadable(table: String, VirtualAddress, MemoryError)
  /// `kallsyms_num_syms` cannot be the number of a kernel's symbols.
  case implausibleCount(UInt32, VirtualAddress)
  /// The tokens that names are made of are not in order: entry `index` of `kallsyms_token_index`.
  case malformedToken(index: Int, VirtualAddress)
  /// Name number `symbol` cannot be one, in either encoding of its length.
  case malformedName(symbol: Int, VirtualAddress)
  /// Under no encoding do the symbols lie where VMCOREINFO says. `agreed` of the `compared` names
  /// that both know do under the best one.
  case disagreesWithVmcoreinfo(agreed: Int, compared: Int, release: String)
}

extension KallsymsError: Diagnosis {
  public var name: String {
    switch self {
    case .notFound: "kallsyms.not-found"
    case .unreadable: "kallsyms.unreadable"
    case .implausibleCount: "kallsyms.implausible-count"
    case .malformedToken: "kallsyms.malformed-token"
    case .malformedName: "kallsyms.malformed-name"
    case .disagreesWithVmcoreinfo: "kallsyms.disagrees-with-vmcoreinfo"
    }
  }

  public var problem: String {
    switch self {
    case .notFound(let table, let release):
      "the VMCOREINFO of kernel \(release) does not say where \(table) lies, and no symbol table was "
        + "found in the kernel's image"
    case .unreadable(let table, let address, let error):
      "\(table) of the kernel cannot be read at \(address): \(error)"
    case .implausibleCount(let count, let address):
      "kallsyms_num_syms at \(address) is \(count), which is no number of kernel symbols"
    case .malformedToken(let index, let address):
      "entry \(index) of kallsyms_token_index, at \(address), does not fit kallsyms_token_table"
    case .malformedName(let symbol, let address):
      "name number \(symbol) of kallsyms_names, at \(address), is not one"
    case .disagreesWithVmcoreinfo(let agreed, let compared, let release):
      "the symbol table of kernel \(release) has an unknown form: under the best reading of it "
        + "\(agreed) of \(compared) symbols lie where VMCOREINFO says"
    }
  }

  public var advice: String? {
    switch self {
    case .notFound:
      "the kernel may have been built without CONFIG_KALLSYMS, or the dump lacks parts of its image"
    case .unreadable:
      "check that the dump is complete and was not filtered beyond makedumpfile's -d 31"
    case .implausibleCount, .malformedToken, .malformedName:
      "the kernel's memory is damaged, or the dump's KASLR offset or page tables are wrong"
    case .disagreesWithVmcoreinfo:
      "the kernel is newer than this program knows, or its memory is damaged"
    }
  }
}
