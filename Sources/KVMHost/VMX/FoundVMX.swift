import ControlBlocks
import LinuxKernel
import Memory
import X86

/// kvm_intel's `struct vcpu_vmx` begins with `struct kvm_vcpu`. Behind it, it has `vmcs01`, a structure
/// that begins with the address of the vCPU's own VMCS, and behind that `loaded_vmcs`, the address of
/// the structure in use (since 3.1, d462b8192368): that of `vmcs01`, or while the vCPU runs a guest's
/// guest that of `nested.vmcs02`, which comes later.
extension FoundMembers {
  /// - Parameter symbol: looks up a symbol of KVM.
  static func vmx(
    of vcpus: [KernelObject], types: BTF, symbol: (String) -> VirtualAddress?
  ) -> FoundMembers? {
    let parts = vcpus.compactMap { vcpu in
      UntypedBytes(behind: vcpu).map { VMXPart(bytes: $0, vcpu: vcpu) }
    }
    guard let first = parts.first, let size = vcpus.first?.type.size else { return nil }
    let pointers = first.bytes.offsets.compactMap { VMXPointer($0, in: parts) }
    // From 4.19 to 5.1 `loaded_cpu_state` can be another pointer to the same.
    guard let pointer = pointers.first, pointers.allSatisfy({ $0.targets == pointer.targets })
    else { return nil }

    var places = ["loaded_vmcs +\(pointer.offset)"]
    let loaded = pointer.own.map { LoadedVMCS(from: $0, to: pointer.offset, in: parts) }
    var structures = loaded?.structures ?? LoadedVMCS.first
    places += loaded?.places ?? []
    // `nested` is described as all that comes behind the pointer.
    let nested = pointer.offset + 8
    var ofNested: [StructureDescription.Member] = []
    if let second = pointer.second {
      ofNested.append(.init("vmcs02", at: second - nested, .structure("loaded_vmcs")))
      places.append("nested.vmcs02 +\(second)")
    }
    if let cache = pointer.cachedVMCS12(in: parts), let vmcs12 = StructureDescription.vmcs12 {
      structures.append(vmcs12)
      ofNested.append(.init("cached_vmcs12", at: cache - nested, .pointerTo(vmcs12.name)))
      places.append("nested.cached_vmcs12 +\(cache)")
    }
    structures.append(StructureDescription("nested_vmx", size: 1 << 14, ofNested))
    var members = [
      StructureDescription.Member("vcpu", at: 0, .structure("kvm_vcpu")),
      .init("loaded_vmcs", at: pointer.offset, .pointerTo("loaded_vmcs")),
      .init("nested", at: nested, .structure("nested_vmx")),
    ]
    if let own = pointer.own {
      members.append(.init("vmcs01", at: own, .structure("loaded_vmcs")))
      places.append("vmcs01 +\(own)")
    }
    if let registers = LazyRegisters(
      before: pointer.offset, in: parts, memory: first.vcpu.memory, symbol: symbol)
    {
      structures.append(registers.entry)
      members.append(
        .init(
          "guest_uret_msrs", at: registers.offset,
          .structures(registers.entry.name, count: registers.count)))
      places.append("guest_uret_msrs +\(registers.offset)")
    }
    structures.append(StructureDescription("vcpu_vmx", size: size + (1 << 15), members))
    return FoundMembers(structures, base: types, places: places)
  }
}

/// What kvm_intel keeps of a vCPU, before any of it is known.
private struct VMXPart {
  let bytes: UntypedBytes
  let vcpu: KernelObject

  /// The offset that the pointer at another one leads to, if there begins a `struct loaded_vmcs`,
  /// with the revision identifier of its VMCS.
  func target(of pointer: UInt64) -> (offset: UInt64, vmcs: FoundMembers.Page<UInt32>)? {
    guard let target = bytes.word(at: pointer), target > bytes.object.rawValue, target & 7 == 0
    else { return nil }
    let offset = target - bytes.object.rawValue
    return loaded(at: offset).map { (offset, $0) }
  }

