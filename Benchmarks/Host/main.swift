// bench-host - makes dumps of hosts whose guests are as large as one likes, and forms of them.
//
//   bench-host make FILE MIB GUESTS SMALL filled|sparse   an ELF dump of a host with guests
//   bench-host compress DUMP FILE zlib|lzo|snappy|zstd    the same in makedumpfile's format
//
// The host is made in code; its guests, of MIB each, have kernels of their own, so that they are
// found as real ones are.  Their memory is mapped by pages of 2 MiB, but for every SMALLth 64 MiB of
// it (0: none) in pages of 4 KiB that lie scattered.  Half of it is filled, 2 MiB of every 4, with
// pages of the sample's host; or nothing but the kernel.

import DumpFiles
import Glibc
import Guest
import GuestVmcore
import Memory
import Output
import SyntheticDumps
import SystemPackage

let arguments = CommandLine.arguments
switch (arguments.dropFirst().first, arguments.count) {
case ("make", 7):
  guard let size = UInt64(arguments[3]), size > 0, size % 64 == 0,
    let guests = UInt64(arguments[4]), guests > 0, let small = UInt64(arguments[5]),
    ["filled", "sparse"].contains(arguments[6])
  else { usage() }
  try BenchHost(guestPages: size << 8, guests: guests, smallGroups: small)
    .write(to: arguments[2], isFilled: arguments[6] == "filled")
case ("compress", 5):
  guard let compression = KdumpCompression(rawValue: arguments[4]) else { usage() }
  try compress(arguments[2], to: arguments[3], compression)
default: usage()
}

func usage() -> Never {
  print("usage: bench-host make FILE MIB GUESTS SMALL filled|sparse (MIB a multiple of 64)")
  print("       bench-host compress DUMP FILE zlib|lzo|snappy|zstd")
  exit(2)
}

func compress(_ dump: String, to path: String, _ compression: KdumpCompression) throws {
  let source = try DumpFile.open(FilePath(dump))
  let map = MemoryMap(wholeOf: source)
  let file = unsafe try FileDescriptor.open(
    path, .readWrite, options: [.create, .truncate], permissions: [.ownerReadWrite])
  var writer = try KdumpWriter(
    file, path: FilePath(path), compression: compression, system: SystemName(release: "bench"),
    vmcoreinfo: source.vmcoreinfo, notes: source.notes, dumpLevel: [], ram: source.frameRanges,
    capacity: map.size >> pageShift)
  let pages = OrderedPages(
    of: map, in: source, threads: availableProcessors, progress: MoveProgress()
  ) { KdumpPageEncoder(compression) }
  try pages.forEachWindow { window in
    for index in 0..<window.count {
      let frame = PageFrameNumber(window.start.rawValue >> pageShift) + UInt64(index)
      switch window[index] {
      case .zero: try writer.appendZeros(frame)
      case .stored(let size, let flags):
        unsafe try writer.append(frame, stored: window.stored(index, size: size), flags: flags)
      case .missing, .lost: break
      }
    }
  }
  _ = try writer.finish { _ in source.notes }
  try file.close()
}
