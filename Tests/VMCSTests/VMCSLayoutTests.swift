import Testing

@testable import ControlBlocks
@testable import KVMHost

@Suite struct VMCSLayoutTests {
  @Test func `the database holds every published layout`() {
    let counts = VMCSLayoutDatabase.layouts.map { ($0.revision ?? 0, $0.fields.count) }
    #expect(counts.count == 10)
    #expect(Set(counts.map(\.0)) == [1, 4, 13, 14, 15, 16, 18, 0x2b, 0x11e5_7ed0, 0x4000_0001])
    #expect(counts.allSatisfy { $0.1 > 100 })
  }

  @Test(arguments: VMCSLayoutDatabase.layouts)
  func `a region written by a layout reads as what was put in`(_ layout: VMCSLayout) throws {
    for form in [VMCSLayout.AccessRightsForm.plain, .rotated, .packed] {
      var layout = layout
      layout.accessRights = form
      var region = [UInt8](repeating: 0, count: 4096)
      var expected: [VMCSField: UInt64] = [:]
      // Each field by itself: some layouts let the halves of a field overlap the whole.
      for field in layout.fields {
        guard case .bytes(let offset, let size) = layout.place(of: field) else { continue }
        var value = UInt64(field.encoding) &* 0x9e37_79b9_7f4a_7c15
        if size < 8 { value &= (1 << UInt64(size * 8)) - 1 }
        // Access rights have 16 bits of attributes, 8-11 reserved, and "unusable".
        if field.isAccessRights { value &= size == 2 || form == .packed ? 0x1_f0ff : 0x1_ffff }
        if field.isAccessRights, size == 2, form != .packed { value &= 0xffff }
        let stored =
          field.isAccessRights ? UInt64(form.encode(UInt32(truncatingIfNeeded: value))) : value
        if field.isAccessRights, size == 2, stored > 0xffff { continue }
        region.replaceSubrange(
          0..<4096, with: repeatElement(0, count: 4096))
        for index in 0..<size {
          region[offset + index] = UInt8(truncatingIfNeeded: stored >> (8 * UInt64(index)))
        }
        expected[field] = value
        #expect(layout.value(of: field, in: region) == value, "\(field.name ?? "")")
      }
      #expect(expected.count > 100)
    }
  }

  @Test(arguments: VMCSLayoutDatabase.layouts)
  func `a layout that was written out reads as it was`(_ layout: VMCSLayout) throws {
    let region = (0..<4096).map { UInt8(truncatingIfNeeded: $0 &* 167 ^ $0 >> 5) }
    for form in VMCSLayout.AccessRightsForm.allCases {
      var layout = layout
      layout.accessRights = form
      let copy = try #require(VMCSLayout(text: layout.text, origin: ""))
      #expect(copy.revision == layout.revision && copy.fields == layout.fields)
      for field in layout.fields where !(field.isAccessRights && layout.isNarrow(field)) {
        #expect(copy.value(of: field, in: region) == layout.value(of: field, in: region))
      }
    }
  }

  @Test func `a note reads as its text does`() throws {
    let text = Array("VMCSINFO/1\nOFF(681e)=8:0xc08\nEND\n".utf8)
    let head: [UInt8] = [9, 0, 0, 0, UInt8(text.count), 0, 0, 0, 0, 0, 0, 0]
    let name = Array("VMCSINFO\0\0\0\0".utf8)
    for note in [text, head + name + text, head + name + text + [0, 0, 0, 7]] {
      let layout = try #require(VMCSLayout(contents: note, origin: ""))
      #expect(layout.fields == [.rip] && layout.offset(of: .rip) == 0xc08)
    }
    #expect(VMCSLayout(contents: head + name, origin: "") == nil)
    #expect(VMCSLayout(contents: [], origin: "") == nil)
  }

