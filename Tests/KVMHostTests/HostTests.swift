import Guest
import KVMHost
import Memory
import SyntheticDumps
import Testing
import X86

/// Layouts of kernels in the field, each with every structure shuffled.
@Suite struct LayoutTests {
  @Test(arguments: [1, 2, 3] as [UInt64])
  func `a guest is found whole wherever the members of structures lie`(seed: UInt64) throws {
    var options = SyntheticHost.Options()
    options.seed = seed
    let one = try OneGuest(options)
    try expectWhole(one)
    let guest = try Analysis(one.host).guest
    #expect(guest.identity.command == "qemu-system-x86")
    #expect(guest.identity.backend == "KVM (AMD SVM)")
    #expect(guest.findings.isEmpty)
  }
}
