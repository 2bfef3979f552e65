import ControlBlocks
import Memory
import X86

/// What can be looked at of a guest that runs in 64-bit mode with paging.
struct VMCSGuest: Sendable {
  let memory: any PhysicalMemory
  /// 4, or 5 with CR4.LA57.
  let levels: Int
  /// The guest's CR3, where its VMCS has another and KVM remembers it: with shadow paging.
  let root: UInt64?
  /// Where SYSCALL leads, which KVM remembers.
  let lstar: UInt64?
}

/// Values that the guest's memory explains.
struct VMCSMeaning {
  private let samples: [VMCSSample]
  /// The samples whose guest is looked at, each time for every free place.
  private let guests: [Int: VMCSGuest]

  init(_ samples: [VMCSSample]) {
    self.samples = samples
    let all = samples.indices.filter { samples[$0].guest != nil }
    let count = min(all.count, 16)
    let chosen = (0..<count).map { all[$0 * all.count / count] }
    guests = Dictionary(
      uniqueKeysWithValues: chosen.compactMap { index in
        samples[index].guest.map { (index, $0) }
      })
  }

  func add(to solver: inout VMCSSolver) {
    addPageTableRoot(to: &solver)
    let spaces = samples.indices.map { space(of: $0, solver) }
    guard spaces.contains(where: { $0 != nil }) else { return }
    addDescriptorTables(to: &solver, spaces)
    let tables = samples.indices.map { descriptors(of: $0, solver, spaces[$0]) }
    addTask(to: &solver, tables)
    addCodeAndStack(to: &solver, tables)
    addRights(to: &solver, tables)
    addLinux(to: &solver, spaces)
    addAddresses(to: &solver, spaces)
  }

  // MARK: Page tables

  /// CR3 leads to page tables by which other values of the structure are addresses.
  private func addPageTableRoot(to solver: inout VMCSSolver) {
    let addresses = samples.indices.map { index -> Set<UInt64> in
      guard guests[index] != nil else { return [] }
      let region = samples[index].region
      return Set(
        stride(from: VMCSSolver.firstOffset, through: region.count - 8, by: 2).lazy
          .compactMap { region.load(UInt64.self, at: $0) }
          .filter { $0 > 0xffff && isPlausible($0) })
    }
    solver.explain(.cr3, "leads to page tables that map other values of the VMCS") {
      index, value in
      guard let guest = guests[index], guest.root == nil else { return nil }
      guard value >> 52 == 0, value >> pageShift != 0 else { return false }
      let root = PhysicalAddress(value & ~0xfff)
      do throws(MemoryError) {
        _ = try guest.memory.page(root.frame)
      } catch {
        return false
      }
      let space = VirtualMemory(
        physical: guest.memory, tables: PageTables(root: root, levels: guest.levels))
      let mapped = addresses[index].lazy.filter {
        (try? space.translate(VirtualAddress($0))) != nil
      }
      let count = mapped.prefix(3).count
      return count >= 3 ? true : count == 0 ? false : nil
    }
  }

  /// Half of all numbers are no addresses: those that combine neighbouring fields mostly.
  private func isPlausible(_ value: UInt64) -> Bool {
    let high = value >> 47
    return high == 0 || high == 0x1_ffff
  }

  private func space(of index: Int, _ solver: VMCSSolver) -> VirtualMemory? {
    guard let guest = guests[index],
      let root = guest.root ?? solver.value(of: .cr3, in: index)
    else { return nil }
    return VirtualMemory(
      physical: guest.memory,
      tables: PageTables(root: PhysicalAddress(root), levels: guest.levels))
  }

  // MARK: Descriptor tables

  private func addDescriptorTables(
    to solver: inout VMCSSolver, _ spaces: [VirtualMemory?]
  ) {
    solver.explain(.gdtrBase, "leads to a table with a 64-bit code segment") { index, value in
      guard let space = spaces[index] else { return nil }
      guard value >= pageSize, space.tables.isCanonical(VirtualAddress(value)) else { return false }
      return Self.read(space, value, 128).map { table in
        table.load(UInt64.self, at: 0) == 0
          && (1..<8).contains { Descriptor(table, $0)?.isCode64 ?? false }
      }
    }
    solver.explain(.idtrBase, "leads to a table of gates") { index, value in
      guard let space = spaces[index] else { return nil }
      guard space.tables.isCanonical(VirtualAddress(value)) else { return false }
      guard value != 0, let table = Self.read(space, value, 14 * 16) else { return nil }
      // A gate of 64-bit mode: P, type 14 or 15 (SDM vol. 3A 6.14.1).
      let gates = (0..<14).count { table[16 * $0 + 5] & 0x9e == 0x8e }
      return gates >= 12 ? true : nil
    }
  }

