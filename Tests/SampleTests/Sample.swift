import CZlib
import ControlBlocks
import DumpFiles
import Guest
import KVMHost
import LinuxKernel
import Memory
import SystemPackage
import Testing
import X86

/// The dump that the project ships, with its truth: see Samples/README.md.
struct Sample: Sendable {
  let dump: DumpFile
  let kernel: LinuxKernel

  /// Opened once for all tests.
  static let shared = Result { try Sample("amd-host") }

  static var folder: FilePath {
    FilePath(#filePath).removingLastComponent().removingLastComponent().removingLastComponent()
      .appending("Samples")
  }

  /// The Intel host.
  static let intel = Result { try Sample("intel-host") }

  private init(_ name: String) throws {
    dump = try DumpFile.open(Self.folder.appending("\(name).kdump"))
    let text = try #require(dump.vmcoreinfo)
    kernel = try LinuxKernel(try #require(Vmcoreinfo(text: text)), in: dump)
  }

  /// The guests that KVM's structures in `memory` tell of, the dump's own if none is given.
  func guests(
    in memory: EditedMemory? = nil,
    notes: [(name: String, type: UInt32, descriptor: [UInt8])]? = nil,
    vmcsLayouts: VMCSLayoutSources = VMCSLayoutSources(), searchingForVMCSs: Bool = false
  ) throws -> KVMHost.Guests {
    let source: any FrameSource = memory ?? dump
    let kernel = kernel.seen(through: source)
    let own = dump.notes.map { ($0.name, $0.type, $0.description) }
    return try KVMHost(
      kernel, in: source, processors: HostProcessors(notes: notes ?? own),
      vmcsLayouts: vmcsLayouts
    ).guests(searchingForVMCSs: searchingForVMCSs)
  }

  func guest(
    in memory: EditedMemory? = nil,
    notes: [(name: String, type: UInt32, descriptor: [UInt8])]? = nil
  ) throws -> Guest {
    try #require(try guests(in: memory, notes: notes).guests.first)
  }

  // MARK: KVM's objects

  var vmList: KernelObject {
    get throws {
      let module = try #require(try kernel.module("kvm"))
      return KernelObject(
        in: kernel.memory, at: try module.address(of: "vm_list"),
        type: try module.structure("list_head"))
    }
  }

  var machine: KernelObject {
    get throws {
      let type = try #require(try kernel.module("kvm")).structure("kvm")
      return try #require(
        try vmList.listElements(of: type, link: "vm_list", limit: 10).first)
    }
  }

  func processor(_ index: Int) throws -> KernelObject {
    let type = try #require(try kernel.module("kvm")).structure("kvm_vcpu")
    let pointers = try XArray(try machine["vcpu_array"]).pointers(limit: 10)
    return KernelObject(in: kernel.memory, at: pointers[index], type: type)
  }

  // MARK: Truth

  /// The notes of one kind in the hypervisor's own dump, in order.
  func trueNotes(_ owner: String) throws -> [[UInt8]] {
    try lines(of: "amd-host.notes").filter { $0[0] == owner }.map { fields in
      let digits = Array(fields[2])
      return try stride(from: 0, to: digits.count, by: 2).map { index in
        try #require(UInt8(String(digits[index..<index + 2]), radix: 16))
      }
    }
  }

  /// CRC-32 by guest-physical address of every page that is not zero.
  func truePages() throws -> [UInt64: UInt32] {
    let pairs = try lines(of: "amd-host.pages").map { fields in
      (try #require(UInt64(fields[0], radix: 16)), try #require(UInt32(fields[1], radix: 16)))
    }
    return Dictionary(uniqueKeysWithValues: pairs)
  }

  func lines(of name: String) throws -> [[Substring]] {
    let text = String(decoding: try contents(of: Self.folder.appending(name)), as: UTF8.self)
    return text.split(separator: "\n").map { $0.split(separator: " ") }
  }
}

/// All bytes of a file.
func contents(of path: FilePath) throws -> [UInt8] {
  let file = try FileDescriptor.open(path, .readOnly)
  defer { try? file.close() }
  let size = Int(try file.seek(offset: 0, from: .end))
  var bytes = [UInt8](repeating: 0, count: size)
  var done = 0
  while done < size {
    done += try unsafe bytes.withUnsafeMutableBytes { buffer in
      try unsafe file.read(
        fromAbsoluteOffset: Int64(done),
        into: UnsafeMutableRawBufferPointer(rebasing: buffer[done...]))
    }
  }
  return bytes
}

func crc32(_ bytes: ArraySlice<UInt8>) -> UInt32 {
  unsafe bytes.withUnsafeBufferPointer { buffer in
    UInt32(truncatingIfNeeded: unsafe CZlib.crc32(0, buffer.baseAddress, UInt32(buffer.count)))
  }
}

/// A dump's memory with some bytes changed: what would a host look like in which this were so?
struct EditedMemory: FrameSource {
  private let dump: DumpFile
  private var edits: [UInt64: [UInt8]] = [:]
  private var removed: Set<UInt64> = []

  init(_ dump: DumpFile) { self.dump = dump }

  /// Stores an integer as large as the object that is changed.
  mutating func set(_ object: KernelObject, to value: UInt64) throws {
    let size = Int(try #require(object.type.size))
    try store(value, size: size, at: try object.memory.translate(object.address))
  }

  mutating func store(_ value: UInt64, size: Int = 8, at address: PhysicalAddress) throws {
    var page = try edits[address.frame.rawValue] ?? dump.page(address.frame)
    for index in 0..<size {
      page[address.pageOffset + index] = UInt8(truncatingIfNeeded: value >> (8 * UInt64(index)))
    }
    edits[address.frame.rawValue] = page
  }

  /// Takes a frame out of the dump.
  mutating func remove(_ frame: PageFrameNumber) { removed.insert(frame.rawValue) }

  func page(_ frame: PageFrameNumber) throws(MemoryError) -> [UInt8] {
    if removed.contains(frame.rawValue) { throw .absent(frame.address, .excluded) }
    if let edited = edits[frame.rawValue] { return edited }
    return try dump.page(frame)
  }

  func presence(
    from frame: PageFrameNumber, limit: UInt64
  ) -> (absence: Absence?, count: UInt64) {
    if removed.contains(frame.rawValue) { return (.excluded, 1) }
    return (dump.presence(from: frame, limit: 1).absence, 1)
  }

  var dumpLevel: DumpLevel? { dump.dumpLevel }
  var frameRanges: [Range<PageFrameNumber>] { dump.frameRanges }
  func makeReader() -> PageReader { dump.makeReader() }
}