  @Test func `a line that was cut off is not read`() throws {
    let layout = try #require(
      VMCSLayout(text: "VMCSINFO/1\nOFF(681e)=8:0xc08\nOFF(6820)=8:0xc", origin: ""))
    #expect(layout.fields == [.rip])
  }

  @Test func `a field beyond the end of a region has no value`() throws {
    let layout = try #require(
      VMCSLayout(text: "VMCSINFO/1\nOFF(681e)=8:0xffc\nOFF(6820)=8:0x10\n", origin: ""))
    let region = [UInt8](repeating: 1, count: 4096)
    #expect(layout.value(of: .rip, in: region) == nil)
    #expect(layout.value(of: .rflags, in: region) == 0x0101_0101_0101_0101)
    #expect(layout.value(of: .rflags, in: []) == nil)
  }

  // MARK: The note of 2012

  /// What the series' first mail shows of /sys/kernel/vmcsinfo on a Core 2 Duo E7500.
  private static let sample2012 = """
    REVISION_ID=d
    FIELD(PIN_BASED_VM_EXEC_CONTROL)=01840180
    FIELD(CPU_BASED_VM_EXEC_CONTROL)=01940190
    FIELD(SECONDARY_VM_EXEC_CONTROL)=0fe40fe0
    FIELD(VM_EXIT_CONTROLS)=01e401e0
    FIELD(VM_ENTRY_CONTROLS)=03140310
    FIELD(GUEST_ES_SELECTOR)=0500

    """

  @Test func `the sample of 2012 tells the offsets of the Penryn layout`() throws {
    let note = try #require(VMCSLayout(text: Self.sample2012, origin: "the mail"))
    #expect(note.revision == 13)
    #expect(note.fields.count == 6)
    let penryn = try #require(VMCSLayoutDatabase.layouts(for: 13).first)
    for field in note.fields {
      #expect(note.place(of: field) == penryn.place(of: field), "\(field.name ?? "")")
    }
  }

  @Test func `indexes are told from plain offsets`() throws {
    for offset in stride(from: 0, through: 4094, by: 2) {
      let low = UInt64(FilledIndex.encode(offset))
      let high = UInt64(FilledIndex.encode(offset + 2))
      #expect(FilledIndex.offset(high << 16 | low, size: 4) == offset)
      #expect(FilledIndex.offset(low, size: 2) == offset)
      // Words that do not follow on are no index.
      #expect(FilledIndex.offset(low << 16 | low, size: 4) == nil)
    }
    let plain = try #require(
      VMCSLayout(text: "REVISION_ID=d\nFIELD(GUEST_CR3)=0000000000000230\n", origin: ""))
    #expect(plain.place(of: .cr3) == .bytes(offset: 0x230, size: 8))
  }

  @Test func `access rights read rotated tell their place and their form`() throws {
    let layout = try #require(
      VMCSLayout(text: "REVISION_ID=d\nFIELD(GUEST_ES_AR_BYTES)=28052c05\n", origin: ""))
    #expect(layout.place(of: VMCSField(0x4814)) == .bytes(offset: 0x114, size: 4))
    #expect(layout.accessRights == .rotated)
  }

  // MARK: VMCSINFO/1

  @Test func `bits stored apart are put together`() throws {
    // Bit 0 of the value in bit 15 of the region's byte 0x10, bit 1 not stored, bit 2 in bit 0.
    let layout = try #require(
      VMCSLayout(text: "VMCSINFO/1\nREVISION=0x2b\nBITS(4814)=4:008f,ffff,0080\nEND", origin: ""))
    var region = [UInt8](repeating: 0, count: 64)
    region[0x10] = 1
    #expect(layout.value(of: VMCSField(0x4814), in: region) == 4)
    region[0x11] = 0x80
    #expect(layout.value(of: VMCSField(0x4814), in: region) == 5)
  }

  @Test(arguments: [
    "", "VMCSINFO/1", "VMCSINFO/1\nEND", "nothing of the kind", "FIELD()=", "OFF(=",
    "VMCSINFO/1\nOFF(",
    "VMCSINFO/1\nOFF(681e)=8:0xffffffffffffffff", "VMCSINFO/1\nBITS(4814)=4:x",
    "REVISION_ID=zz\nFIELD(NO_SUCH_FIELD)=0000",
  ])
  func `a text without a field is no layout`(_ text: String) {
    #expect(VMCSLayout(text: text, origin: "") == nil)
  }

  @Test func `the form of access rights is detected`() throws {
    let penryn = try #require(VMCSLayoutDatabase.layouts(for: 13).first)
    for form in [VMCSLayout.AccessRightsForm.plain, .rotated] {
      var region = [UInt8](repeating: 0, count: 4096)
      for encoding in stride(from: UInt32(0x4814), through: 0x4822, by: 2) {
        guard case .bytes(let offset, _) = penryn.place(of: VMCSField(encoding)) else { continue }
        let stored = form.encode(encoding == 0x4822 ? 0x8b : 0xa09b)
        for index in 0..<4 {
          region[offset + index] = UInt8(truncatingIfNeeded: stored >> (8 * UInt32(index)))
        }
      }
      #expect(penryn.withAccessRights(fitting: [region]).accessRights == form)
    }
  }
}

extension VMCSLayout {
  /// True if a table tells two bytes of a field of which four are read: its form is then packed.
  fileprivate func isNarrow(_ field: VMCSField) -> Bool {
    if case .bytes(_, 2) = place(of: field) { accessRights != .packed } else { false }
  }
}
