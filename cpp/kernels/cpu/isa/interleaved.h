// The layout that weights are repacked to at load: tiles of 16 rows in which one 64-byte line holds
// 4 consecutive values of each row, so that a vector lane is a row, inputs are broadcast 4 values
// at a time and nothing is summed across lanes. A tile keeps the bytes of its rows (codes, scales
// and minima as in the file, hardly more) in blocks of 256 columns, the last of which may be
// shorter: pieces that are read from start to end, so that memory sees one stream.
//
// Each type is a kind of code lines and a kind of scales:
//   Codes   kGroups     groups of 32 columns in a step
//           kLines      lines of 64 bytes in a step
//           kSmall      codes are unsigned, below 128, and mean code - kZero; else as `dot_bytes`
//           word(step, v, g, j)   codes 4j ... 4j + 3 of group g, for rows v * kLanes ...
//   Scales  kParts      scales per group: 1, or 2 for halves of 16 columns
//           kMin        whether there are minima
//           kHasOffsets whether kFloatStart * scale is finite (dots.h)
//           scale(block, i, v), minimum(block, g, v)   of part i = kParts * g + half
#pragma once

#include "formats/weight/iq4_xs.h"
#include "formats/weight/mxfp4.h"
#include "formats/weight/q4_0.h"
#include "formats/weight/q4_1.h"
#include "formats/weight/q4_k.h"
#include "formats/weight/q5_0.h"
#include "formats/weight/q5_1.h"
#include "formats/weight/q5_k.h"
#include "formats/weight/q6_k.h"
#include "formats/weight/q8_0.h"
#include "kernels/cpu/isa/isa.h"

