// swift-tools-version: 6.2
import PackageDescription

let swiftSettings: [SwiftSetting] = [
  .swiftLanguageMode(.v6),
  .strictMemorySafety(),
  .enableUpcomingFeature("ExistentialAny"),
  .enableUpcomingFeature("MemberImportVisibility"),
]

// Glibc hides pread's relatives, SEEK_DATA and O_TMPFILE without it.
let cSettings: [CSetting] = [.define("_GNU_SOURCE")]

func library(_ name: String, uses dependencies: [Target.Dependency]) -> Target {
  .target(
    name: name, dependencies: dependencies, cSettings: cSettings, swiftSettings: swiftSettings)
}

func tests(_ name: String, uses dependencies: [Target.Dependency]) -> Target {
  .testTarget(
    name: name, dependencies: dependencies, cSettings: cSettings, swiftSettings: swiftSettings)
}

func systemLibrary(_ name: String, pkgConfig: String, debian package: String) -> Target {
  .systemLibrary(name: name, pkgConfig: pkgConfig, providers: [.apt([package])])
}

// The known layouts of Intel's VMCS: data, compiled in so that the program stays one file.
let vmcsLayouts = [
  "bochs-generic", "hyperv-evmcs-v1", "kvm-vmcs12", "rev-0x04-skylake-coffeelake",
  "rev-0x0d-penryn", "rev-0x0e-nehalem", "rev-0x0f-westmere", "rev-0x10-sandybridge-ivybridge",
  "rev-0x12-haswell-broadwell", "xen-vvmcs",
]

