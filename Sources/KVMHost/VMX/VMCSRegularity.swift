import ControlBlocks
import Memory

/// How published layouts arrange their fields. A rule is used where at least as many places as
/// `needed` show it and none speaks against it; what it predicts must be free, and among the places
/// that the field's own evidence leaves.
enum VMCSRegularity {
  static func extend(_ solver: inout VMCSSolver) {
    var before = -1
    while before != solver.placed.count {
      before = solver.placed.count
      addKnown(&solver)
      addSegments(&solver)
      addRows(&solver)
      addNeighbours(&solver)
    }
  }

  /// Another processor's layout: 127 of 127 fields that both tell are the same for Haswell and
  /// Skylake, 125 of 125 for Nehalem and Sandy Bridge.
  private static func addKnown(_ solver: inout VMCSSolver) {
    for layout in solver.known {
      let places = solver.placed.compactMap { field, place in
        layout.offset(of: field).map { $0 == place.offset }
      }
      guard places.count >= 24, !places.contains(false),
        solver.open.allSatisfy({ field, choice in
          layout.offset(of: field).map(choice.offsets.contains) ?? true
        })
      else { continue }
      if solver.accessRights == nil { solver.accessRights = layout.accessRights }
      for field in layout.fields {
        guard let offset = layout.offset(of: field), let size = layout.storedSize(of: field) else {
          continue
        }
        solver.place(
          field, at: offset, size: size,
          "as in the \(layout.origin), with which \(places.count) of \(places.count) fields agree")
      }
      return
    }
  }

  /// The parts of a segment lie at the same distances for all eight, in every published layout but
  /// those of software.
  private static func addSegments(_ solver: inout VMCSSolver) {
    let parts: [(field: (Int) -> VMCSField, size: Int?)] = [
      (VMCSField.selector, 2), (VMCSField.limit, 4),
      (VMCSField.accessRights, solver.accessRights?.size), (VMCSField.base, 8),
    ]
    for first in parts.indices {
      for second in parts.indices where second != first {
        guard let size = parts[second].size else { continue }
        let places = (0..<8).map { segment in
          (
            solver.placed[parts[first].field(segment)]?.offset,
            solver.placed[parts[second].field(segment)]?.offset
          )
        }
        let distances = places.compactMap { pair in
          pair.0.flatMap { from in pair.1.map { $0 - from } }
        }
        guard distances.count >= 2, Set(distances).count == 1 else { continue }
        for (segment, pair) in places.enumerated() {
          guard let from = pair.0, pair.1 == nil else { continue }
          solver.place(
            parts[second].field(segment), at: from + distances[0], size: size,
            "lies as far from the segment's other part as in \(distances.count) other segments")
        }
      }
    }
  }

  /// Layouts of emulators and other software are rows: all fields of a group at one distance.
  private static func addRows(_ solver: inout VMCSSolver) {
    let rows = Row.all(of: solver)
    let proper = rows.filter { $0.fields.count >= 3 }
    guard proper.count >= 5, proper.allSatisfy(\.isStraight),
      rows.filter({ $0.fields.count == 2 }).allSatisfy(\.isStraight)
    else { return }
    let count = proper.reduce(0) { $0 + $1.fields.count }
    for row in proper {
      // Which control fields a processor has depends on what it can do; of the others it has
      // the first ones.
      guard row.group & 3 != 0, let step = row.step, let anchor = row.fields.first,
        let last = row.fields.last
      else { continue }
      for field in VMCSField.known where field.group == row.group && field.index <= last.index {
        let isRights = field.isAccessRights
        guard !isRights || solver.accessRights != nil else { continue }
        solver.place(
          field, at: anchor.offset + (field.index - anchor.index) * step,
          size: isRights ? solver.accessRights?.size ?? 4 : field.size,
          "lies in a row, as \(count) of \(count) other fields do")
      }
    }
  }

  /// Fields that follow each other in number mostly follow each other in place: decides between
  /// places that a field's own evidence leaves.
  private static func addNeighbours(_ solver: inout VMCSSolver) {
    let rows = Row.all(of: solver)
    let steps = rows.flatMap { row in
      zip(row.fields, row.fields.dropFirst())
        .filter { $0.index + 1 == $1.index }.map { ($0.size, $1.offset - $0.offset) }
    }
    for (field, choice) in solver.open.sorted(by: { $0.key < $1.key }) {
      let ofSize = steps.filter { $0.0 == choice.size }.map(\.1)
      let usual = Dictionary(grouping: ofSize) { $0 }.max { $0.value.count < $1.value.count }
      guard let step = usual?.key, let count = usual?.value.count, step >= choice.size,
        count >= 4, count * 4 >= ofSize.count * 3
      else { continue }
      let neighbours = [(-2, step), (2, -step)].compactMap { distance, back in
        solver.placed[VMCSField(UInt32(Int(field.encoding) + distance))].map { $0.offset + back }
      }
      let likely = Set(neighbours).intersection(choice.offsets)
      guard likely.count == 1, let offset = likely.first else { continue }
      solver.place(
        field, at: offset, size: choice.size,
        "follows its neighbour as \(count) of \(ofSize.count) fields do")
    }
  }

  /// The placed fields of one group, by number.
  private struct Row {
    let group: UInt32
    let fields: [(index: Int, offset: Int, size: Int)]

    static func all(of solver: VMCSSolver) -> [Row] {
      Dictionary(grouping: solver.placed) { $0.key.group }.map { group, fields in
        Row(
          group: group,
          fields: fields.map { ($0.key.index, $0.value.offset, $0.value.size) }
            .sorted { $0.0 < $1.0 })
      }.sorted { $0.group < $1.group }
    }

    /// The distance of two fields that follow each other in number.
    var step: Int? {
      guard let first = fields.first, let last = fields.last, last.index > first.index,
        (last.offset - first.offset) % (last.index - first.index) == 0
      else { return nil }
      return (last.offset - first.offset) / (last.index - first.index)
    }

    var isStraight: Bool {
      guard let step, step > 0, let first = fields.first else { return false }
      return fields.allSatisfy { $0.offset == first.offset + ($0.index - first.index) * step }
    }
  }
}
