import Memory
import SystemPackage

/// A dump could not be opened.
public enum DumpFileError: Error, Hashable, Sendable {
  /// The file cannot be opened: not found, no permission.
  case cannotOpen(FilePath, Errno)
  /// The path names a directory, a pipe or a character device: nothing to seek in.
  case notAFile(FilePath, isDirectory: Bool)
  /// Reading failed at `offset`.
  case readFailed(FilePath, offset: UInt64, Errno)
  /// The file is something else than a dump.
  case notADump(FilePath, FileKind)
  /// The ELF file is of 32 bits (EI_CLASS at offset 4).
  case not64Bit(FilePath, elfClass: UInt8)
  /// The ELF file is not little-endian (EI_DATA at offset 5).
  case notLittleEndian(FilePath, data: UInt8)
  /// The dump is of a machine other than x86-64: e_machine of ELF, or the name in a kdump header.
  case otherMachine(FilePath, machine: String, offset: UInt64)
  /// The ELF file is no core file: ET_EXEC, ET_REL, ET_DYN (e_type at offset 16).
  case notACore(FilePath, elfType: UInt16)
  /// The core of a process, where the dump of a machine is needed.
  case processCore(FilePath)
  /// The ELF file has no PT_LOAD program header that names physical memory.
  case noMemory(FilePath)
  /// A field of a header holds what it cannot hold.
  case badHeader(FilePath, field: HeaderField, offset: UInt64, value: UInt64)
  /// The file ends inside a part without which nothing can be read.
  case truncated(FilePath, part: DumpPart, offset: UInt64, length: UInt64, fileSize: UInt64)
  /// The header version of a kdump-compressed file is not one of those known.
  case unknownVersion(FilePath, version: Int32)
  /// The status of a kdump header has flags that say pages are stored in an unknown way.
  case unknownCompression(FilePath, flags: UInt32)
  /// Several files were given, and this one is no part of a split dump.
  case notAPart(FilePath)
  /// Two files are parts of split dumps, and not of the same one; `what` tells it.
  case partsDiffer(FilePath, FilePath, what: String)
  /// The records of a flattened file lie in too many places of the dump; at `offset` is one too
  /// many.
  case tooScattered(FilePath, offset: UInt64)
  /// No memory for the dump's page index of `bytes`.
  case outOfMemory(FilePath, bytes: UInt64)

  /// A field that ``badHeader(_:field:offset:value:)`` speaks of, by its name in the format.
  public enum HeaderField: String, Hashable, Sendable {
    case programHeaderSize = "e_phentsize"
    case programHeaderCount = "e_phnum"
    case blockSize = "block_size"
    case subHeaderSize = "sub_hdr_size"
    case bitmapBlocks = "bitmap_blocks"
    case frameLimit = "max_mapnr"
  }

  /// A part that ``truncated(_:part:offset:length:fileSize:)`` speaks of.
  public enum DumpPart: String, Hashable, Sendable {
    case header = "header"
    case programHeaders = "program headers"
    case sectionHeader = "section header that counts the program headers"
    case subHeader = "sub-header"
    case bitmaps = "page bitmaps"
  }
}

extension DumpFileError: Diagnosis {
  public var name: String {
    switch self {
    case .cannotOpen(_, .noSuchFileOrDirectory): "dump.not-found"
    case .cannotOpen(_, .permissionDenied): "dump.permission-denied"
    case .cannotOpen: "dump.cannot-open"
    case .notAFile: "dump.not-a-file"
    case .readFailed: "dump.read-failed"
    case .notADump(_, let kind): "dump.not-a-dump." + kind.name
    case .not64Bit: "dump.not-64-bit"
    case .notLittleEndian: "dump.not-little-endian"
    case .otherMachine: "dump.other-machine"
    case .notACore: "dump.not-a-core"
    case .processCore: "dump.process-core"
    case .noMemory: "dump.no-memory"
    case .badHeader: "dump.bad-header"
    case .truncated: "dump.truncated-header"
    case .unknownVersion: "dump.unknown-version"
    case .unknownCompression: "dump.unknown-compression"
    case .notAPart: "dump.not-a-part"
    case .partsDiffer: "dump.parts-differ"
    case .tooScattered: "dump.too-scattered"
    case .outOfMemory: "dump.out-of-memory"
    }
  }

