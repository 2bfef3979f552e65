import Memory
import X86

extension VirtualMemory {
  /// The address space of the kernel that `vmcoreinfo` describes, checked to be that kernel's.
  ///
  /// The top-level page table lies at `SYMBOL(swapper_pg_dir)` (on x86 another name of
  /// `init_top_pgt`); its physical address follows from `NUMBER(phys_base)`, which is negative for
  /// a kernel that KASLR put lower in physical than in virtual memory. A copy of the note that
  /// outlived its kernel (in the page cache, in a guest) names tables that are no longer there, so
  /// both are checked: the tables must map themselves where they are, and the kernel's own
  /// `init_uts_ns` must tell the release that the note tells.
  public init(
    ofKernel vmcoreinfo: Vmcoreinfo, in physical: any PhysicalMemory
  ) throws(KernelError) {
    guard
      let top = vmcoreinfo.symbol("swapper_pg_dir") ?? vmcoreinfo.symbol("init_top_pgt")
        ?? vmcoreinfo.symbol("init_level4_pgt")
    else { throw .vmcoreinfoLacks(key: "SYMBOL(swapper_pg_dir)", release: vmcoreinfo.release) }
    guard let base = vmcoreinfo.number("phys_base") else {
      throw .vmcoreinfoLacks(key: "NUMBER(phys_base)", release: vmcoreinfo.release)
    }
    let root = PhysicalAddress(
      top.distance(from: kernelImageBase) &+ UInt64(bitPattern: base))
    let mask = UInt64(bitPattern: vmcoreinfo.number("sme_mask") ?? 0)
    let levels = vmcoreinfo.number("pgtable_l5_enabled") == 1 ? 5 : 4
    self.init(
      physical: physical, tables: PageTables(root: root, levels: levels, encryptionMask: mask))

    let doubt: String?
    do throws(MemoryError) {
      doubt = try doubts(of: vmcoreinfo, top: top)
    } catch {
      doubt = error.description
    }
    if let doubt {
      throw .pageTablesUnverified(release: vmcoreinfo.release, root: root, why: doubt)
    }
  }

  /// What speaks against these page tables being those of the kernel that the note describes.
  private func doubts(
    of vmcoreinfo: Vmcoreinfo, top: VirtualAddress
  ) throws(MemoryError) -> String? {
    guard try translate(top) == tables.root else { return "they do not map themselves" }
    guard let names = vmcoreinfo.symbol("init_uts_ns") else { return nil }
    // The release is one of the six 65-byte strings of new_utsname, whose place in init_uts_ns
    // changed; it is looked for between NULs instead.
    let release = [0] + Array(vmcoreinfo.release.utf8) + [0]
    guard try read(names, count: 512).contains(subsequence: release) else {
      return "init_uts_ns does not name this release"
    }
    return nil
  }
}

/// `__START_KERNEL_map`: where the kernel's image is linked and mapped
/// (arch/x86/include/asm/page_64_types.h; part of the x86-64 ABI of the kernel's dumps).
public let kernelImageBase = VirtualAddress(0xffff_ffff_8000_0000)

/// Where modules begin at the latest: KERNEL_IMAGE_SIZE with KASLR (the same file); without, it is
/// half of that.
public let kernelImageEnd = kernelImageBase + 1 << 30

extension [UInt8] {
  fileprivate func contains(subsequence wanted: [UInt8]) -> Bool {
    guard wanted.count <= count else { return false }
    return (0...(count - wanted.count)).contains {
      self[$0..<($0 + wanted.count)].elementsEqual(wanted)
    }
  }
}
