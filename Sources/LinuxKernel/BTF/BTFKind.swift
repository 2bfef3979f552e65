/// What a type of BTF is (include/uapi/linux/btf.h: `BTF_KIND_*`).
public enum BTFKind: UInt8, Hashable, Sendable {
  /// No type: what `void *` points at.
  case void = 0
  case integer = 1
  case pointer = 2
  case array = 3
  case structure = 4
  case union = 5
  case enumeration = 6
  /// A structure or union that is named but not defined.
  case forward = 7
  case typedef = 8
  case volatile = 9
  case const = 10
  case restrict = 11
  case function = 12
  case functionPrototype = 13
  case variable = 14
  case dataSection = 15
  case float = 16
  case declarationTag = 17
  case typeTag = 18
  /// Since 6.0 (6089fb325cf7).
  case enumeration64 = 19
  /// A kind defined after this was written.
  case unknown = 255
}

/// The sizes of what follows the first twelve bytes of a type's record: once, and per element
/// (`vlen` of them).
struct BTFLayout: Hashable, Sendable {
  var single: Int
  var element: Int

  /// The kinds that are known here, by number.
  static let known: [BTFLayout] = [
    BTFLayout(single: 0, element: 0),  // void
    BTFLayout(single: 4, element: 0),  // integer
    BTFLayout(single: 0, element: 0),  // pointer
    BTFLayout(single: 12, element: 0),  // array: struct btf_array
    BTFLayout(single: 0, element: 12),  // structure: struct btf_member
    BTFLayout(single: 0, element: 12),  // union
    BTFLayout(single: 0, element: 8),  // enumeration: struct btf_enum
    BTFLayout(single: 0, element: 0),  // forward
    BTFLayout(single: 0, element: 0),  // typedef
    BTFLayout(single: 0, element: 0),  // volatile
    BTFLayout(single: 0, element: 0),  // const
    BTFLayout(single: 0, element: 0),  // restrict
    BTFLayout(single: 0, element: 0),  // function: vlen is its linkage
    BTFLayout(single: 0, element: 8),  // function prototype: struct btf_param
    BTFLayout(single: 4, element: 0),  // variable: struct btf_var
    BTFLayout(single: 0, element: 12),  // data section: struct btf_var_secinfo
    BTFLayout(single: 0, element: 0),  // float
    BTFLayout(single: 4, element: 0),  // declaration tag: struct btf_decl_tag
    BTFLayout(single: 0, element: 0),  // type tag
    BTFLayout(single: 0, element: 12),  // enumeration64: struct btf_enum64
  ]
}
