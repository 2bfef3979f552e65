import ControlBlocks
import Guest
import LinuxKernel
import Memory

/// A memory slot: a range of guest-physical memory that KVM maps to memory of the VMM.
struct MemorySlot: Hashable, Sendable {
  let id: Int64
  let start: GuestPhysicalAddress
  /// In bytes.
  let size: UInt64
  let userspaceAddress: VirtualAddress
  let flags: UInt64
  /// Where the private pages are, if the slot can have any.
  let privateFile: PrivateFile?

  /// A file of guest_memfd. Since 6.8 (a7800aa80ea4).
  struct PrivateFile: Hashable, Sendable {
    /// `struct file`.
    let file: VirtualAddress
    /// The slot's first page in it.
    let firstPage: UInt64
  }

  /// KVM_MEM_READONLY (include/uapi/linux/kvm.h).
  private static let readOnlyFlag: UInt64 = 2

  private init(_ slot: KernelObject) throws(KernelError) {
    id = try slot["id"].signed()
    // A frame number beyond 52 bits of address is damage; it must not wrap into a good one.
    start = GuestPhysicalAddress(min(try slot["base_gfn"].unsigned(), 1 << 51) << pageShift)
    size = min(try slot["npages"].unsigned(), 1 << 51) << pageShift
    userspaceAddress = VirtualAddress(try slot["userspace_addr"].unsigned())
    flags = try slot["flags"].unsigned()
    privateFile = try slot.memberIfPresent("gmem").flatMap { gmem throws(KernelError) in
      let file = try gmem["file"].pointer()
      return file.rawValue == 0
        ? nil : PrivateFile(file: file, firstPage: try gmem["pgoff"].unsigned())
    }
  }

  /// KVM_MEM_MAX_NR_PAGES (include/linux/kvm_host.h): KVM takes no larger slot.
  private static let maximumPages: UInt64 = 1 << 31 - 1

  /// True if KVM takes such a slot and a processor could address it: 52 bits of physical address,
  /// 56 of user space.
  private var isPossible: Bool {
    let end = start.rawValue.addingReportingOverflow(size)
    let userEnd = userspaceAddress.rawValue.addingReportingOverflow(size)
    return size >> pageShift <= Self.maximumPages && !end.overflow && end.partialValue <= 1 << 52
      && !userEnd.overflow && userEnd.partialValue <= 1 << 56
  }

  /// What notes tell of it.
  var noted: KVMInfo.Slot {
    KVMInfo.Slot(
      id: id, start: start, size: size, userspaceAddress: userspaceAddress,
      isReadOnly: flags & Self.readOnlyFlag != 0)
  }

  /// The slots of address space 0 (1 is system management mode's) that hold memory of the guest:
  /// without those that KVM set up for itself, ascending.
  static func active(of machine: KernelObject) throws(KernelError) -> [MemorySlot] {
    let set = try machine["memslots"].element(0).required()
    let objects = set.has("id_hash") ? try hashed(set) : try sorted(set)
    let ownIDs = firstOwnID(set)
    var slots: [MemorySlot] = []
    for object in objects {
      let slot = try MemorySlot(object)
      guard slot.size > 0, slot.id < ownIDs else { continue }
      guard slot.isPossible else {
        throw .unexpectedKind(
          type: "memory slot \(slot.id) at \(object.address)",
          needed: "within guest-physical and user address space")
      }
      slots.append(slot)
    }
    slots.sort { $0.start < $1.start }
    return withoutOverlap(slots)
  }

  /// Since 5.17 (a54d806688fe) slots hang in a hash by id; each has two nodes, of which
  /// `node_idx` names the one that the active set uses.
  private static func hashed(_ set: KernelObject) throws(KernelError) -> [KernelObject] {
    let node = Int(clamping: try set["node_idx"].unsigned())
    guard let type = set.type.btf.structure(named: "kvm_memory_slot") else {
      throw .noType("kvm_memory_slot")
    }
    let buckets = try set["id_hash"]
    var slots: [KernelObject] = []
    for bucket in 0..<Int(clamping: min(buckets.type.elementCount ?? 0, 1 << 16)) {
      for entry in try buckets.element(bucket).hashListNodes(limit: slotLimit) {
        let slot = try entry.container(of: type, member: "id_node")
        // The node met is element `node` of id_node, not the first.
        let link = try slot["id_node"].element(node)
        slots.append(
          KernelObject(
            in: slot.memory, at: slot.address - link.address.distance(from: entry.address),
            type: type))
      }
      guard slots.count <= slotLimit else {
        throw .endless(what: "memory slots", at: set.address, limit: slotLimit)
      }
    }
    return slots
  }

  /// Before 5.17: an array, of which the first `used_slots` are in use.
  private static func sorted(_ set: KernelObject) throws(KernelError) -> [KernelObject] {
    let array = try set["memslots"]
    let used = try set["used_slots"].signed()
    guard (0...Int64(slotLimit)).contains(used) else {
      throw .endless(what: "memory slots", at: set.address, limit: slotLimit)
    }
    var slots: [KernelObject] = []
    for index in 0..<Int(used) { slots.append(try array.element(index)) }
    return slots
  }

  /// KVM_MEM_SLOTS_NUM is at most SHRT_MAX, as slot ids are shorts.
  private static let slotLimit = Int(Int16.max)

  /// Ids from here on are KVM's own slots: APIC access page, TSS and identity map for real mode.
  /// They are the last three of KVM_MEM_SLOTS_NUM, which is the length of `id_to_index` where
  /// that exists (until 5.16), and SHRT_MAX since (4fc096a99e01, 5.12).
  private static func firstOwnID(_ set: KernelObject) -> Int64 {
    let count = set.type.member("id_to_index")?.type.elementCount
    return Int64(clamping: count ?? UInt64(slotLimit)) - 3
  }

  /// KVM refuses overlapping slots; should damaged memory show some, the lower one wins.
  private static func withoutOverlap(_ slots: [MemorySlot]) -> [MemorySlot] {
    var kept: [MemorySlot] = []
    for slot in slots {
      if let last = kept.last, slot.start < last.start + last.size { continue }
      kept.append(slot)
    }
    return kept
  }
}
