// The layout of quantized weights in device memory. Rows follow one another; a row of n groups of
// 32 values is
//   codes   [n][16] nibbles, value i in the low one of byte i and value i + 16 in the high one; or
//           [n][32] bytes
//   extra   higher bits of the codes: [n][4], bit i of value i; or [n][2] words, in word j bits
//           2 f of byte s of value 16 j + 4 f + s
//   params  [n][2 or 4] what scales a group
//   units   [n / 8][4] two binary16 numbers that params of 8 groups count in
// with every part, and the row, on a multiple of 16 bytes. value = scale * code + bias.
#pragma once

#include "formats/weight_formats.h"
#include "kernels/cuda/warp.h"

namespace kve::cuda {

struct PackedLayout {
  int code_bytes;  // 0: the type is not packed
  int extra_bytes;
  int param_bytes;
  bool has_units;
  int offset;  // added to the type's codes where they are stored
};

KVE_HD constexpr PackedLayout packed_layout(WeightType type) {
  switch (type) {
    case WeightType::q4_0:
      return {16, 0, 2, false, 8};
    case WeightType::q4_1:
      return {16, 0, 4, false, 0};
    case WeightType::q5_0:
      return {16, 4, 2, false, 16};
    case WeightType::q5_1:
      return {16, 4, 4, false, 0};
    case WeightType::q8_0:
      return {32, 0, 2, false, 0};
    case WeightType::q4_k:
      return {16, 0, 2, true, 0};
    case WeightType::q5_k:
      return {16, 4, 2, true, 0};
    case WeightType::q6_k:
      return {16, 8, 2, true, 32};
    default:
      return {0, 0, 0, false, 0};
  }
}

// Byte offsets within a row.
struct PackedRow {
  int64_t extra;
  int64_t params;
  int64_t units;
  int64_t end;
};
KVE_HD constexpr PackedRow packed_row(const PackedLayout& layout, int64_t groups) {
  PackedRow row{};
  row.extra = groups * layout.code_bytes;
  row.params = row.extra + (groups * layout.extra_bytes + 15) / 16 * 16;
  row.units = row.params + (groups * layout.param_bytes + 15) / 16 * 16;
  row.end = row.units + (layout.has_units ? (groups / 8 * 4 + 15) / 16 * 16 : 0);
  return row;
}

// Codes of a group, four to a word: values 4 w.. and 16 + 4 w.. .
struct GroupWords {
  uint32_t low[4];
  uint32_t high[4];
};

// Bits 0..3 of `bits` to bit 4 of bytes 0..3.
__device__ __forceinline__ uint32_t spread_fifth_bits(uint32_t bits) {
  return ((bits & 15u) * 0x00204081u & 0x01010101u) << 4;
}
// Codes of 6 bits around 32, as int8.
__device__ __forceinline__ uint32_t centre_codes(uint32_t codes) {
  return ((codes | 0x80808080u) - 0x20202020u) ^ 0x80808080u;
}

// Words w of a group, from the words where their codes and extra bits are.
template <WeightType kType>
__device__ __forceinline__ void unpack_words(uint32_t nibbles, Words2 extra, int w, uint32_t* low,
                                             uint32_t* high) {
  *low = nibbles & 0x0f0f0f0fu;
  *high = nibbles >> 4 & 0x0f0f0f0fu;
  if (packed_layout(kType).extra_bytes == 4) {
    *low |= spread_fifth_bits(extra.x >> (4 * w));
    *high |= spread_fifth_bits(extra.x >> (4 * w + 16));
  }
  if (packed_layout(kType).extra_bytes == 8) {
    *low = centre_codes(*low | (extra.x >> (2 * w) & 0x03030303u) << 4);
    *high = centre_codes(*high | (extra.y >> (2 * w) & 0x03030303u) << 4);
  }
}

template <WeightType kType>
__device__ __forceinline__ Words2 load_extra(const std::byte* row, const PackedRow& at,
                                             int64_t group) {
  constexpr int kBytes = packed_layout(kType).extra_bytes;
  if (kBytes == 4) return {load_word(row + at.extra + 4 * group), 0};
  if (kBytes == 8) return load_words2(row + at.extra + 8 * group);
  return {0, 0};
}

template <WeightType kType>
__device__ __forceinline__ GroupWords load_group(const std::byte* row, const PackedRow& at,
                                                 int64_t group) {
  GroupWords words;
  if (packed_layout(kType).code_bytes == 32) {
    const Words4 low = load_words4(row + 32 * group);
    const Words4 high = load_words4(row + 32 * group + 16);
    return {{low.x, low.y, low.z, low.w}, {high.x, high.y, high.z, high.w}};
  }
  const Words4 codes = load_words4(row + 16 * group);
  const Words2 extra = load_extra<kType>(row, at, group);
  const uint32_t nibbles[4] = {codes.x, codes.y, codes.z, codes.w};
  KVE_UNROLL
  for (int w = 0; w < 4; ++w) {
    unpack_words<kType>(nibbles[w], extra, w, &words.low[w], &words.high[w]);
  }
  return words;
}

// Words w of a group alone.
template <WeightType kType>
__device__ __forceinline__ void load_group_words(const std::byte* row, const PackedRow& at,
                                                 int64_t group, int w, uint32_t* low,
                                                 uint32_t* high) {
  if (packed_layout(kType).code_bytes == 32) {
    *low = load_word(row + 32 * group + 4 * w);
    *high = load_word(row + 32 * group + 16 + 4 * w);
    return;
  }
  unpack_words<kType>(load_word(row + 16 * group + 4 * w), load_extra<kType>(row, at, group), w,
                      low, high);
}

// The two scales differ for Q6_K only, which has no bias.
struct GroupScales {
  float first;
  float second;
  float bias;
};
template <WeightType kType>
__device__ __forceinline__ GroupScales load_scales(const std::byte* row, const PackedRow& at,
                                                   int64_t group) {
  constexpr PackedLayout kLayout = packed_layout(kType);
  if (kLayout.has_units) {
    const uint32_t pair = *reinterpret_cast<const uint16_t*>(row + at.params + 2 * group);
    const uint32_t units = load_word(row + at.units + group / 8 * 4);
    if (kType == WeightType::q6_k) {
      const float unit = low_half(units);
      return {unit * static_cast<float>(static_cast<int8_t>(pair & 255u)),
              unit * static_cast<float>(static_cast<int8_t>(pair >> 8)), 0};
    }
    const float scale = low_half(units) * static_cast<float>(pair & 255u);
    return {scale, scale, -(high_half(units) * static_cast<float>(pair >> 8))};
  }
  if (kLayout.param_bytes == 4) {
    const uint32_t params = load_word(row + at.params + 4 * group);
    return {low_half(params), low_half(params), high_half(params)};
  }
  const uint32_t stored = *reinterpret_cast<const uint16_t*>(row + at.params + 2 * group);
  const float scale = low_half(stored);
  return {scale, scale, -scale * static_cast<float>(kLayout.offset)};
}

}  // namespace kve::cuda