  /// The revision identifier of the VMCS of the `struct loaded_vmcs` at an offset. An identifier is
  /// not zero, its bit 31 marks shadow VMCSs, and no entry into the guest failed for good (SDM
  /// vol. 3C 24.2).
  func loaded(at offset: UInt64) -> FoundMembers.Page<UInt32>? {
    FoundMembers.page(at: bytes.word(at: offset), in: vcpu.memory) { page in
      guard let revision: UInt32 = page.load(at: 0), let abort: UInt32 = page.load(at: 4),
        revision != 0, revision >> 31 == 0, abort == 0
      else { return nil }
      return revision
    }
  }
}

/// A place that leads to the VMCS in use, in every vCPU of the host.
private struct VMXPointer {
  let offset: UInt64
  /// Where it leads to in each vCPU.
  let targets: [UInt64]
  /// The vCPU's own, before the pointer.
  let own: UInt64?
  /// That of a guest's guest, behind the pointer.
  let second: UInt64?

  init?(_ offset: UInt64, in parts: [VMXPart]) {
    guard parts.first?.target(of: offset) != nil else { return nil }
    let found = parts.compactMap { $0.target(of: offset) }
    guard found.count == parts.count else { return nil }
    let targets = found.map(\.offset)
    let own = Set(targets.filter { $0 < offset })
    let second = Set(targets.filter { $0 > offset })
    guard own.count <= 1, second.count <= 1 else { return nil }
    // A vCPU that runs a guest's guest has its own too.
    let all = found.map(\.vmcs) + own.flatMap { place in parts.map { $0.loaded(at: place) } }
    guard !all.contains(nil) else { return nil }
    let revisions = all.compactMap { page in
      if case .found(let revision) = page { revision } else { nil }
    }
    guard Set(revisions).count == 1 else { return nil }
    self.offset = offset
    self.targets = targets
    self.own = own.first
    self.second = second.first
  }

  /// Where vCPUs that run a guest's guest have the address of KVM's copy of the VMCS that the guest
  /// made for it.
  func cachedVMCS12(in parts: [VMXPart]) -> UInt64? {
    let nested = zip(parts, targets).filter { $1 == second }.map(\.0)
    guard let first = nested.first, let revision = VMCSLayoutDatabase.vmcs12?.revision else {
      return nil
    }
    return first.bytes.offsets.first { place in
      place > offset
        && nested.allSatisfy { part in
          guard let pointer = part.bytes.word(at: place), pointer != 0 else { return false }
          return (try? part.vcpu.memory.load(VirtualAddress(pointer), as: UInt32.self)) == revision
        }
    }
  }
}

/// What `vmcs01`, which ends where `loaded_vmcs` begins, has besides the address of its VMCS: what KVM
/// remembers of the contents of that VMCS.
private struct LoadedVMCS {
  private(set) var structures: [StructureDescription] = []
  private(set) var places: [String] = []

  /// What every `struct loaded_vmcs` begins with.
  static let first = [
    StructureDescription("loaded_vmcs", size: 8, [.init("vmcs", at: 0, .pointer)])
  ]

  init(from start: UInt64, to end: UInt64, in parts: [VMXPart]) {
    var members = [StructureDescription.Member("vmcs", at: 0, .pointer)]
    /// Adds a member, if there is one place for it.
    func add(
      _ name: String, _ content: StructureDescription.Content, every step: UInt64, size: UInt64,
      isThere: (VMXPart, UInt64) -> Bool
    ) {
      let found = stride(from: start + 8, through: max(end, start + size) - size, by: Int(step))
        .filter { place in parts.allSatisfy { isThere($0, place) } }
      guard found.count == 1 else { return }
      members.append(.init(name, at: found[0] - start, content))
      places.append("\(name) +\(found[0])")
    }
    add("msr_bitmap", .pointer, every: 8, size: 8) { $0.hasBitmap(at: $1) }
    add(
      "host_state", .structure(Self.hostState.name), every: 8, size: 40
    ) { $0.hasHostState(at: $1) }
    add(
      "controls_shadow", .structure(Self.controls.name), every: 4, size: 20
    ) { $0.hasControls(at: $1) }
    structures = [
      Self.hostState, Self.controls,
      StructureDescription("loaded_vmcs", size: end - start, members),
    ]
  }

