#include "kernels/cpu/isa/strip_tiles.h"

#include <math.h>

#include "kernels/cpu/isa/page_params.h"
#include "kernels/cpu/isa/strip_params.h"

namespace kve::KVE_ISA {

constexpr int64_t kTokens = kAttendTile;
constexpr float kTableBias = 128;  // makes its entries unsigned

namespace {

// What belongs to the 16 lanes and 4 steps of a cell: a vector of parameters for lanes, or one
// number for each step.
struct CellParams {
  const float* scale;
  const float* zero;
  bool of_lanes;
  const float* factor;
  bool factor_of_lanes;
  StripFactors factors;
};

}  // namespace

static int64_t most_params(int width) { return round_up(width, 16) * (kTokens / 16); }

int64_t strip_tile_floats(int width) {
  // Per channel, or one group of tokens for each 16 channels; bits of their own need offsets.
  return 2 * most_params(width) + round_up(width, 16) + kTokens + round_up(width, 16);
}

static float offset_of(const StripSide& side, int64_t channel) {
  if (side.levels == StripLevels::table) return kTableBias;
  if (side.levels == StripLevels::code) return 0;
  const int bits = side.strip_bits == nullptr ? side.bits : side.strip_bits[channel / 4];
  return bits == 0 ? 0.0f : static_cast<float>(1 << (bits - 1));
}

float round_entries(const StripSide& side, int8_t* table) {
  const int64_t n = int64_t{1} << side.bits;
  F32 most = zero();
  for (int64_t i = 0; i < n; i += kLanes) {
    most = max(most, abs(load_n(side.table + i, least(n - i, kLanes))));
  }
  const float top = max_of(most);
  const float unit = top > 0 ? top / 127 : 1.0f;
  for (int64_t i = 0; i < 16; i += kLanes) {
    const F32 levels = i < n ? load_n(side.table + i, least(n - i, kLanes)) : zero();
    store_i8(table + i, to_i32(round_even(levels / set(unit))));
  }
  return unit;
}

// The same without signs, if there is a table.
static float round_table(const StripSide& side, int8_t* table) {
  if (side.levels != StripLevels::table) return 1;
  const float unit = round_entries(side, table);
  for (int i = 0; i < 16; ++i) {
    table[i] = static_cast<int8_t>(static_cast<uint8_t>(table[i] + static_cast<int>(kTableBias)));
  }
  return unit;
}

PageParams load_page_params(const StripSide& side, const PageView& page, float* scratch) {
  const int64_t padded = round_up(side.width, 16);
  PageParams params = {side, padded, scratch, scratch + most_params(side.width), nullptr, {}};
  params.factor = params.zero + most_params(side.width);
  float* offsets = params.factor + (padded > kTokens ? padded : kTokens);
  for (int64_t c = 0; c < padded; ++c) {
    offsets[c] = 0.0f - offset_of(side, c < side.width ? c : side.width - 1);
  }
  const float unit = round_table(side, params.table);
  for (int64_t g = 0; g < param_groups(params); ++g) {
    float* scale = params.scale + g * param_stride(params);
    float* zeros = params.zero + g * param_stride(params);
    if (side.per_channel) {
      load_params<kLanes>(param_row(side, page.data, g, 0, side.width), side.scale_bytes, unit,
                          padded, offsets, scale, zeros);
    } else {
      load_params<0>(param_row(side, page.data, g, 0, page.rows), side.scale_bytes, unit, kTokens,
                     offsets, scale, zeros);
    }
  }
  if (side.factors != StripFactors::none) {
    const bool of_tokens = side.factors == StripFactors::scale_tokens;
    const int64_t n = of_tokens ? kTokens : side.width;
    const ParamRow row = {page.data + side.factor_offset, nullptr, n, 0};
    load_params<0>(row, 2, 1.0f, of_tokens ? kTokens : padded, offsets, params.factor, nullptr);
  }
  return params;
}

// ---- cells ----

static inline F32 param_at(const float* from, bool of_lanes, int lane, int step) {
  return of_lanes ? load(from + lane) : set(from[step]);
}

// The values of a cell; `to` is its first lane of its first step, rows of elements `stride` apart.
__attribute__((always_inline)) static inline void put_cell(const Cell& w, const CellParams& params,
                                                           bool rounded, float* to,
                                                           int64_t stride) {
#pragma GCC unroll 4
  for (int i = 0; i < kCellVectors; ++i) {
    const int lane = kLanes * i;
    F32 values[4];
#pragma GCC unroll 4
    for (int step = 0; step < 4; ++step) {
      const F32 raw = to_f32(shift_right(w[i], 8 * step) & set_i32(255));
      values[step] = fma(raw, param_at(params.scale, params.of_lanes, lane, step),
                         param_at(params.zero, params.of_lanes, lane, step));
    }
    if (params.factors != StripFactors::none) {
#pragma GCC unroll 4
      for (int step = 0; step < 4; ++step) {
        const F32 factor = param_at(params.factor, params.factor_of_lanes, lane, step);
        values[step] = params.factors == StripFactors::add_channels ? values[step] + factor
                                                                    : values[step] * factor;
      }
    }
#if defined(KVE_BF16_DOT)
    if (rounded) {
      store(to + lane, pair_bf16(values[0], values[1]));
      store(to + lane + stride, pair_bf16(values[2], values[3]));
      continue;
    }
#endif
    (void)rounded;
#pragma GCC unroll 4
    for (int step = 0; step < 4; ++step) store(to + lane + step * stride, values[step]);
  }
}

// Where the parameters of a cell are, with its first channel and token.
template <bool kKeys>
static inline CellParams cell_params(const PageParams& params, int64_t channel, int64_t token) {
  const StripSide& side = params.side;
  const int64_t group = side.per_channel ? token / side.group : channel / side.group;
  const int64_t at = group * param_stride(params) + (side.per_channel ? channel : token);
  const bool factor_of_tokens = side.factors == StripFactors::scale_tokens;
  // Lanes of keys are tokens, and steps are channels.
  return {params.scale + at,         params.zero + at,
          side.per_channel != kKeys, params.factor + (factor_of_tokens ? token : channel),
          factor_of_tokens == kKeys, side.factors};
}

template <int kBits, bool kTable>
__attribute__((noinline)) static void put_key_strip(const PageParams& params,
                                                    const std::byte* strip, int64_t channel,
                                                    bool rounded, float* to) {
  for (int cell = 0; cell < 4; ++cell) {
    Cell w;
    raw_cell<kBits, kTable>(strip, cell, params.table, w);
    put_cell(w, cell_params<true>(params, channel, 16 * cell), rounded, to + 16 * cell, kTokens);
  }
}

template <int kBits, bool kTable>
__attribute__((noinline)) static void put_value_strip(const PageParams& params,
                                                      const std::byte* strip, int64_t channel,
                                                      int64_t token, bool rounded, float* to,
                                                      int64_t stride) {
  const int64_t step = (rounded ? 2 : 4) * stride;
  for (int cell = 0; cell < 4; ++cell, to += step) {
    Cell w;
    raw_cell<kBits, kTable>(strip, cell, params.table, w);
    put_cell(w, cell_params<false>(params, channel, token + 4 * cell), rounded, to, stride);
  }
}

void key_elements(const StripSide& side, const PageView& page, bool rounded, float* elements,
                  float* scratch) {
  const PageParams params = load_page_params(side, page, scratch);
  const std::byte* strip = page.data + side.code_offset;
  const int64_t step = (rounded ? 2 : 4) * kTokens;
  for (int s = 0; s < key_strips(side.width); ++s, elements += step) {
    const int bits = side.strip_bits == nullptr ? side.bits : side.strip_bits[s];
    if (bits == 0) {
      Cell none = {};
      for (I32& vector : none) vector = set_i32(0);
      for (int cell = 0; cell < 4; ++cell) {
        put_cell(none, cell_params<true>(params, 4 * s, 16 * cell), rounded, elements + 16 * cell,
                 kTokens);
      }
      continue;
    }
    with_code_bits(bits, side.levels == StripLevels::table, [&]<int kBits, bool kTable>() {
      put_key_strip<kBits, kTable>(params, strip, 4 * s, rounded, elements);
    });
    strip += 32 * bits;
  }
}

void value_elements(const StripSide& side, const PageView& page, bool rounded, float* elements,
                    int64_t stride, float* scratch) {
  const PageParams params = load_page_params(side, page, scratch);
  const std::byte* strip = page.data + side.code_offset;
  const int64_t step = (rounded ? 8 : 16) * stride;
  with_code_bits(side.bits, side.levels == StripLevels::table, [&]<int kBits, bool kTable>() {
    for (int64_t b = 0; b < value_strips(side.width) / 4; ++b) {
      for (int64_t t = 0; t < 4; ++t, strip += 32 * kBits) {
        put_value_strip<kBits, kTable>(params, strip, 16 * b, 16 * t, rounded,
                                       elements + t * step + 16 * b, stride);
      }
    }
  });
}

}  // namespace kve::KVE_ISA