  /// The first descriptors of a guest's table.
  private func descriptors(
    of index: Int, _ solver: VMCSSolver, _ space: VirtualMemory?
  ) -> [UInt8]? {
    guard let space, let base = solver.value(of: .gdtrBase, in: index) else { return nil }
    return Self.read(space, base, 128)
  }

  /// The bytes, nil if they cannot be told, none if there are none.
  private static func read(_ space: VirtualMemory, _ address: UInt64, _ count: Int) -> [UInt8]? {
    do throws(MemoryError) {
      return try space.read(VirtualAddress(address), count: count)
    } catch {
      if case .notMapped = error { return [UInt8](repeating: 0, count: count) }
      return nil
    }
  }

  /// A segment descriptor (SDM vol. 3A 3.4.5, 3.5, 7.2.3).
  private struct Descriptor {
    private let low: UInt64
    private let high: UInt64

    init?(_ table: [UInt8], _ index: Int) {
      guard let low = table.load(UInt64.self, at: 8 * index) else { return nil }
      self.low = low
      high = table.load(UInt64.self, at: 8 * index + 8) ?? 0
    }

    init?(_ table: [UInt8], selector: UInt64) {
      guard selector & 4 == 0, selector >= 8 else { return nil }
      self.init(table, Int(clamping: selector >> 3))
    }

    /// In the form of a VMCS: bits 40 to 47 and 52 to 55.
    var rights: UInt64 { low >> 40 & 0xf0ff }
    var isPresent: Bool { rights & 0x80 != 0 }
    var isCode64: Bool { isPresent && rights & 0x2018 == 0x2018 }
    var isWritableData: Bool { isPresent && rights & 0x1a == 0x12 }
    var isTask: Bool { isPresent && rights & 0x1d == 0x09 }
    var privilege: UInt64 { rights >> 5 & 3 }

    var limit: UInt64 {
      let limit = low & 0xffff | low >> 32 & 0xf_0000
      return rights & 0x8000 != 0 ? limit << 12 | 0xfff : limit
    }

    /// Of a system segment, which takes two places.
    var systemBase: UInt64 {
      low >> 16 & 0xff_ffff | low >> 32 & 0xff00_0000 | high << 32
    }
  }

  // MARK: Segments

  private static let cs = 1
  private static let ss = 2
  private static let tr = 7

  private func addTask(to solver: inout VMCSSolver, _ tables: [[UInt8]?]) {
    let tasks = tables.map { table in
      table.map { table in (1..<15).compactMap { Descriptor(table, $0) }.filter(\.isTask) } ?? []
    }
    solver.explain(.base(Self.tr), "is the base of a task in the guest's GDT") { index, value in
      tasks[index].isEmpty ? nil : tasks[index].contains { $0.systemBase == value }
    }
    solver.explain(.selector(Self.tr), "selects a task in the guest's GDT") { index, value in
      guard !tasks[index].isEmpty, let table = tables[index] else { return nil }
      return Descriptor(table, selector: value)?.isTask ?? false
    }
  }

  private func addCodeAndStack(to solver: inout VMCSSolver, _ tables: [[UInt8]?]) {
    solver.explain(.selector(Self.cs), "selects 64-bit code in the guest's GDT") { index, value in
      guard let table = tables[index] else { return nil }
      guard let descriptor = Descriptor(table, selector: value) else { return false }
      return descriptor.isCode64 && descriptor.privilege == value & 3
    }
    solver.explain(.selector(Self.ss), "selects data in the guest's GDT") { index, value in
      guard let table = tables[index] else { return nil }
      // In 64-bit mode the stack segment of the kernel may be null.
      guard value >= 4 else { return nil }
      guard let descriptor = Descriptor(table, selector: value) else { return false }
      return descriptor.isWritableData && descriptor.privilege == value & 3
    }
  }

  /// Limits and access rights are those of the descriptors, the latter in one of three forms.
  private func addRights(to solver: inout VMCSSolver, _ tables: [[UInt8]?]) {
    let segments = [Self.cs, Self.ss, Self.tr]
    let expected = segments.map { segment in
      samples.indices.map { index -> Descriptor? in
        guard let table = tables[index],
          let selector = solver.value(of: .selector(segment), in: index)
        else { return nil }
        return Descriptor(table, selector: selector)
      }
    }
    for (segment, descriptors) in zip(segments, expected) {
      solver.match(.limit(segment), size: 4, "equals the limit in the guest's GDT") {
        index, value in
        descriptors[index].map { $0.limit == value }
      }
    }
    func add(_ form: VMCSLayout.AccessRightsForm, to solver: inout VMCSSolver) {
      for (segment, descriptors) in zip(segments, expected) {
        solver.match(
          .accessRights(segment), size: form.size, "equals the rights in the guest's GDT"
        ) { index, stored in
          guard let descriptor = descriptors[index] else { return nil }
          let value = form.decode(UInt32(truncatingIfNeeded: stored))
          // The processor marks a segment as accessed, and a task as busy, when it is loaded.
          let loaded = descriptor.rights | (segment == Self.tr ? 2 : 1)
          return value | (segment == Self.tr ? 2 : 1) == loaded
        }
      }
    }
    // The form under which most find a place, if it is one alone.
    let found = VMCSLayout.AccessRightsForm.allCases.map { form in
      var trial = solver
      add(form, to: &trial)
      let rights = segments.map { VMCSField.accessRights($0) }
      return (form, rights.count { trial.placed[$0] != nil || trial.open[$0] != nil })
    }
    guard let most = found.map(\.1).max(), most >= 2 else { return }
    let forms = found.filter { $0.1 == most }.map(\.0)
    guard forms.count == 1 else { return }
    solver.accessRights = forms[0]
    add(forms[0], to: &solver)
  }