  /// `struct vmcs_host_state` of arch/x86/kvm/vmx/vmcs.h (since 5.0, d7ee039e2b66), as far as it is
  /// told from others.
  private static let hostState = StructureDescription(
    "vmcs_host_state", size: 40,
    ["cr3", "cr4", "gs_base", "fs_base", "rsp"].enumerated().map {
      .init($1, at: UInt64($0) * 8, .unsigned(bytes: 8))
    })

  /// `struct vmcs_controls_shadow` of the same file (since 5.2, 09e226cf07cd).
  private static let controls = StructureDescription(
    "vmcs_controls_shadow", size: 20,
    ["vm_entry", "vm_exit", "pin", "exec", "secondary_exec"].enumerated().map {
      .init($1, at: UInt64($0) * 4, .unsigned(bytes: 4))
    })
}

extension VMXPart {
  /// Controls of entries, exits, pins and execution in this order: each with the bits that have to be
  /// 1 (SDM vol. 3D A.3 to A.5: the default1 class, without those that later processors let be 0).
  func hasControls(at place: UInt64) -> Bool {
    let needed: [UInt64] = [0x11fb, 0x3_6dfb, 0x16, 0x400_6172]
    return needed.enumerated().allSatisfy { index, bits in
      bytes.word(at: place + UInt64(index) * 4).map { $0 & bits == bits } ?? false
    }
  }

  /// CR3 of the VMM, CR4 with PAE and VMXE, a base of GS that is the kernel's, one of FS that is not,
  /// and a stack of the kernel's; the last three are 0 before the vCPU first ran.
  func hasHostState(at place: UInt64) -> Bool {
    let words = (0..<5 as Range<UInt64>).compactMap { bytes.word(at: place + $0 * 8) }
    guard words.count == 5, let tables else { return false }
    let isOfKernel = { (address: UInt64) in address == 0 || address >> 47 == 0x1_ffff }
    return words[0] & ~0xfff == tables.rawValue
      && words[1] & 0x2020 == 0x2020 && words[1] >> 32 == 0
      && isOfKernel(words[2]) && words[3] >> 47 == 0 && isOfKernel(words[4])
  }

  /// The page tables of the VMM.
  private var tables: PhysicalAddress? {
    guard let mm = try? vcpu["kvm"].required()["mm"].required(),
      let pointer = try? mm["pgd"].pointer()
    else { return nil }
    return try? vcpu.memory.translate(pointer)
  }

  /// A page of bits for MSRs, of which KVM lets guests read and write few without an exit.
  func hasBitmap(at place: UInt64) -> Bool {
    let page = FoundMembers.page(at: bytes.word(at: place), in: vcpu.memory) { page in
      page.count { $0 == 0xff } >= page.count * 3 / 4 ? true : nil
    }
    return page != nil
  }
}

/// `guest_uret_msrs`, the MSRs that KVM loads for a guest and leaves to it until the VMM runs: entries
/// of three words, of which the last tells which bits of the MSR are the guest's.
private struct LazyRegisters {
  let offset: UInt64
  let count: UInt64
  let entry: StructureDescription

  /// Lists of the MSRs' numbers, as ``VMXRegisters`` knows them, and whether an entry's first word is
  /// the place in that list; otherwise entries are in its order, and the word is a truth value.
  private static let lists = [
    ("vmx_uret_msrs_list", true), ("vmx_msr_index", true), ("kvm_uret_msrs_list", false),
  ]

