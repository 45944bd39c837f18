// What keys and values of strips share: constants of a side, rounding to int8, integer results.
#pragma once

#include "kernels/cpu/isa/strip_pages.h"
#include "kernels/cpu/isa/strip_params.h"

namespace kve::KVE_ISA {

static inline int64_t padded_width(const StripSide& side) { return round_up(side.width, 16); }
static inline int64_t group_count(const StripSide& side) {
  return side.per_channel ? kStripTokens / side.group : (side.width + side.group - 1) / side.group;
}

// Parameters that take the most memory.
static inline StripSide largest_side(int64_t width, bool per_channel) {
  StripSide side = {};
  side.width = static_cast<int32_t>(width);
  side.per_channel = per_channel;
  side.group = 16;
  side.planes = 2;
  return side;
}

// Vectors whose planes share one reading of the codes.
static inline int64_t strip_batch(int32_t planes) {
  if (planes == 2) return kStripVectors / 2;
  return kStripVectors == 6 ? 4 : kStripVectors;
}

// Of the width, or of a page's tokens when these are folded.
static inline int64_t strip_biases(int64_t padded) {
  return round_up((padded > kStripTokens ? padded : kStripTokens) / 4, kLanes);
}
static inline StripPlan carve_plan(const StripSide& side, Carver& carver) {
  StripPlan plan = {};
  plan.side = side;
  plan.padded = padded_width(side);
  plan.n_groups = group_count(side);
  plan.n_params = side.per_channel ? plan.padded : plan.n_groups * kStripTokens;
  plan.bias = carver.take<float>(plan.padded);
  plan.strip_bias = carver.take<float>(strip_biases(plan.padded));
  plan.lift = carver.take<float>(plan.padded);
  plan.scale = carver.take<float>(kRunPages * plan.n_params);
  plan.zero = carver.take<float>(kRunPages * plan.n_params);
  return plan;
}
// strip_plan.cpp
void fill_plan(StripPlan& plan);

static inline StripDots dots_of(const StripPlan& plan, const int8_t* codes, int64_t code_stride,
                                int64_t n_vectors, int32_t* dots) {
  return {plan.side.bits,
          plan.side.strip_bits,
          plan.side.levels == StripLevels::table ? plan.table : nullptr,
          codes,
          code_stride,
          n_vectors,
          dots};
}

// Asks for the parameters of page p of the next run. Page by page: many requests at once keep loads
// from the caches waiting.
static inline void ask_params(const StripRun& run, int32_t p) {
  if (run.params_ahead[p] == nullptr) return;
  const StripSide& side = *run.params_side[p];
  // All lines that hold one of the bytes: what lies after codes need not begin with a line.
  const auto ask = [&](size_t first, int64_t bytes) {
    const std::byte* from = run.params_ahead[p] + first / 64 * 64;
    const std::byte* end = run.params_ahead[p] + first + static_cast<size_t>(bytes);
    for (; from < end; from += 64) prefetch_shared(from);
  };
  const int64_t n_groups = group_count(side);
  ask(side.scale_offset, n_groups * side.scale_stride * side.scale_bytes);
  if (side.has_zero) ask(side.zero_offset, n_groups * side.zero_stride * 2);
}

// strip_plan.cpp: parameters of the pages of a run, all or those of one group of tokens. `lifted`:
// zeros get what the scales lift.
void load_run_params(const StripPlan& plan, const StripRun& run, int64_t token_group, bool lifted);

// Codes of n values (a multiple of kLanes) whose largest magnitudes are the lanes of `largest`:
// x ~ unit * (code + remainder / kPlaneRatio). Subtracts bias * unit * (...) from *rest; bias
// [n], or one number where kBiasStep is 0. Returns the unit.
template <int kPlanes, int kBiasStep>
__attribute__((always_inline)) static inline float round_codes(const float* x, int64_t n,
                                                               F32 largest, const float* bias,
                                                               int8_t* codes, int64_t plane_stride,
                                                               F32* rest) {
  const float top = max_of(largest);
  const bool tiny = !(top > 1e-30f);  // its inverse could overflow
  const float unit = tiny ? 0.0f : top * (1.0f / 127.0f);
  const F32 inverse = set(tiny ? 0.0f : 127.0f / top);
  F32 biased = zero();
#pragma GCC unroll 4
  for (int64_t i = 0; i < n; i += kLanes) {
    const F32 scaled = load(x + i) * inverse;
    F32 code = round_even(scaled);
    store_i8(codes + i, to_i32(code));
    if constexpr (kPlanes == 2) {
      const F32 remainder = round_even((scaled - code) * set(kPlaneRatio));
      store_i8(codes + plane_stride + i, to_i32(remainder));
      code = fma(remainder, set(1.0f / kPlaneRatio), code);
    }
    biased = fma(code, kBiasStep == 0 ? set(bias[0]) : load(bias + i), biased);
  }
  *rest = fma(biased, set(-unit), *rest);
  return unit;
}

// Integer results of one vector as floats.
template <int kPlanes>
static inline F32 joined(const int32_t* dots, int64_t plane_stride) {
  const F32 whole = to_f32(load_i32(dots));
  if constexpr (kPlanes == 1) return whole;
  return fma(to_f32(load_i32(dots + plane_stride)), set(1.0f / kPlaneRatio), whole);
}

}  // namespace kve::KVE_ISA