namespace kve::KVE_ISA {

constexpr int kTileRows = kInterleavedRows;
constexpr int kLineBytes = 4 * kTileRows;
constexpr int kTileVectors = kTileRows / kLanes;

namespace {

constexpr int64_t kBlockGroups = 8;

// Parts of a block, each with one entry per row; empty where a type has none.
struct BlockView {
  std::byte* units;   // [16] binary16, then as many for the minima
  std::byte* scales;  // [groups * kParts][16]
  std::byte* mins;    // [groups][16]
  std::byte* codes;   // [steps][kLines][16][4]
};

// Of a block of at most kBlockGroups groups of 32 columns.
template <class Type>
constexpr int64_t bytes_before_codes(int64_t groups) {
  using Scales = typename Type::Scales;
  constexpr int64_t kSides = Scales::kMin ? 2 : 1;
  constexpr int64_t kUnits = Scales::kUnits ? kSides * kTileRows * 2 : 0;
  constexpr int64_t kGroup = (Scales::kParts + kSides - 1) * kTileRows * Scales::kBytes;
  return (kUnits + groups * kGroup + kLineBytes - 1) / kLineBytes * kLineBytes;
}
template <class Type>
constexpr int64_t block_bytes(int64_t groups) {
  using Codes = typename Type::Codes;
  return bytes_before_codes<Type>(groups) + groups / Codes::kGroups * Codes::kLines * kLineBytes;
}
template <class Type>
constexpr int64_t tile_bytes(int64_t cols) {
  const int64_t full = cols / 32 / kBlockGroups;
  const int64_t rest = cols / 32 % kBlockGroups;
  return full * block_bytes<Type>(kBlockGroups) + (rest > 0 ? block_bytes<Type>(rest) : 0);
}

template <class Type>
inline BlockView view_block(std::byte* data, int64_t groups) {
  using Scales = typename Type::Scales;
  BlockView block;
  block.units = data;
  block.scales = data + (Scales::kUnits ? (Scales::kMin ? 2 : 1) * kTileRows * 2 : 0);
  block.mins = block.scales + groups * Scales::kParts * kTileRows * Scales::kBytes;
  block.codes = data + bytes_before_codes<Type>(groups);
  return block;
}

static inline I32 line(const std::byte* step, int index, int v) {
  return load_i32(step + index * kLineBytes + v * kLanes * 4);
}
static inline I32 low_nibbles(I32 a) { return a & set_bytes(15); }
static inline I32 high_nibbles(I32 a) { return shift_right(a, 4) & set_bytes(15); }

// Word j of a line: columns 4j.. in the low nibbles, 16 + 4j.. in the high ones.
template <int kZeroPoint>
struct NibbleCodes {
  static constexpr int kGroups = 1;
  static constexpr int kLines = 4;
  static constexpr bool kSmall = true;
  static constexpr int kZero = kZeroPoint;
  [[gnu::always_inline]] static inline I32 word(const std::byte* step, int v, int /*g*/, int j) {
    const I32 both = line(step, j % 4, v);
    return j < 4 ? low_nibbles(both) : high_nibbles(both);
  }
};

// The same; a fifth line holds bit 4 of columns 4j + b at bit j of byte b.
template <int kZeroPoint>
struct FiveBitCodes {
  static constexpr int kGroups = 1;
  static constexpr int kLines = 5;
  static constexpr bool kSmall = true;
  static constexpr int kZero = kZeroPoint;
  [[gnu::always_inline]] static inline I32 word(const std::byte* step, int v, int g, int j) {
    const I32 bits = line(step, 4, v);
    const I32 moved = j < 4 ? shift_left(bits, 4 - j) : shift_right(bits, j - 4);
    return NibbleCodes<0>::word(step, v, g, j) | (moved & set_bytes(16));
  }
};

// As NibbleCodes, but the nibbles are indices.
template <int8_t (*kValue)(int)>
struct TableCodes {
  static constexpr int kGroups = 1;
  static constexpr int kLines = 4;
  static constexpr bool kSmall = false;
  static constexpr int kZero = 0;
  struct Table {
    int8_t values[16];
  };
  static constexpr Table table() {
    Table t{};
    for (int i = 0; i < 16; ++i) t.values[i] = static_cast<int8_t>(kValue(i) + kDotBias);
    return t;
  }
  [[gnu::always_inline]] static inline I32 word(const std::byte* step, int v, int g, int j) {
    static constexpr Table kTable = table();
    return lookup_bytes(kTable.values, NibbleCodes<0>::word(step, v, g, j));
  }
};

struct ByteCodes {
  static constexpr int kGroups = 1;
  static constexpr int kLines = 8;
  static constexpr bool kSmall = false;
  static constexpr int kZero = 0;
  [[gnu::always_inline]] static inline I32 word(const std::byte* step, int v, int /*g*/, int j) {
    return line(step, j, v);
  }
};

// Q4_K: word j of a line: columns 4j.. of an even group in the low nibbles, of the next group in
// the high ones.
struct PairCodes {
  static constexpr int kGroups = 2;
  static constexpr int kLines = 8;
  static constexpr bool kSmall = true;
  static constexpr int kZero = 0;
  [[gnu::always_inline]] static inline I32 word(const std::byte* step, int v, int g, int j) {
    const I32 both = line(step, j, v);
    return g == 0 ? low_nibbles(both) : high_nibbles(both);
  }
};

// Q5_K: the lines of four pairs, then bit 4 of group g at bit g in 8 lines.
struct PairFiveBitCodes {
  static constexpr int kGroups = 8;
  static constexpr int kLines = 40;
  static constexpr bool kSmall = true;
  static constexpr int kZero = 0;
  [[gnu::always_inline]] static inline I32 word(const std::byte* step, int v, int g, int j) {
    const I32 bits = line(step, 32 + j, v);
    const I32 moved = g < 4 ? shift_left(bits, 4 - g) : shift_right(bits, g - 4);
    const I32 low = PairCodes::word(step + g / 2 * 8 * kLineBytes, v, g % 2, j);
    return low | (moved & set_bytes(16));
  }
};

// Q6_K, half a block: 16 lines of nibbles, then 8 with the two upper bits of group g at bit 2g.
struct SixBitCodes {
  static constexpr int kGroups = 4;
  static constexpr int kLines = 24;
  static constexpr bool kSmall = true;
  static constexpr int kZero = 32;
  [[gnu::always_inline]] static inline I32 word(const std::byte* step, int v, int g, int j) {
    const I32 both = line(step, g % 2 * 8 + j, v);
    const I32 bits = line(step, 16 + j, v);
    const I32 high = g < 2 ? shift_left(bits, 4 - 2 * g) : shift_right(bits, 2 * g - 4);
    return (g < 2 ? low_nibbles(both) : high_nibbles(both)) | (high & set_bytes(0x30));
  }
};

// A binary16 scale per group, and a minimum if kMinima.
template <bool kMinima>
struct HalfScales {
  static constexpr bool kUnits = false;
  static constexpr bool kMin = kMinima;
  static constexpr bool kHasOffsets = true;
  static constexpr int kParts = 1;
  static constexpr int kBytes = 2;
  static F32 scale(const BlockView& block, int64_t i, int v) { return at(block.scales, i, v); }
  static F32 minimum(const BlockView& block, int64_t g, int v) { return at(block.mins, g, v); }