  // MARK: Linux

  /// What Linux's 64-bit kernels do alike (arch/x86/kernel/cpu/common.c, arch/x86/mm/cpu_entry_area.c).
  private func addLinux(to solver: inout VMCSSolver, _ spaces: [VirtualMemory?]) {
    let isLinux = samples.indices.map {
      spaces[$0] != nil && solver.value(of: .idtrBase, in: $0) == EntryAreas.start.rawValue
    }
    let tasks = samples.indices.map { solver.value(of: .base(Self.tr), in: $0) }
    guard isLinux.contains(true) else { return }
    let what = "is what Linux sets"
    for (field, value) in [
      (VMCSField.idtrLimit, UInt64(0xfff)), (.gdtrLimit, 0x7f), (.sysenterCS, 0x10),
    ] {
      solver.match(field, size: 4, what) { isLinux[$0] ? $1 == value : nil }
    }
    // The entry stack (struct entry_stack) is in the page before the task: 512 bytes at its start in
    // older kernels, then all of it.
    solver.match(.sysenterESP, size: 8, what) { index, value in
      isLinux[index] ? tasks[index].map { value == $0 || value == $0 &- 0xe00 } : nil
    }
    solver.explain(.sysenterEIP, "is code near LSTAR") { index, value in
      guard isLinux[index], let lstar = guests[index]?.lstar, let space = spaces[index]
      else { return nil }
      return value != lstar && value &- lstar &+ 0x8000 < 0x1_0000
        && Self.permits(space, value, isCode: true) ?? true
    }
    // A kernel's GS base is that of the processor's variables, which has itself among them.
    solver.explain(.base(5), "leads to the processor's variables of Linux") { index, value in
      guard isLinux[index], let space = spaces[index] else { return nil }
      guard value >> 47 == 0x1_ffff else { return value >> 47 == 0 ? nil : false }
      guard value & (pageSize - 1) == 0 else { return false }
      return Self.holdsItself(space, value)
    }
  }

  /// True if one of the first 256 KiB from an address holds that address, as `this_cpu_off` does.
  private static func holdsItself(_ space: VirtualMemory, _ address: UInt64) -> Bool? {
    var isWhole = true
    for page in 0..<64 as Range<UInt64> {
      do throws(MemoryError) {
        let bytes = try space.read(VirtualAddress(address) + page * pageSize, count: Int(pageSize))
        for offset in stride(from: 0, to: bytes.count, by: 8)
        where bytes.load(UInt64.self, at: offset) == address {
          return true
        }
      } catch {
        if case .notMapped = error { return false }
        isWhole = false
      }
    }
    return isWhole ? false : nil
  }

  // MARK: Addresses

  private func addAddresses(to solver: inout VMCSSolver, _ spaces: [VirtualMemory?]) {
    solver.explain(.rsp, "is mapped writable in the guest") { index, value in
      guard let space = spaces[index] else { return nil }
      guard value > 0xffff, value % 8 == 0 else { return false }
      return Self.permits(space, value, isCode: false)
    }
    solver.explain(.rip, "is mapped executable in the guest") { index, value in
      guard let space = spaces[index] else { return nil }
      guard value > 0xffff else { return false }
      return Self.permits(space, value, isCode: true)
    }
  }

  /// True if an address is mapped, and so that code may run there, or be written to.
  private static func permits(
    _ space: VirtualMemory, _ address: UInt64, isCode: Bool
  ) -> Bool? {
    guard space.tables.isCanonical(VirtualAddress(address)) else { return false }
    var walker = PageTableWalker(space.tables, in: space.physical)
    switch walker.lookUp(VirtualAddress(address)).mapping {
    // Bit 63: execute-disable, bit 1: writable (SDM vol. 3A 4.5).
    case .page(_, let entry): return isCode ? entry >> 63 == 0 : entry & 2 != 0
    case .notPresent: return false
    case .tableAbsent: return nil
    }
  }
}
