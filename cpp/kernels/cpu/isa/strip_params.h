// Parameters of pages of strips as floats.
#pragma once

#include "formats/cache/strips.h"
#include "kernels/cpu/isa/isa.h"
#include "kernels/cpu/strip_args.h"

namespace kve::KVE_ISA {

// Logarithmic scales: the bits of a float, a power of two and three bits of mantissa.
static inline F32 log_scales(I32 codes) {
  const F32 scale = as_f32(shift_left(codes + set_i32((127 - 18) << 3), 20));
  return select(less(set(0x1p-18f), scale), scale, zero());  // the least one stands for 0
}
// Entries [i, i + kLanes) of n, zero past the last one.
static inline F32 load_scales(const std::byte* from, int32_t scale_bytes, int64_t i, int64_t n) {
  if (i >= n) return zero();
  const bool whole = i + kLanes <= n;
  if (scale_bytes == 1) {
    const auto* logs = reinterpret_cast<const uint8_t*>(from) + i;
    return log_scales(whole ? widen_u8(logs) : widen_u8_n(logs, n - i));
  }
  const auto* halves = reinterpret_cast<const uint16_t*>(from) + i;
  return whole ? load_f16(halves) : load_f16_n(halves, n - i);
}

namespace {

// Parameters that lie side by side: n_scales scales and n_zeros zeros.
struct ParamRow {
  const std::byte* scales;
  const std::byte* zeros;
  int64_t n_scales;
  int64_t n_zeros;
};

}  // namespace

// Row `row` of a page's parameters; of every row the entries from `first` on.
static inline ParamRow param_row(const StripSide& side, const std::byte* page, int64_t row,
                                 int64_t first, int64_t n) {
  const int64_t end = first + n;
  const int64_t scaled = side.per_channel ? least(end, side.scaled_width) - first : n;
  return {page + side.scale_offset + (row * side.scale_stride + first) * side.scale_bytes,
          page + side.zero_offset + (row * side.zero_stride + first) * 2, scaled > 0 ? scaled : 0,
          side.has_zero ? n : 0};
}

// The first n entries (a multiple of kLanes) of load_params(), all of which are stored.
template <int kLiftStep, int kScaleBytes, bool kHasZero>
__attribute__((always_inline)) static inline void load_whole_params(const ParamRow& row, float unit,
                                                                    int64_t n, const float* lift,
                                                                    float* scale, float* zeros) {
  for (int64_t i = 0; i < n; i += kLanes, lift += kLiftStep) {
    const F32 stored = kScaleBytes == 1
                           ? log_scales(widen_u8(reinterpret_cast<const uint8_t*>(row.scales) + i))
                           : load_f16(reinterpret_cast<const uint16_t*>(row.scales) + i);
    const F32 factor = stored * set(unit);
    store(scale + i, factor);
    const F32 zero_point =
        kHasZero ? load_f16(reinterpret_cast<const uint16_t*>(row.zeros) + i) : zero();
    store(zeros + i, fma(factor, kLiftStep == 0 ? set(*lift) : load(lift), zero_point));
  }
}

// Fills `scale` and `zeros` up to `padded` (a multiple of kLanes) with what is stored, then 0:
// scales times `unit`, zeros plus what `lift` adds, kLiftStep entries for each kLanes. `zeros` may
// be null.
template <int kLiftStep>
static inline void load_params(const ParamRow& row, int32_t scale_bytes, float unit, int64_t padded,
                               const float* lift, float* scale, float* zeros) {
  int64_t i = 0;
  if (zeros != nullptr) {
    const bool has_zero = row.n_zeros > 0;
    i = (has_zero ? least(row.n_scales, row.n_zeros) : row.n_scales) / kLanes * kLanes;
    if (scale_bytes == 1) {
      has_zero ? load_whole_params<kLiftStep, 1, true>(row, unit, i, lift, scale, zeros)
               : load_whole_params<kLiftStep, 1, false>(row, unit, i, lift, scale, zeros);
    } else {
      has_zero ? load_whole_params<kLiftStep, 2, true>(row, unit, i, lift, scale, zeros)
               : load_whole_params<kLiftStep, 2, false>(row, unit, i, lift, scale, zeros);
    }
    lift += i / kLanes * kLiftStep;
  }
  for (; i < padded; i += kLanes, lift += kLiftStep) {
    const F32 factor = load_scales(row.scales, scale_bytes, i, row.n_scales) * set(unit);
    store(scale + i, factor);
    if (zeros == nullptr) continue;
    const F32 lifts = kLiftStep == 0 ? set(*lift) : load(lift);
    store(zeros + i, fma(factor, lifts, load_scales(row.zeros, 2, i, row.n_zeros)));
  }
}

}  // namespace kve::KVE_ISA