  public var problem: String {
    switch self {
    case .cannotOpen(let path, let error):
      "\(path): cannot be opened: \(error)"
    case .notAFile(let path, let isDirectory):
      "\(path): is " + (isDirectory ? "a directory" : "a pipe or a device that cannot seek")
    case .readFailed(let path, let offset, let error):
      "\(path): reading at offset \(hexadecimal(offset)) failed: \(error)"
    case .notADump(let path, let kind):
      "\(path): not a dump: \(kind.explanation)"
    case .not64Bit(let path, let elfClass):
      "\(path): EI_CLASS at offset 0x4 is \(elfClass), not 2 (ELFCLASS64): not a 64-bit dump"
    case .notLittleEndian(let path, let data):
      "\(path): EI_DATA at offset 0x5 is \(data), not 1 (ELFDATA2LSB): not a little-endian dump"
    case .otherMachine(let path, let machine, let offset):
      "\(path): the dump is of a machine of type \(machine) (offset \(hexadecimal(offset)))"
    case .notACore(let path, let elfType):
      "\(path): e_type at offset 0x10 is \(elfType) (\(Self.elfTypeName(elfType))), not 4 (ET_CORE)"
    case .processCore(let path):
      "\(path): the core of a process, not the dump of a host"
    case .noMemory(let path):
      "\(path): an ELF core without PT_LOAD program headers: it holds no memory"
    case .badHeader(let path, let field, let offset, let value):
      "\(path): \(field.rawValue) at offset \(hexadecimal(offset)) is \(value): "
        + field.expectation
    case .truncated(let path, let part, let offset, let length, let fileSize):
      "\(path): the file ends at offset \(hexadecimal(fileSize)), before the end of the "
        + "\(part.rawValue) (offset \(hexadecimal(offset)), \(length) bytes)"
    case .unknownVersion(let path, let version):
      "\(path): header_version at offset 0x8 is \(version); known are 0 to "
        + "\(KdumpLayout.newestVersion)"
    case .unknownCompression(let path, let flags):
      "\(path): status at offset \(hexadecimal(UInt64(KdumpLayout.Header.status))) has unknown "
        + "flags \(hexadecimal(UInt64(flags))): pages are stored in a way not known here"
    case .notAPart(let path):
      "\(path): no part of a split dump, and not the only file given"
    case .partsDiffer(let first, let second, let what):
      "\(first) and \(second) are no parts of one split dump: they differ in their \(what)"
    case .tooScattered(let path, let offset):
      "\(path): the records of the flattened file up to offset \(hexadecimal(offset)) lie in more than "
        + "\(FlattenedFile.extentLimit) places of the dump"
    case .outOfMemory(let path, let bytes):
      "\(path): no memory for the page index of \(bytes) bytes"
    }
  }

  public var advice: String? {
    switch self {
    case .cannotOpen(_, .noSuchFileOrDirectory): "check the path"
    case .cannotOpen(_, .permissionDenied):
      "dumps are often readable by root alone: run as root, or change the file's owner"
    case .cannotOpen: nil
    case .notAFile: "name a file; a dump that comes through a pipe must be saved first"
    case .readFailed: "the medium may be damaged: copy the file (ddrescue), then read the copy"
    case .notADump(_, let kind): kind.advice
    case .not64Bit, .notLittleEndian, .otherMachine: "only dumps of x86-64 machines are read"
    case .notACore(_, let elfType):
      elfType == 1
        ? "this is an object file or kernel module: name the vmcore instead"
        : "this is a program, maybe the vmlinux that belongs to the dump: name the vmcore instead"
    case .processCore:
      "name the vmcore of the whole machine; of a QEMU's core, extract, list and registers take the"
        + " guest"
    case .noMemory: "the dump was cut when it was made: make it again"
    case .badHeader, .truncated:
      "the file is damaged or was not copied whole: compare its size with the original"
    case .unknownVersion, .unknownCompression:
      "the dump was made by a newer makedumpfile: convert it with that (makedumpfile -E or -l)"
    case .notAPart:
      "give one dump; several files must be the parts that one run of makedumpfile --split wrote"
    case .partsDiffer: "give the parts that one run of makedumpfile --split wrote"
    case .tooScattered: "put it in order first: makedumpfile -R WHOLE < FILE"
    case .outOfMemory: "run on a machine with more memory"
    }
  }

  private static func elfTypeName(_ type: UInt16) -> String {
    switch type {
    case 0: "ET_NONE"
    case 1: "ET_REL"
    case 2: "ET_EXEC"
    case 3: "ET_DYN"
    default: "unknown"
    }
  }
}

extension DumpFileError.HeaderField {
  /// Completes "the field is 17: …".
  fileprivate var expectation: String {
    switch self {
    case .programHeaderSize: "64-bit ELF has 56"
    case .programHeaderCount: "more than the \(ELFDump.programHeaderLimit) a dump can have"
    case .blockSize: "x86-64 has pages of 4096 bytes"
    case .subHeaderSize: "too small to be a number of blocks"
    case .bitmapBlocks: "too few for a bit per page frame"
    case .frameLimit: "must be above 0 and at most 2^40 (52 bits of physical address)"
    }
  }
}

extension FileKind {
  /// Part of the error's stable name.
  fileprivate var name: String {
    switch self {
    case .empty: "empty"
    case .compressed: "compressed"
    case .migrationStream: "migration-stream"
    case .diskImage: "disk-image"
    case .encrypted: "encrypted"
    case .foreignDump: "foreign"
    case .text: "text"
    case .zeros: "zeros"
    case .unknown: "unknown"
    }
  }

  fileprivate var explanation: String {
    switch self {
    case .empty: "the file is empty"
    case .compressed(let format, _): "the file is compressed or packed (\(format))"
    case .migrationStream: "a migration stream of QEMU, not a memory dump"
    case .diskImage(let format): "an image of a disk (\(format))"
    case .encrypted(let format): "the file is encrypted (\(format))"
    case .foreignDump(let format): format
    case .text: "a text file"
    case .zeros: "the file starts with zeros only"
    case .unknown(let bytes):
      "unknown first bytes "
        + bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: " ")
        + " at offset 0x0"
    }
  }

  fileprivate var advice: String? {
    switch self {
    case .empty: "the dump was not written: look for a full disk, or for vmcore-incomplete"
    case .compressed(_, let command): "unpack it first: \(command) FILE"
    case .migrationStream:
      "virsh dump without --memory-only writes it: dump again with virsh dump --memory-only"
    case .diskImage: "name the memory dump of the machine, not its disk"
    case .encrypted: "decrypt it first"
    case .foreignDump, .text, .unknown:
      "vmcores of kdump and makedumpfile are read, and those of virsh dump --memory-only"
    case .zeros: "the dump was not written to its end, or the copy lost its beginning"
    }
  }
}