 private:
  static F32 at(const std::byte* data, int64_t i, int v) {
    return load_f16(reinterpret_cast<const uint16_t*>(data) + i * kTileRows + v * kLanes);
  }
};

// A power of two per group, as bfloat16.
struct PowerScales {
  static constexpr bool kUnits = false;
  static constexpr bool kMin = false;
  static constexpr bool kHasOffsets = false;
  static constexpr int kParts = 1;
  static constexpr int kBytes = 2;
  static F32 scale(const BlockView& block, int64_t i, int v) {
    return load_bf16(reinterpret_cast<const uint16_t*>(block.scales) + i * kTileRows + v * kLanes);
  }
  static F32 minimum(const BlockView&, int64_t, int) { return zero(); }
};

// The unit of the scales (side 0) or of the minima.
static inline F32 unit(const BlockView& block, int side, int v) {
  return load_f16(reinterpret_cast<const uint16_t*>(block.units) + side * kTileRows + v * kLanes);
}

// Whole numbers below 64 in units of a binary16 number per block; the minima are subtracted.
struct KScales {
  static constexpr bool kUnits = true;
  static constexpr bool kMin = true;
  static constexpr bool kHasOffsets = true;
  static constexpr int kParts = 1;
  static constexpr int kBytes = 1;
  static F32 scale(const BlockView& block, int64_t i, int v) {
    return at(block.scales, i, v) * unit(block, 0, v);
  }
  static F32 minimum(const BlockView& block, int64_t g, int v) {
    return zero() - at(block.mins, g, v) * unit(block, 1, v);
  }

 private:
  static F32 at(const std::byte* data, int64_t i, int v) {
    return load_u8(reinterpret_cast<const uint8_t*>(data) + i * kTileRows + v * kLanes);
  }
};

// Signed whole numbers, kPartsPerGroup of them, in such units.
template <int kPartsPerGroup>
struct SignedScales {
  static constexpr bool kUnits = true;
  static constexpr bool kMin = false;
  static constexpr bool kHasOffsets = true;
  static constexpr int kParts = kPartsPerGroup;
  static constexpr int kBytes = 1;
  static F32 scale(const BlockView& block, int64_t i, int v) {
    const auto* numbers = reinterpret_cast<const int8_t*>(block.scales);
    return load_i8(numbers + i * kTileRows + v * kLanes) * unit(block, 0, v);
  }
  static F32 minimum(const BlockView&, int64_t, int) { return zero(); }
};

template <class B, class C, class S>
struct InterleavedType {
  using Block = B;
  using Codes = C;
  using Scales = S;
};

}  // namespace

// Calls use(InterleavedType{}) for a type that has such a layout; false for the others.
template <class Use>
static inline bool with_interleaved(WeightType type, const Use& use) {
  switch (type) {
    case WeightType::q4_0:
      return use(InterleavedType<BlockQ4_0, NibbleCodes<8>, HalfScales<false>>{}), true;
    case WeightType::q4_1:
      return use(InterleavedType<BlockQ4_1, NibbleCodes<0>, HalfScales<true>>{}), true;
    case WeightType::q5_0:
      return use(InterleavedType<BlockQ5_0, FiveBitCodes<16>, HalfScales<false>>{}), true;
    case WeightType::q5_1:
      return use(InterleavedType<BlockQ5_1, FiveBitCodes<0>, HalfScales<true>>{}), true;
    case WeightType::q8_0:
      return use(InterleavedType<BlockQ8_0, ByteCodes, HalfScales<false>>{}), true;
    case WeightType::q4_k:
      return use(InterleavedType<BlockQ4_K, PairCodes, KScales>{}), true;
    case WeightType::q5_k:
      return use(InterleavedType<BlockQ5_K, PairFiveBitCodes, KScales>{}), true;
    case WeightType::q6_k:
      return use(InterleavedType<BlockQ6_K, SixBitCodes, SignedScales<2>>{}), true;
    case WeightType::iq4_nl:
      return use(InterleavedType<BlockIQ4_NL, TableCodes<iq4_value>, HalfScales<false>>{}), true;
    case WeightType::iq4_xs:
      return use(InterleavedType<BlockIQ4_XS, TableCodes<iq4_value>, SignedScales<1>>{}), true;
    case WeightType::mxfp4:
      return use(InterleavedType<BlockMXFP4, TableCodes<mxfp4_value>, PowerScales>{}), true;
    default:
      return false;
  }
}

}  // namespace kve::KVE_ISA
