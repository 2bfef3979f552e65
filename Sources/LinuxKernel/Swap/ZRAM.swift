import Compression
import Memory

/// A zram device (drivers/block/zram/zram_drv.c): a block device that keeps its pages compressed in the
/// kernel's memory.
struct ZRAM: Sendable {
  private let table: VirtualAddress
  private let entry: BTFType
  /// Pages of the device.
  private let size: UInt64
  private let pool: KernelObject
  private let objects: ZSMalloc
  private let flags: Flags
  /// By priority: pages can be compressed anew by others than the first.
  private let compressors: [Compressor]

  struct Compressor: Hashable, Sendable {
    let name: String
    /// Nil if it is not known here, or was given a dictionary.
    let form: PageCompression?
  }

  /// The bits of an entry's flags, of which the first follow the size of the object.
  private struct Flags: Sendable {
    let sizeBits: UInt64
    let same: UInt64
    let writtenBack: UInt64?
    /// The first of two bits.
    let priority: UInt64?

    init(_ types: BTF) throws(KernelError) {
      func bit(_ name: String) -> UInt64? {
        types.enumerator(named: name).flatMap { (0..<64).contains($0) ? UInt64($0) : nil }
      }
      guard let same = bit("ZRAM_SAME") else { throw .noType("zram_pageflags") }
      // ZRAM_FLAG_SHIFT is the first of the enumeration: the lock, where there is one.
      sizeBits = [bit("ZRAM_LOCK"), bit("ZRAM_ENTRY_LOCK"), same].compactMap { $0 }.min() ?? same
      self.same = same
      writtenBack = bit("ZRAM_WB")
      priority = bit("ZRAM_COMP_PRIORITY_BIT1")
    }
  }

  /// Nil if the disk is not zram's.
  init?(
    _ disk: KernelObject, of kernel: LinuxKernel, _ objects: () throws(KernelError) -> ZSMalloc
  ) throws(KernelError) {
    guard try disk["disk_name"].text().hasPrefix("zram") else { return nil }
    let module = try kernel.module("zram")
    let operations = try disk["fops"].pointer()
    // A device that writes back had operations of its own from 5.0 to 6.0.
    let own = ["zram_devops", "zram_wb_devops"].compactMap { name in
      (try? module?.address(of: name)) ?? kernel.symbol(name)
    }
    guard own.contains(operations) else { return nil }
    let types = module?.types ?? kernel.types
    guard let type = types.structure(named: "zram"),
      let entry = types.structure(named: "zram_table_entry")
    else { throw module?.missingTypes ?? .noType("zram") }
    let zram = KernelObject(
      in: kernel.memory, at: try disk["private_data"].pointer(), type: type, path: "zram")
    table = try zram["table"].pointer()
    self.entry = entry
    size = try zram["disksize"].unsigned() >> pageShift
    pool = try zram["mem_pool"].required()
    self.objects = try objects()
    flags = try Flags(types)
    compressors = try Self.compressors(of: zram)
  }

  /// One until 6.1, up to four since 6.2 (84b33bf78889); what they are called is in the operations of
  /// each since 6.12 (84112e314f69). Dictionaries came with those.
  private static func compressors(of zram: KernelObject) throws(KernelError) -> [Compressor] {
    guard let list = zram.memberIfPresent("comps") else {
      let compressor = try zram["comp"].required()
      return [Compressor(name: try name(of: compressor), isPlain: true)]
    }
    var compressors: [Compressor] = []
    for index in 0..<Int(clamping: min(list.type.elementCount ?? 0, 4)) {
      guard let compressor = try list.element(index).dereferenced() else {
        compressors.append(Compressor(name: "none", form: nil))
        continue
      }
      let parameters = try zram.memberIfPresent("params")?.element(index)
      let dictionary = try parameters?.memberIfPresent("dict")?.pointer()
      compressors.append(
        Compressor(
          name: try name(of: compressor), isPlain: (dictionary?.rawValue ?? 0) == 0))
    }
    return compressors
  }

  private static func name(of compressor: KernelObject) throws(KernelError) -> String {
    let operations = try compressor.memberIfPresent("ops")?.dereferenced()
    let holder = operations ?? compressor
    return try compressor.memory.string(try holder["name"].pointer(), of: "zcomp.name")
  }

  /// What people read of the device: `zram, lzo-rle`.
  var description: String {
    (["zram"] + compressors.map(\.name).filter { $0 != "none" }).joined(separator: ", ")
  }

  /// What the device keeps of one of its pages.
  func page(_ index: UInt64) throws(StoredPageError) -> StoredPage {
    let page: Result<StoredPage, StoredPageError>
    do throws(KernelError) {
      page = try stored(index)
    } catch {
      throw .kernel(error)
    }
    return try page.get()
  }

  private func stored(_ index: UInt64) throws(KernelError) -> Result<StoredPage, StoredPageError> {
    guard index < size, let entrySize = entry.size else {
      throw .unexpectedKind(type: "swap entry", needed: "a page of the zram device")
    }
    let entry = KernelObject(in: objects.memory, at: table + index &* entrySize, type: entry)
    // Called `value` before 4.20; the flags are in a structure of their own by 7.0.
    let word: KernelObject
    if let attributes = entry.memberIfPresent("attr") {
      word = try attributes["flags"]
    } else {
      word = try entry.member("flags", "value")
    }
    let flags = try word.unsigned()
    func has(_ bit: UInt64?) -> Bool { bit.map { flags >> $0 & 1 != 0 } ?? false }
    let handle = try entry["handle"].unsigned()
    if has(self.flags.writtenBack) { return .failure(.writtenBack) }
    // A page that was never written reads as zero.
    if handle == 0 || has(self.flags.same) { return .success(.fill(handle)) }
    let size = flags & (1 << self.flags.sizeBits - 1)
    guard size > 0, size <= pageSize else {
      throw .unexpectedKind(type: "zram_table_entry", needed: "of at most a page")
    }
    let location = try objects.location(of: handle, in: pool, size: Int(size))
    if size == pageSize { return .success(.plain(location)) }
    let priority = self.flags.priority.map { Int(flags >> $0 & 3) } ?? 0
    guard priority < compressors.count, let form = compressors[priority].form else {
      return .failure(.unsupported)
    }
    return .success(.object(location, size: Int(size), form))
  }
}

extension ZRAM.Compressor {
  fileprivate init(name: String, isPlain: Bool) {
    self.init(name: name, form: isPlain ? PageCompression(kernelName: name) : nil)
  }
}
