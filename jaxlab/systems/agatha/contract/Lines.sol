// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

/// Reads the packed lines of jaxlab.systems.agatha.graph: how many basic operations an output element
/// takes, and where each of them reads. Addresses are computed, never stored.
library Lines {
  uint256 private constant MOVE = 0;
  uint256 private constant MAP = 1;
  uint256 private constant DOT = 2;
  uint256 private constant REDUCE = 3;
  // Codes of basic operations.
  uint256 private constant ADD = 0;
  uint256 private constant MUL = 2;
  uint256 private constant IMAC = 28;
  uint256 private constant PACK = 29;
  // What a step reads.
  uint256 internal constant LITERAL = 0;
  uint256 internal constant STEP = 1;
  uint256 internal constant ELEMENT = 2;

  error BadLine();

  struct Layout {
    uint256 kind;
    uint256 dtype;
    uint256 rank;
    uint256 outer;
    uint256 inner;
    uint256 sizesAt;
    uint256 operands;
    uint256 operandsAt;
    uint256 operandSize;
    uint256 bodyAt;
    uint256 terms;
  }

  /// kind LITERAL: value; STEP: value is its number; ELEMENT: of operand `value`, at address `at`.
  struct Ref {
    uint256 kind;
    uint256 value;
    uint256 at;
  }

  function u8(bytes calldata line, uint256 at) private pure returns (uint256) {
    return uint8(line[at]);
  }

  function u32(bytes calldata line, uint256 at) private pure returns (uint256) {
    return uint32(bytes4(line[at:at + 4]));
  }

  function i32(bytes calldata line, uint256 at) private pure returns (int256) {
    return int256(int32(uint32(bytes4(line[at:at + 4]))));
  }

  function layout(bytes calldata line) internal pure returns (Layout memory l) {
    l.kind = u8(line, 0);
    l.dtype = u8(line, 1);
    l.rank = u8(line, 2);
    uint256 at = 3 + 4 * l.rank;
    l.outer = u8(line, at);
    l.inner = u8(line, at + 1);
    l.sizesAt = at + 2;
    at = l.sizesAt + 4 * (l.outer + l.inner);
    l.operands = u8(line, at);
    l.operandsAt = at + 1;
    l.operandSize = 9 + 4 * (l.outer + l.inner) + (l.kind == MOVE ? 12 * l.outer : 0);
    l.bodyAt = l.operandsAt + l.operands * l.operandSize;
    l.terms = 1;
    for (uint256 i = 0; i < l.inner; i++) l.terms *= u32(line, l.sizesAt + 4 * (l.outer + i));
  }

  /// Whether the output has this shape, 8 bytes a dimension.
  function hasShape(bytes calldata line, Layout memory l, bytes calldata dims)
      internal pure returns (bool) {
    if (dims.length != 8 * l.rank) return false;
    for (uint256 i = 0; i < l.rank; i++) {
      if (uint64(bytes8(dims[8 * i:8 * i + 8])) != u32(line, 3 + 4 * i)) return false;
    }
    return true;
  }

  /// Number of output elements.
  function size(bytes calldata line, Layout memory l) internal pure returns (uint256 n) {
    n = 1;
    for (uint256 i = 0; i < l.rank; i++) n *= u32(line, 3 + 4 * i);
  }

  /// Source and number of an operand.
  function operand(bytes calldata line, Layout memory l, uint256 j)
      internal pure returns (uint256 source, uint256 number) {
    uint256 at = l.operandsAt + j * l.operandSize;
    return (u8(line, at), u32(line, at + 1));
  }

  /// The address of operand j for output element o and term k, and whether it is within its bounds.
  function locate(bytes calldata line, Layout memory l, uint256 j, uint256 o, uint256 k)
      private pure returns (bool inside, uint256) {
    uint256 base = l.operandsAt + j * l.operandSize + 5;
    int256 at = i32(line, base);
    inside = true;
    for (uint256 d = l.outer + l.inner; d > 0; d--) {
      uint256 i = d - 1;
      uint256 n = u32(line, l.sizesAt + 4 * i);
      int256 index;
      if (i >= l.outer) {
        index = int256(k % n);
        k /= n;
      } else {
        index = int256(o % n);
        o /= n;
        if (l.kind == MOVE) {
          uint256 bound = base + 4 + 4 * (l.outer + l.inner) + 12 * i;
          int256 step = i32(line, bound + 8);
          index -= i32(line, bound);
          if (index < 0 || index >= i32(line, bound + 4) - i32(line, bound) || index % step != 0) {
            inside = false;
          }
          index /= step;
        }
      }
      at += index * i32(line, base + 4 + 4 * i);
    }
    return (inside, inside ? uint256(at) : 0);
  }

  function element(bytes calldata line, Layout memory l, uint256 j, uint256 o, uint256 k)
      private pure returns (Ref memory) {
    (, uint256 at) = locate(line, l, j, o, k);
    return Ref(ELEMENT, j, at);
  }

  function width(uint256 terms) private pure returns (uint256 w) {
    for (w = 1; w < terms; w *= 2) {}
  }

  /// Basic operations of an output element; 0 where it is only moved.
  function steps(bytes calldata line, Layout memory l) internal pure returns (uint256) {
    if (l.kind == MOVE) return 0;
    if (l.kind == MAP) return u8(line, l.bodyAt);
    if (l.kind == DOT) return 2 * l.terms;
    if (l.kind == REDUCE) return width(l.terms) - 1;
    return l.terms + 1;
  }

  /// Where the element o of a line without basic operations comes from.
  function origin(bytes calldata line, Layout memory l, uint256 o)
      internal pure returns (Ref memory) {
    for (uint256 j = 0; j < l.operands; j++) {
      (bool inside, uint256 at) = locate(line, l, j, o, 0);
      if (inside) return Ref(ELEMENT, j, at);
    }
    revert BadLine();
  }

  /// The operation of step s of element o and what it reads.
  function step(bytes calldata line, Layout memory l, uint256 o, uint256 s)
      internal pure returns (uint256 code, Ref[4] memory refs, uint256 count) {
    if (l.kind == MAP) return mapStep(line, l, o, s);
    if (l.kind == REDUCE) return reduceStep(line, l, o, s);
    if (l.kind == DOT) {
      if (s % 2 == 0) {
        refs[0] = element(line, l, 0, o, s / 2);
        refs[1] = element(line, l, 1, o, s / 2);
        return (MUL, refs, 2);
      }
      refs[0] = s == 1 ? Ref(LITERAL, 0, 0) : Ref(STEP, s - 2, 0);
      refs[1] = Ref(STEP, s - 1, 0);
      return (ADD, refs, 2);
    }
    refs[0] = s == 0 ? Ref(LITERAL, 0, 0) : Ref(STEP, s - 1, 0);
    if (s < l.terms) {
      refs[1] = element(line, l, 0, o, s);
      refs[2] = element(line, l, 1, o, s);
      return (IMAC, refs, 3);
    }
    refs[1] = element(line, l, 2, o, 0);
    refs[2] = element(line, l, 3, o, 0);
    refs[3] = Ref(LITERAL, u8(line, l.bodyAt), 0);
    return (PACK, refs, 4);
  }

  function mapStep(bytes calldata line, Layout memory l, uint256 o, uint256 s)
      private pure returns (uint256 code, Ref[4] memory refs, uint256 count) {
    uint256 at = l.bodyAt + 1 + 16 * s;
    code = u8(line, at);
    count = 3;
    for (uint256 i = 0; i < 3; i++) {
      uint256 kind = u8(line, at + 1 + 5 * i);
      uint256 value = u32(line, at + 2 + 5 * i);
      refs[i] = kind == ELEMENT ? element(line, l, value, o, 0) : Ref(kind, value, 0);
    }
  }

  /// Level by level: of a level of 2w values, value i is the operation of values i and i + w.
  function reduceStep(bytes calldata line, Layout memory l, uint256 o, uint256 s)
      private pure returns (uint256 code, Ref[4] memory refs, uint256 count) {
    uint256 w = width(l.terms) / 2;
    uint256 first = 0;
    uint256 previous = 0;
    bool leaves = true;
    while (s >= first + w) {
      previous = first;
      first += w;
      w /= 2;
      leaves = false;
    }
    for (uint256 side = 0; side < 2; side++) {
      uint256 i = s - first + side * w;
      if (!leaves) refs[side] = Ref(STEP, previous + i, 0);
      else if (i < l.terms) refs[side] = element(line, l, 0, o, i);
      else refs[side] = Ref(LITERAL, u32(line, l.bodyAt + 1), 0);
    }
    return (u8(line, l.bodyAt), refs, 2);
  }
}
