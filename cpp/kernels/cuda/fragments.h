// Cached rows as operands of the tensor cores, straight from the bytes of pages.
//
// The strips of a page (formats/cache/strips.h) fit the fragments of mma.m16n8k16 without any
// exchange between threads, because the order of what a product sums over and the order of its rows
// are free. With g = lane / 4 and i = lane % 4, and h = g % 2, a thread takes from a cell the codes
// of its lanes 4h + k and 4h + k + 8, k = 0..3: 16 bytes of nibbles in one load. Product k then
// has the lanes of threads' first codes as rows 0..7 and of their second as rows 8..15, and steps
// (0, 2) and (1, 3) of the cell as a thread's four columns.
//   keys    rows are tokens: cell g / 2, of strip i of four, so 64 tokens and 16 channels in four
//           products
//   values  rows are channels: cell i of the strip of channel block g / 2, of four blocks, so 64
//           channels and 16 tokens in four products
#pragma once

#include "formats/cache_codecs.h"
#include "kernels/cuda/attend.h"
#include "kernels/cuda/warp.h"

namespace kve::cuda {

// Of four products: [product][word of A].
using Fragments = uint32_t[4][4];

// Which rows (lanes of a cell) and columns (steps) of four products a thread holds.
struct FragmentPlace {
  int cell;
  int half;  // h above
  int lane;  // first of the page's tokens (keys) or of the head's channels (values)
  int step;  // first of the head's channels (keys) or of the page's tokens (values)
};

// Bytes 0, 2 and 1, 3 of a word become pairs of numbers 1024 + byte.
constexpr uint32_t kMagicHalves = 0x64006400u;

// Pairs of numbers from words with halves 0, 1 and 2, 3.
__device__ __forceinline__ uint32_t low_pair(uint32_t a, uint32_t b) {
  return pick_bytes(a, b, 0x5410);
}
__device__ __forceinline__ uint32_t high_pair(uint32_t a, uint32_t b) {
  return pick_bytes(a, b, 0x7632);
}

// Codes, one to a byte, of four steps of lanes 4h + k and 4h + k + 8.
struct CellCodes {
  uint32_t first[4];
  uint32_t second[4];
};

// `bits` is the same for all threads.
__device__ __forceinline__ CellCodes read_cell(const std::byte* strip, int bits, int cell,
                                               int half) {
  if (bits == 8) {
    const Words4 a = load_words4(strip + cell * 64 + half * 16);
    const Words4 b = load_words4(strip + cell * 64 + half * 16 + 32);
    return {{a.x, a.y, a.z, a.w}, {b.x, b.y, b.z, b.w}};
  }
  CellCodes codes{};
  if ((bits & 4) != 0) {
    const Words4 words = load_words4(strip + cell * 32 + half * 16);
    const uint32_t nibbles[4] = {words.x, words.y, words.z, words.w};
    KVE_UNROLL
    for (int k = 0; k < 4; ++k) {
      codes.first[k] = nibbles[k] & 0x0f0f0f0fu;
      codes.second[k] = nibbles[k] >> 4 & 0x0f0f0f0fu;
    }
  }
  const std::byte* pair_plane = strip + (bits & 4) * 32;
  if ((bits & 2) != 0) {
    const Words4 words = load_words4(pair_plane + cell * 16);
    const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
    KVE_UNROLL
    for (int k = 0; k < 4; ++k) {
      codes.first[k] |= (pairs[k] >> (2 * half) & 0x03030303u) << (bits & 4);
      codes.second[k] |= (pairs[k] >> (2 * half + 4) & 0x03030303u) << (bits & 4);
    }
  }
  if ((bits & 1) != 0) {
    const Words2 words = load_words2(pair_plane + (bits & 2) * 32 + cell * 8);
    // Bit n of four bits to byte n.
    KVE_UNROLL
    for (int k = 0; k < 4; ++k) {
      const int at = 16 * half + 4 * k;
      codes.first[k] |= ((words.x >> at & 15u) * 0x00204081u & 0x01010101u) << (bits & 6);
      codes.second[k] |= ((words.y >> at & 15u) * 0x00204081u & 0x01010101u) << (bits & 6);
    }
  }
  return codes;
}

// Levels of four codes, of steps 0, 2 and 1, 3. `table`: of 256 binary16 levels, where the coding
// has no line of them.
struct LevelPairs {
  uint32_t even;
  uint32_t odd;
};
__device__ __forceinline__ LevelPairs find_levels(uint32_t codes, uint32_t zero_level,
                                                  const uint16_t* table) {
  const uint32_t even = codes & 0x00ff00ffu;
  const uint32_t odd = codes >> 8 & 0x00ff00ffu;
  if (table == nullptr) {
    return {sub_halves(even | kMagicHalves, zero_level),
            sub_halves(odd | kMagicHalves, zero_level)};
  }
  return {table[even & 255u] | static_cast<uint32_t>(table[even >> 16]) << 16,
          table[odd & 255u] | static_cast<uint32_t>(table[odd >> 16]) << 16};
}

// Scales or zeros of a thread's codes: of products k, the first and the second row, or, where they
// differ between steps, [0] of steps 0, 2 and [1] of steps 1, 3.
using FragmentParams = uint32_t[4];

// Four entries of an array of scales or zeros as binary16 numbers.
__device__ __forceinline__ Words2 read_params(const std::byte* array, int64_t index, bool log8) {
  if (!log8) return load_words2(array + 2 * index);
  const uint32_t stored = load_word(array + index);
  float scale[4];
  KVE_UNROLL
  for (int n = 0; n < 4; ++n) {
    scale[n] = decode_scale(ScaleFormat::log8, static_cast<uint16_t>(stored >> (8 * n) & 255u));
  }
  return {pack_halves(scale[0], scale[1]), pack_halves(scale[2], scale[3])};
}

// Whether the array runs along the lanes of cells, else along their steps.
__device__ __forceinline__ bool params_by_row(const SideRows& side) {
  return side.format.by_token != side.format.values;
}

__device__ __forceinline__ int64_t param_index(const SideRows& side, int token, int channel) {
  const int absolute = side.first_channel + channel;
  return side.format.by_token ? int64_t{absolute / side.format.group} * kPageTokens + token
                              : int64_t{token / side.format.group} * side.format.width + absolute;
}

__device__ __forceinline__ void read_fragment_params(const SideRows& side, const std::byte* array,
                                                     bool log8, const FragmentPlace& place,
                                                     FragmentParams* params) {
  const bool values = side.format.values;
  const int64_t index = values ? param_index(side, place.step, place.lane)
                               : param_index(side, place.lane, place.step);
  const Words2 first = read_params(array, index, log8);
  FragmentParams& out = *params;
  if (!params_by_row(side)) {
    out[0] = low_pair(first.x, first.y);
    out[1] = high_pair(first.x, first.y);
    return;
  }
  const Words2 second = read_params(array, index + 8, log8);
  out[0] = low_pair(first.x, second.x);
  out[1] = high_pair(first.x, second.x);
  out[2] = low_pair(first.y, second.y);
  out[3] = high_pair(first.y, second.y);
}

// Numbers from the codes of a cell.
__device__ __forceinline__ void decode_cell(const SideRows& side, const std::byte* page,
                                            int64_t strip, const FragmentPlace& place,
                                            const uint16_t* table, Fragments* out) {
  const int bits = side.format.bits;
  const CellCodes codes =
      read_cell(page + strip * bits * (kStripCodes / 8), bits, place.cell, place.half);
  FragmentParams scales{};
  FragmentParams zeros{};
  read_fragment_params(side, page + side.format.scales_at, side.format.log8, place, &scales);
  if (side.format.has_zero) {
    read_fragment_params(side, page + side.format.zeros_at, false, place, &zeros);
  }
  const bool by_row = params_by_row(side);
  KVE_UNROLL
  for (int k = 0; k < 4; ++k) {
    const LevelPairs first = find_levels(codes.first[k], side.format.zero_level, table);
    const LevelPairs second = find_levels(codes.second[k], side.format.zero_level, table);
    uint32_t* a = (*out)[k];
    if (by_row) {
      const uint32_t scale1 = low_pair(scales[k], scales[k]);
      const uint32_t scale2 = high_pair(scales[k], scales[k]);
      const uint32_t zero1 = low_pair(zeros[k], zeros[k]);
      const uint32_t zero2 = high_pair(zeros[k], zeros[k]);
      a[0] = fma_halves(first.even, scale1, zero1);
      a[1] = fma_halves(second.even, scale2, zero2);
      a[2] = fma_halves(first.odd, scale1, zero1);
      a[3] = fma_halves(second.odd, scale2, zero2);
    } else {
      a[0] = fma_halves(first.even, scales[0], zeros[0]);
      a[1] = fma_halves(second.even, scales[0], zeros[0]);
      a[2] = fma_halves(first.odd, scales[1], zeros[1]);
      a[3] = fma_halves(second.odd, scales[1], zeros[1]);
    }
  }
}

// Four consecutive values of a row of floats as binary16 numbers.
__device__ __forceinline__ Words2 read_four(const std::byte* row, int channel, bool is_bf16) {
  const Words2 words = load_words2(row + 2 * channel);
  if (!is_bf16) return words;
  return {pack_halves(bf16_to_float(static_cast<uint16_t>(words.x & 0xffffu)),
                      bf16_to_float(static_cast<uint16_t>(words.x >> 16))),
          pack_halves(bf16_to_float(static_cast<uint16_t>(words.y & 0xffffu)),
                      bf16_to_float(static_cast<uint16_t>(words.y >> 16)))};
}

// Rows of floats of a tile of 64 tokens: token t of those in [first, end) is at data + t * stride.
struct FloatRows {
  const std::byte* data;
  int64_t stride;  // bytes
  int first;
  int end;
  bool is_bf16;
};

__device__ __forceinline__ Words2 read_four(const FloatRows& rows, int token, int channel) {
  if (token < rows.first || token >= rows.end) return {0, 0};
  return read_four(rows.data + token * rows.stride, channel, rows.is_bf16);
}

__device__ __forceinline__ void key_fragments(const FloatRows& rows, const FragmentPlace& place,
                                              Fragments* out) {
  KVE_UNROLL
  for (int k = 0; k < 4; ++k) {
    const Words2 first = read_four(rows, place.lane + k, place.step);
    const Words2 second = read_four(rows, place.lane + k + 8, place.step);
    uint32_t* a = (*out)[k];
    a[0] = low_pair(first.x, first.y);
    a[1] = low_pair(second.x, second.y);
    a[2] = high_pair(first.x, first.y);
    a[3] = high_pair(second.x, second.y);
  }
}

__device__ __forceinline__ void value_fragments(const FloatRows& rows, const FragmentPlace& place,
                                                Fragments* out) {
  Words2 first[4];
  Words2 second[4];
  KVE_UNROLL
  for (int n = 0; n < 4; ++n) {
    first[n] = read_four(rows, place.step + n, place.lane);
    second[n] = read_four(rows, place.step + n, place.lane + 8);
  }
  KVE_UNROLL
  for (int n = 0; n < 2; ++n) {  // steps 0, 2 and 1, 3
    (*out)[0][2 * n] = low_pair(first[n].x, first[n + 2].x);
    (*out)[1][2 * n] = high_pair(first[n].x, first[n + 2].x);
    (*out)[2][2 * n] = low_pair(first[n].y, first[n + 2].y);
    (*out)[3][2 * n] = high_pair(first[n].y, first[n + 2].y);
    (*out)[0][2 * n + 1] = low_pair(second[n].x, second[n + 2].x);
    (*out)[1][2 * n + 1] = high_pair(second[n].x, second[n + 2].x);
    (*out)[2][2 * n + 1] = low_pair(second[n].y, second[n + 2].y);
    (*out)[3][2 * n + 1] = high_pair(second[n].y, second[n + 2].y);
  }
}

}  // namespace kve::cuda