  init?(
    before end: UInt64, in parts: [VMXPart], memory: VirtualMemory,
    symbol: (String) -> VirtualAddress?
  ) {
    for (name, tellsPlace) in Self.lists {
      guard let list = symbol(name) else { continue }
      let numbers = Self.numbers(at: list, in: memory)
      guard Self.needed.isSubset(of: numbers) else { continue }
      var best: (offset: UInt64, count: Int)?
      for offset in parts.first?.bytes.offsets.prefix(while: { $0 < end }) ?? [] {
        var least = numbers.count
        for part in parts where least > best?.count ?? 0 {
          let count =
            tellsPlace
            ? Self.placedEntries(of: part, at: offset, numbers)
            : Self.orderedEntries(of: part, at: offset, numbers)
          least = min(least, count)
        }
        if least > best?.count ?? 0 { best = (offset, least) }
      }
      guard let best else { return nil }
      offset = best.offset
      count = UInt64(best.count)
      entry = StructureDescription(
        "vmx_uret_msr", size: Self.entrySize,
        [
          .init(tellsPlace ? "slot" : "load_into_hardware", at: 0, .unsigned(bytes: 4)),
          .init("data", at: 8, .unsigned(bytes: 8)), .init("mask", at: 16, .unsigned(bytes: 8)),
        ])
      return
    }
    return nil
  }

  private static let entrySize: UInt64 = 24

  /// STAR, LSTAR and SFMASK, which every 64-bit guest has.
  private static let needed: Set<UInt32> = [0xc000_0081, 0xc000_0082, 0xc000_0084]

  /// A list of such MSRs has no other numbers: those above, CSTAR, EFER, TSC_AUX and TSX_CTRL.
  private static func numbers(at list: VirtualAddress, in memory: VirtualMemory) -> [UInt32] {
    let known = needed.union([0xc000_0080, 0xc000_0083, 0xc000_0103, 0x122])
    var numbers: [UInt32] = []
    while numbers.count < 16,
      let number = try? memory.load(list + UInt64(numbers.count) * 4, as: UInt32.self),
      known.contains(number), !numbers.contains(number)
    {
      numbers.append(number)
    }
    return numbers
  }

  /// How many entries of different places in the list there are; 0 if some MSR is missing.
  private static func placedEntries(
    of part: VMXPart, at offset: UInt64, _ numbers: [UInt32]
  ) -> Int {
    var seen: Set<UInt32> = []
    while seen.count < numbers.count {
      let entry = offset + UInt64(seen.count) * entrySize
      guard let place = part.bytes.word(at: entry), place < numbers.count,
        case let number = numbers[Int(place)], hasMask(of: number, part, entry),
        seen.insert(number).inserted
      else { break }
    }
    return needed.isSubset(of: seen) ? seen.count : 0
  }

  /// The number of entries, or 0 if it is not that of the list.
  private static func orderedEntries(
    of part: VMXPart, at offset: UInt64, _ numbers: [UInt32]
  ) -> Int {
    let isWhole = numbers.enumerated().allSatisfy { index, number in
      let entry = offset + UInt64(index) * entrySize
      return part.bytes.word(at: entry).map { $0 < 2 } ?? false && hasMask(of: number, part, entry)
    }
    return isWhole ? numbers.count : 0
  }

  /// All bits; of TSX_CTRL all but one, or none where the processor lacks what it is for.
  private static func hasMask(of number: UInt32, _ part: VMXPart, _ entry: UInt64) -> Bool {
    guard let mask = part.bytes.word(at: entry + 16) else { return false }
    return mask == .max || number == 0x122 && (mask == 0 || (~mask).nonzeroBitCount == 1)
  }
}

extension StructureDescription {
  /// `struct vmcs12` of arch/x86/kvm/vmx/vmcs12.h. Its layout is the same in all kernels, as guests
  /// that move to another host take it along, and one of those known. Members are called like fields.
  fileprivate static let vmcs12: StructureDescription? = VMCSLayoutDatabase.vmcs12.map { layout in
    StructureDescription(
      "vmcs12", size: pageSize,
      layout.fields.compactMap { field in
        guard let offset = layout.offset(of: field), let size = layout.storedSize(of: field),
          let name = field.name
        else { return nil }
        return Member(name.lowercased(), at: UInt64(offset), .unsigned(bytes: UInt64(size)))
      })
  }
}
