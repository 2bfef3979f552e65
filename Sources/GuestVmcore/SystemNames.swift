import DumpFiles
import Guest
import LinuxKernel
import Memory
import X86

extension SystemName {
  /// The names that a guest's kernel has for itself: those of its first UTS namespace, where
  /// VMCOREINFO tells their place, else its release alone. The machine is what readers tell the
  /// layout of the file by: it stays x86_64.
  init(of kernel: GuestKernel?, in memory: GuestMemory) {
    self.init(release: kernel?.vmcoreinfo.release ?? "")
    guard let kernel, let namespace = kernel.vmcoreinfo.symbol("init_uts_ns"),
      let name = kernel.vmcoreinfo.offset("uts_namespace.name"),
      let space = try? VirtualMemory(ofKernel: kernel.vmcoreinfo, in: memory),
      let bytes = try? space.read(namespace + name, count: 6 * Self.size)
    else { return }
    // struct new_utsname (include/uapi/linux/utsname.h): six strings of 65 bytes.
    let names = (0..<6).map { bytes.cString(at: $0 * Self.size, limit: Self.size) ?? "" }
    guard names[2] == kernel.vmcoreinfo.release else { return }
    system = names[0]
    node = names[1]
    version = names[3]
    domain = names[5]
  }

  /// `__NEW_UTS_LEN` and a NUL.
  private static var size: Int { 65 }
}
