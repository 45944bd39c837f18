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

#include <type_traits>

#include "formats/cache_codecs.h"
#include "kernels/cuda/attend.h"
#include "kernels/cuda/cell_codes.h"

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

// Pairs of numbers from words with halves 0, 1 and 2, 3.
__device__ __forceinline__ uint32_t low_pair(uint32_t a, uint32_t b) {
  return pick_bytes(a, b, 0x5410);
}
__device__ __forceinline__ uint32_t high_pair(uint32_t a, uint32_t b) {
  return pick_bytes(a, b, 0x7632);
}

// Scales or zeros of a thread's codes: of products k, the first and the second row, or, where they
// differ between steps, [0] of steps 0, 2 and [1] of steps 1, 3.
using FragmentParams = uint32_t[4];

// An array of scales or zeros, with `width` entries for a group of tokens.
struct ParamArray {
  const std::byte* data;
  int width;
  bool log8;
  bool aligned;  // to 8 bytes
};

// Four entries as binary16 numbers.
__device__ __forceinline__ Words2 read_params(const ParamArray& array, int64_t index) {
  if (!array.log8) {
    const std::byte* from = array.data + 2 * index;
    if (array.aligned) return load_words2(from);
    return {load_word(from), load_word(from + 4)};
  }
  const uint32_t stored = load_word(array.data + index);
  float scale[4];
  KVE_UNROLL
  for (int n = 0; n < 4; ++n) {
    scale[n] = decode_scale(ScaleFormat::log8, static_cast<uint16_t>(stored >> (8 * n) & 255u));
  }
  return {pack_halves(scale[0], scale[1]), pack_halves(scale[2], scale[3])};
}

// Whether the array runs along the lanes of cells, else along their steps.
__device__ __forceinline__ bool params_by_row(const SideFormat& format) {
  return format.by_token != format.values;
}

// Of an array with `width` entries for a group of tokens. `channel`: in the page.
__device__ __forceinline__ int64_t param_index(const SideFormat& format, int width, int token,
                                               int channel) {
  return format.by_token ? int64_t{channel / format.group} * kPageTokens + token
                         : int64_t{token / format.group} * width + channel;
}

// From an entry on: of the first lane where the array runs along them, else of the first step.
__device__ __forceinline__ void read_along(const ParamArray& array, int64_t index, bool by_row,
                                           FragmentParams* params) {
  const Words2 first = read_params(array, index);
  FragmentParams& out = *params;
  if (!by_row) {
    out[0] = low_pair(first.x, first.y);
    out[1] = high_pair(first.x, first.y);
    return;
  }
  const Words2 second = read_params(array, index + 8);
  out[0] = low_pair(first.x, second.x);
  out[1] = high_pair(first.x, second.x);
  out[2] = low_pair(first.y, second.y);
  out[3] = high_pair(first.y, second.y);
}

__device__ __forceinline__ void read_fragment_params(const SideFormat& format,
                                                     const ParamArray& array,
                                                     const FragmentPlace& place, int first_channel,
                                                     FragmentParams* params) {
  const int64_t index =
      format.values ? param_index(format, array.width, place.step, first_channel + place.lane)
                    : param_index(format, array.width, place.lane, first_channel + place.step);
  read_along(array, index, params_by_row(format), params);
}

// A page of codes that a head is part of.
struct CodedRows {
  const SideFormat* format;
  const std::byte* page;
  int first_channel;
  const uint16_t* table;  // as in find_levels()
};

// Multiplies numbers by the factors of a page, or adds its means.
__device__ __forceinline__ void apply_factors(const CodedRows& rows, const FragmentPlace& place,
                                              Fragments* out) {
  constexpr uint32_t kOnes = 0x3c003c00u;
  const SideFormat& format = *rows.format;
  const bool of_tokens = format.factors == Factors::of_tokens;
  // Lanes are channels of values, and tokens of keys.
  const bool by_row = of_tokens != format.values;
  const int first = by_row ? place.lane : place.step;
  FragmentParams factors{};
  read_along({rows.page + format.factors_at, 0, false, true},
             of_tokens ? first : rows.first_channel + first, by_row, &factors);
  const bool adds = format.factors == Factors::means;
  KVE_UNROLL
  for (int k = 0; k < 4; ++k) {
    KVE_UNROLL
    for (int w = 0; w < 4; ++w) {
      // Words 0 and 2 are of the first row, 0 and 1 of steps 0 and 2.
      const uint32_t of_row =
          w % 2 == 0 ? low_pair(factors[k], factors[k]) : high_pair(factors[k], factors[k]);
      const uint32_t factor = by_row ? of_row : factors[w / 2];
      uint32_t& word = (*out)[k][w];
      word = adds ? fma_halves(word, kOnes, factor) : fma_halves(word, factor, 0);
    }
  }
}

// Runs run(bits), an integral constant: the bits of all codes of these rows where loops over them
// are compiled for that number, else 0. The same for all threads of a warp.
template <class Run>
__device__ __forceinline__ void with_bits(const CodedRows& rows, const Run& run) {
  const bool alike = rows.page != nullptr && rows.format->strip_bits == nullptr;
  const int bits = alike ? rows.format->bits : 0;
  if (bits == 4) {
    run(std::integral_constant<int, 4>());
  } else if (bits == 2) {
    run(std::integral_constant<int, 2>());
  } else {
    run(std::integral_constant<int, 0>());
  }
}

// Numbers from the codes of a cell. kBits: as with_bits() gave it.
template <int kBits>
__device__ __forceinline__ void decode_cell(const CodedRows& rows, int strip,
                                            const FragmentPlace& place, Fragments* out) {
  const SideFormat& format = *rows.format;
  int bits = kBits > 0 ? kBits : format.bits;
  int before = strip * bits;
  if (kBits == 0 && format.strip_bits != nullptr) {
    before = format.strip_bits[strip];
    bits = format.strip_bits[strip + 1] - before;
  }
  const CellCodes codes =
      read_cell(rows.page + before * (kStripCodes / 8), bits, place.cell, place.half);
  FragmentParams scales{};
  FragmentParams zeros{};
  // Channels without codes have no scale.
  if (bits > 0) {
    read_fragment_params(format,
                         {rows.page + format.scales_at, format.coded_width, format.log8, true},
                         place, rows.first_channel, &scales);
  }
  if (format.has_zero) {
    // Behind scales of one byte for some of the channels zeros begin anywhere.
    const bool aligned = kBits > 0 || format.strip_bits == nullptr;
    read_fragment_params(format, {rows.page + format.zeros_at, format.width, false, aligned}, place,
                         rows.first_channel, &zeros);
  }
  const bool by_row = params_by_row(format);
  KVE_UNROLL
  for (int k = 0; k < 4; ++k) {
    const LevelPairs first = find_levels(codes.first[k], format.zero_level, rows.table);
    const LevelPairs second = find_levels(codes.second[k], format.zero_level, rows.table);
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
  if (format.factors != Factors::none) apply_factors(rows, place, out);
}

}  // namespace kve::cuda