let package = Package(
  name: "vmcore-split",
  products: [.executable(name: "vmcore-split", targets: ["vmcore-split"])],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    .package(url: "https://github.com/apple/swift-system", from: "1.8.1"),
  ],
  targets: [
    systemLibrary("CDeflate", pkgConfig: "libdeflate", debian: "libdeflate-dev"),
    systemLibrary("CElfutils", pkgConfig: "libdw", debian: "libdw-dev"),
    systemLibrary("CLZ4", pkgConfig: "liblz4", debian: "liblz4-dev"),
    systemLibrary("CLZO", pkgConfig: "lzo2", debian: "liblzo2-dev"),
    systemLibrary("CSnappy", pkgConfig: "snappy", debian: "libsnappy-dev"),
    // The tests' second witness.
    systemLibrary("CZlib", pkgConfig: "zlib", debian: "zlib1g-dev"),
    systemLibrary("CZstd", pkgConfig: "libzstd", debian: "libzstd-dev"),
    .target(name: "CShim", cSettings: cSettings),

    library("Memory", uses: []),
    library("Compression", uses: ["CDeflate", "CLZ4", "CLZO", "CSnappy", "CZstd", "CShim"]),
    library("X86", uses: ["Memory"]),
    library("Guest", uses: ["Memory", "X86", "LinuxKernel"]),
    library(
      "DumpFiles",
      uses: [
        "Memory", "Compression", "CDeflate", "CLZO", "CSnappy", "CZstd", "CShim",
        .product(name: "SystemPackage", package: "swift-system"),
      ]),
    library("LinuxKernel", uses: ["Memory", "X86", "Compression", "CElfutils"]),
    .target(
      name: "ControlBlocks", dependencies: ["Memory", "X86", "Guest"],
      resources: vmcsLayouts.map { .embedInCode("VMX/Layouts/\($0).txt") } + [
        .embedInCode("VMX/VMCSFields.tsv")
      ], cSettings: cSettings, swiftSettings: swiftSettings),
    library("KVMHost", uses: ["Memory", "X86", "LinuxKernel", "ControlBlocks", "Guest"]),
    library(
      "QEMUProcess",
      uses: ["Memory", "X86", "LinuxKernel", "ControlBlocks", "Guest", "DumpFiles"]),
    library(
      "Output",
      uses: [
        "Memory", "Guest", "CShim", .product(name: "SystemPackage", package: "swift-system"),
      ]),
    library(
      "GuestVmcore",
      uses: [
        "Memory", "X86", "LinuxKernel", "Guest", "DumpFiles", "Output", "CDeflate",
        .product(name: "SystemPackage", package: "swift-system"),
      ]),
    library(
      "VMMCore",
      uses: ["Memory", "X86", "LinuxKernel", "Guest", "DumpFiles", "Output"]),
    .executableTarget(
      name: "vmcore-split",
      dependencies: [
        "Memory", "X86", "DumpFiles", "LinuxKernel", "ControlBlocks", "KVMHost", "QEMUProcess",
        "Guest", "GuestVmcore", "VMMCore", "Output", "CShim",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      cSettings: cSettings, swiftSettings: swiftSettings),

    .target(
      name: "SyntheticDumps", dependencies: ["Memory", "CLZO", "CSnappy", "CZlib", "CZstd"],
      path: "Tests/SyntheticDumps", cSettings: cSettings, swiftSettings: swiftSettings),
    .executableTarget(
      name: "bench-host",
      dependencies: [
        "DumpFiles", "Guest", "GuestVmcore", "Memory", "Output", "SyntheticDumps",
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      path: "Benchmarks/Host", cSettings: cSettings, swiftSettings: swiftSettings),
    tests(
      "DumpFilesTests",
      uses: [
        "DumpFiles", "Memory", "SyntheticDumps",
        .product(name: "SystemPackage", package: "swift-system"),
      ]),
    tests(
      "ControlBlocksTests", uses: ["ControlBlocks", "Guest", "Memory", "SyntheticDumps", "X86"]),
    tests("X86Tests", uses: ["X86", "Memory"]),
    tests("CompressionTests", uses: ["Compression", "SyntheticDumps"]),
    tests(
      "VMCSTests",
      uses: [
        "ControlBlocks", "KVMHost", "DumpFiles", "Guest", "LinuxKernel", "Memory", "X86",
        .product(name: "SystemPackage", package: "swift-system"),
      ]),
    tests(
      "SampleTests",
      uses: [
        "Memory", "X86", "LinuxKernel", "Guest", "ControlBlocks", "KVMHost", "DumpFiles",
        "GuestVmcore", "CZlib",
        .product(name: "SystemPackage", package: "swift-system"),
      ]),
    tests("LinuxKernelTests", uses: ["LinuxKernel", "Memory", "SyntheticDumps", "X86"]),
    tests(
      "KVMHostTests",
      uses: [
        "ControlBlocks", "KVMHost", "Guest", "LinuxKernel", "Memory", "SyntheticDumps", "X86",
      ]),
    tests("OutputTests", uses: ["Output", "Guest", "Memory"]),
    tests(
      "VMMCoreTests",
      uses: [
        "VMMCore", "Output", "KVMHost", "DumpFiles", "Guest", "LinuxKernel", "Memory",
        "SyntheticDumps", "X86", .product(name: "SystemPackage", package: "swift-system"),
      ]),
    tests(
      "QEMUProcessTests",
      uses: [
        "ControlBlocks", "QEMUProcess", "DumpFiles", "Guest", "LinuxKernel", "Memory",
        "SyntheticDumps", "X86",
        .product(name: "SystemPackage", package: "swift-system"),
      ]),
    .testTarget(
      name: "CommandTests",
      dependencies: [
        "vmcore-split", "DumpFiles", "Guest", "Memory", "SyntheticDumps", "X86",
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      exclude: ["Snapshots"], swiftSettings: swiftSettings),
  ]
)

// FUZZ=1 adds the program `fuzz` (Fuzz/run), and lets all code count where it comes along.
if Context.environment["FUZZ"] != nil {
  let sanitize = ["-sanitize=address,fuzzer"]
  for target in package.targets where target.type == .regular || target.type == .executable {
    target.swiftSettings?.append(.unsafeFlags(sanitize))
  }
  package.targets += [
    .target(name: "CFuzzer", path: "Fuzz/CFuzzer"),
    .executableTarget(
      name: "fuzz",
      dependencies: [
        "CFuzzer", "Compression", "ControlBlocks", "DumpFiles", "Guest", "GuestVmcore", "KVMHost",
        "LinuxKernel",
        "Memory", "QEMUProcess", "SyntheticDumps", "X86",
        .product(name: "SystemPackage", package: "swift-system"),
      ],
      path: "Fuzz/Targets", cSettings: cSettings,
      swiftSettings: swiftSettings + [.unsafeFlags(sanitize + ["-parse-as-library"])],
      // gold fails on the debug information of what counts where it comes along.
      linkerSettings: [.unsafeFlags(sanitize + ["-use-ld=lld"])]),
  ]
  package.products.append(.executable(name: "fuzz", targets: ["fuzz"]))
}
