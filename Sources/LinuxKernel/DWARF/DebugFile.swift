import CElfutils
import Memory

/// An ELF file with DWARF: vmlinux or a module as it was built, or what was split off from it. Files
/// compressed with gzip, xz or zstd are unpacked in memory, as are compressed sections.
///
/// Read by libdwfl, because modules are relocatable files: before their relocation DWARF's references
/// to strings and abbreviations are all zero.
@safe final class DebugFile {
  let path: String
  /// The build-id in hexadecimal digits, if the file has one.
  let buildID: String?
  private let session: OpaquePointer
  private let dwarf: OpaquePointer?

  init(_ path: String) throws(DebugFileError) {
    guard let session = unsafe celfutils_begin_offline() else {
      throw .unreadable(path: path, reason: Self.lastMessage)
    }
    guard let module = unsafe dwfl_report_offline(session, path, path, -1) else {
      let reason = Self.lastMessage
      unsafe dwfl_end(session)
      throw .unreadable(path: path, reason: reason)
    }
    _ = unsafe dwfl_report_end(session, nil, nil)
    var bits: UnsafePointer<UInt8>?
    var address: GElf_Addr = 0
    let count = unsafe dwfl_module_build_id(module, &bits, &address)
    buildID =
      unsafe count > 0
      ? bits.map { unsafe buildIDText(UnsafeBufferPointer(start: $0, count: Int(count))) } : nil
    var bias: Dwarf_Addr = 0
    unsafe dwarf = dwfl_module_getdwarf(module, &bias)
    self.path = path
    unsafe self.session = session
  }

  var hasDWARF: Bool { unsafe dwarf != nil }

  deinit { unsafe dwfl_end(session) }

  private static var lastMessage: String {
    unsafe dwfl_errmsg(-1).map { unsafe String(cString: $0) } ?? "no ELF file"
  }

  /// All named structures, unions and all enumerations of the file, as BTF.
  ///
  /// - Parameter base: types that are looked up where the file has none of a name.
  func types(base: BTF?) throws(DebugFileError) -> BTF {
    guard let dwarf = unsafe dwarf else { throw .noDWARF(path: path) }
    var collector = DWARFCollector(path: path)
    var unit: OpaquePointer?
    while true {
      var die = unsafe Dwarf_Die()
      let status = unsafe dwarf_get_units(dwarf, unit, &unit, nil, nil, &die, nil)
      guard status >= 0 else {
        throw .malformed(path: path, what: unsafe String(cString: dwarf_errmsg(-1)))
      }
      guard status == 0 else { break }
      try unsafe collector.collect(die)
    }
    guard !collector.isEmpty else { throw .noDWARF(path: path) }
    do throws(BTFError) {
      return try BTF(collector.btf(base: base), base: base)
    } catch {
      throw .malformed(path: path, what: error.problem)
    }
  }
}

/// The digits of a build-id.
func buildIDText(_ bytes: some Sequence<UInt8>) -> String {
  bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
}
