// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

/// The basic operations of jaxlab.systems.agatha.bops on bit patterns, by integers (IEEE-754
/// binary32, to nearest, ties to even; every NaN is 0x7fc00000). `flush` makes magnitudes of at most
/// 2**-126 zeros of their sign, before and after.
library SoftFloat {
  uint256 private constant NAN = 0x7fc00000;
  uint256 private constant INF = 0x7f800000;
  uint256 private constant SIGN = 0x80000000;
  uint256 private constant MAG = 0x7fffffff;
  uint256 private constant WORD = 0xffffffff;

  error UnknownBop();

  function canon(uint256 x, bool flush) private pure returns (uint256) {
    return flush && (x & MAG) <= 0x00800000 ? x & SIGN : x;
  }

  function isNan(uint256 x) private pure returns (bool) {
    return (x & MAG) > INF;
  }

  function bitLength(uint256 m) private pure returns (uint256 n) {
    unchecked {
      if (m >> 128 != 0) { m >>= 128; n += 128; }
      if (m >> 64 != 0) { m >>= 64; n += 64; }
      if (m >> 32 != 0) { m >>= 32; n += 32; }
      if (m >> 16 != 0) { m >>= 16; n += 16; }
      if (m >> 8 != 0) { m >>= 8; n += 8; }
      if (m >> 4 != 0) { m >>= 4; n += 4; }
      if (m >> 2 != 0) { m >>= 2; n += 2; }
      if (m >> 1 != 0) { m >>= 1; n += 1; }
      n += m;
    }
  }

  /// |x| = m * 2**e with 2**23 <= m < 2**24, or m = 0.
  function unpack(uint256 x) private pure returns (uint256 m, int256 e) {
    unchecked {
      uint256 field = (x >> 23) & 255;
      m = x & 0x7fffff;
      if (field != 0) return (m | 0x800000, int256(field) - 150);
      uint256 shift = 24 - bitLength(m);
      return (m << shift, -149 - int256(shift));
    }
  }

  /// The bits of m * 2**e, rounded once.
  function roundPack(uint256 sign, uint256 m, int256 e) private pure returns (uint256) {
    unchecked {
      if (m == 0) return sign << 31;
      int256 q = e + int256(bitLength(m)) - 24;
      if (q < -149) q = -149;
      if (q > 200) return (sign << 31) | INF;
      if (q > e) {
        uint256 shift = uint256(q - e);
        if (shift > 255) return sign << 31;
        uint256 kept = m >> shift;
        uint256 lost = m - (kept << shift);
        uint256 half = 1 << (shift - 1);
        if (lost > half || (lost == half && kept & 1 == 1)) kept++;
        m = kept;
      } else {
        m <<= uint256(e - q);
      }
      uint256 bits = (uint256(q + 149) << 23) + m;
      return (sign << 31) | (bits > INF ? INF : bits);
    }
  }

  function add(uint256 a, uint256 b) private pure returns (uint256) {
    unchecked {
      if (isNan(a) || isNan(b)) return NAN;
      if ((b & MAG) > (a & MAG)) (a, b) = (b, a);
      bool differ = (a ^ b) >> 31 == 1;
      if ((a & MAG) == INF) return (b & MAG) == INF && differ ? NAN : a;
      (uint256 m, int256 e) = unpack(a);
      (uint256 n, int256 f) = unpack(b);
      m <<= 32;
      n <<= 32;
      if (e > f) {
        uint256 gap = uint256(e - f);
        if (gap > 61) gap = 61;
        uint256 kept = n >> gap;
        n = kept | (kept << gap == n ? 0 : 1);
      }
      uint256 total = differ ? m - n : m + n;
      if (total == 0) return a == SIGN && b == SIGN ? SIGN : 0;
      return roundPack(a >> 31, total, e - 32);
    }
  }

  function mul(uint256 a, uint256 b) private pure returns (uint256) {
    unchecked {
      if (isNan(a) || isNan(b)) return NAN;
      uint256 sign = (a ^ b) >> 31;
      if ((a & MAG) == INF || (b & MAG) == INF) {
        return (a & MAG) == 0 || (b & MAG) == 0 ? NAN : (sign << 31) | INF;
      }
      (uint256 m, int256 e) = unpack(a);
      (uint256 n, int256 f) = unpack(b);
      return roundPack(sign, m * n, e + f);
    }
  }

  function div(uint256 a, uint256 b) private pure returns (uint256) {
    unchecked {
      if (isNan(a) || isNan(b)) return NAN;
      uint256 sign = (a ^ b) >> 31;
      if ((a & MAG) == INF) return (b & MAG) == INF ? NAN : (sign << 31) | INF;
      if ((b & MAG) == INF) return sign << 31;
      if ((b & MAG) == 0) return (a & MAG) == 0 ? NAN : (sign << 31) | INF;
      (uint256 m, int256 e) = unpack(a);
      (uint256 n, int256 f) = unpack(b);
      m <<= 64;
      uint256 quotient = m / n;
      return roundPack(sign, 2 * quotient + (quotient * n == m ? 0 : 1), e - f - 65);
    }
  }

  function sqrt(uint256 a) private pure returns (uint256) {
    unchecked {
      if (isNan(a)) return NAN;
      if ((a & MAG) == 0) return a;
      if (a >> 31 == 1) return NAN;
      if (a == INF) return a;
      (uint256 m, int256 e) = unpack(a);
      if (e & 1 != 0) { m <<= 1; e -= 1; }
      m <<= 64;
      uint256 root = (m >> 45) + (1 << 43) + 1;  // a tangent: not below the root
      for (uint256 next = (root + m / root) >> 1; next < root; next = (root + m / root) >> 1) {
        root = next;
      }
      return roundPack(0, 2 * root + (root * root == m ? 0 : 1), e / 2 - 33);
    }
  }

  /// Integers in the order of the numbers, -0 just below +0.
  function key(uint256 x) private pure returns (int256) {
    unchecked { return x >> 31 == 1 ? -1 - int256(x & MAG) : int256(x); }
  }

  function max(uint256 a, uint256 b) private pure returns (uint256) {
    if (isNan(a) || isNan(b)) return NAN;
    return key(a) >= key(b) ? a : b;
  }

  function neg(uint256 a) private pure returns (uint256) {
    return isNan(a) ? NAN : a ^ SIGN;
  }

  function eq(uint256 a, uint256 b) private pure returns (bool) {
    return !isNan(a) && !isNan(b) && (a == b || ((a | b) & MAG) == 0);
  }

  function lt(uint256 a, uint256 b) private pure returns (bool) {
    return !isNan(a) && !isNan(b) && ((a | b) & MAG) != 0 && key(a) < key(b);
  }

  /// |a| < 2**24 as an integer: how 0 cuts, 1 rounds to even, 2 rounds away from zero.
  function integer(uint256 a, uint256 how) private pure returns (uint256 kept) {
    unchecked {
      (uint256 m, int256 e) = unpack(a);
      uint256 right = e < -61 ? 61 : e < 0 ? uint256(-e) : 0;
      kept = m >> right;
      uint256 twice = 2 * (m - (kept << right));
      uint256 unit = 1 << right;
      bool even = twice > unit || (twice == unit && kept & 1 == 1);
      if ((how == 1 && even) || (how == 2 && twice > 0)) kept++;
    }
  }

  function integral(uint256 a, uint256 how) private pure returns (uint256) {
    if (isNan(a)) return NAN;
    return (a & MAG) >= 0x4b000000 ? a : roundPack(a >> 31, integer(a, how), 0);
  }

  function f2i(uint256 a) private pure returns (uint256 size) {
    unchecked {
      if (isNan(a)) return 0;
      (uint256 m, int256 e) = unpack(a);
      size = e > 0 ? m << uint256(e > 16 ? int256(16) : e) : integer(a, 0);
      bool negative = a >> 31 == 1;
      uint256 most = negative ? SIGN : MAG;
      if (size > most) size = most;
      if (negative) size = (0 - size) & WORD;
    }
  }

  function i2f(uint256 a) private pure returns (uint256) {
    unchecked { return roundPack(a >> 31, a >> 31 == 1 ? (1 << 32) - a : a, 0); }
  }

  function signed(uint256 x) private pure returns (int256) {
    return int256(int32(uint32(x)));
  }

  function ldexp2(uint256 a, uint256 k) private pure returns (uint256) {
    unchecked {
      if (isNan(a)) return NAN;
      if ((a & MAG) == INF) return a;
      int256 shift = signed(k);
      if (shift > 512) shift = 512;
      if (shift < -512) shift = -512;
      (uint256 m, int256 e) = unpack(a);
      return roundPack(a >> 31, m, e + shift);
    }
  }

  function imac(uint256 total, uint256 a, uint256 b) private pure returns (uint256) {
    unchecked { return uint64(total + uint256(signed(a) * signed(b))); }
  }

  function pack(uint256 total, uint256 a, uint256 b, uint256 bits) private pure returns (uint256) {
    unchecked {
      uint256 ea = (a >> 23) & 255;
      uint256 eb = (b >> 23) & 255;
      if (ea == 255 || eb == 255) return NAN;
      bool negative = total >> 63 == 1;
      if (negative) total = (1 << 64) - total;
      return roundPack(negative ? 1 : 0, total, int256(ea + eb) - 252 - 2 * int256(bits));
    }
  }

  function truth(bool x) private pure returns (uint256) {
    return x ? 1 : 0;
  }

  /// The operation with this code, see bops.py.
  function bop(uint256 code, uint256 a, uint256 b, uint256 c, uint256 d, bool flush)
      internal pure returns (uint256) {
    unchecked {
      if (code < 11 || (code >= 12 && code <= 16)) {
        if (code != 14) a = canon(a, flush);
        if (code < 11) b = canon(b, flush);
        if (code == 0) return canon(add(a, b), flush);
        if (code == 1) return canon(add(a, b ^ SIGN), flush);
        if (code == 2) return canon(mul(a, b), flush);
        if (code == 3) return canon(div(a, b), flush);
        if (code == 4) return canon(sqrt(a), flush);
        if (code == 5) return max(a, b);
        if (code == 6) return neg(max(neg(a), neg(b)));
        if (code == 7) return neg(a);
        if (code == 8) return truth(lt(a, b));
        if (code == 9) return truth(lt(a, b) || eq(a, b));
        if (code == 10) return truth(eq(a, b));
        if (code == 12) return integral(a, 1);
        if (code == 13) return integral(a, a >> 31 == 1 ? 2 : 0);
        if (code == 14) return i2f(a);
        if (code == 15) return f2i(a);
        return canon(ldexp2(a, b), flush);
      }
      if (code == 11) return a != 0 ? b : c;
      if (code == 17) return (a * b) & WORD;
      if (code == 18) return (a + b) & WORD;
      if (code == 19) return (a - b) & WORD;
      if (code == 20) return truth(signed(a) < signed(b));
      if (code == 21) return truth(a == b);
      if (code == 22) return a & b;
      if (code == 23) return a | b;
      if (code == 24) return a ^ b;
      if (code == 25) return b > 31 ? 0 : (a << b) & WORD;
      if (code == 26) return b > 31 ? 0 : a >> b;
      if (code == 27) return (a & MAG) > (b & MAG) ? a & MAG : b & MAG;
      if (code == 28) return imac(a, b, c);
      if (code == 29) return canon(pack(a, b, c, d), flush);
      revert UnknownBop();
    }
  }
}
