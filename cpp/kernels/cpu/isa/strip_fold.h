// Folding: queries or weights times the scales of a page, rounded to int8.
#pragma once

#include "kernels/cpu/isa/strip_round.h"

namespace kve::KVE_ISA {

namespace {

struct Folded {
  float unit;  // of the codes
  F32 rest;    // lanes whose sum is what the integer product leaves out
};

}  // namespace

// Codes of n values (a multiple of kLanes; kWidth, unless that is 0), times `scale`: product ~ unit
// * (code + remainder / kPlaneRatio), planes plane_stride = round_up(n, 4 * kLanes) apart and
// written up to there. The rest is that of the values times `zeros` (kRest), less what the biases
// of the codes add. Everything stays in registers where kWidth is known.
template <int kWidth, int kPlanes, bool kRest>
__attribute__((always_inline)) static inline Folded fold(int64_t n, const float* x,
                                                         const float* scale, const float* zeros,
                                                         const float* strip_bias, int8_t* codes,
                                                         int64_t plane_stride) {
  constexpr int64_t kMostParts = (kWidth != 0 ? kWidth : kMaxStripWidth) / kLanes;
  const int64_t parts = kWidth != 0 ? kWidth / kLanes : n / kLanes;
  F32 products[kMostParts];
  F32 largest = zero();
  F32 rest = zero();
#pragma GCC unroll 4
  for (int64_t i = 0; i < parts; ++i) {
    const F32 value = load(x + i * kLanes);
    products[i] = value * load(scale + i * kLanes);
    largest = max(abs(products[i]), largest);
    rest = kRest ? fma(value, load(zeros + i * kLanes), rest) : rest + products[i];
  }
  if constexpr (!kRest) rest = rest * zero();  // 0, or NaN where a value is
  for (int64_t i = parts; i % 4 != 0; ++i) products[i] = zero();
  const float top = max_of(largest);
  const bool tiny = !(top > 1e-30f);  // its inverse could overflow
  const float unit = tiny ? 0.0f : top * (1.0f / 127.0f);
  const F32 inverse = set(tiny ? 0.0f : 127.0f / top);
  const I32 ones = set_bytes(1);
  F32 biased = zero();
#pragma GCC unroll 4
  for (int64_t i = 0; i < parts; i += 4) {
    I32 whole[4];
    I32 remainders[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const F32 scaled = products[i + k] * inverse;
      whole[k] = to_i32(scaled);
      if constexpr (kPlanes == 2) {
        remainders[k] = to_i32((scaled - to_f32(whole[k])) * set(kPlaneRatio));
      }
    }
    const I32 packed = pack_i8(whole[0], whole[1], whole[2], whole[3]);
    store_i32(codes + i * kLanes, packed);
    F32 total = to_f32(dot4_small(set_i32(0), ones, packed));
    if constexpr (kPlanes == 2) {
      const I32 more = pack_i8(remainders[0], remainders[1], remainders[2], remainders[3]);
      store_i32(codes + plane_stride + i * kLanes, more);
      total = fma(to_f32(dot4_small(set_i32(0), ones, more)), set(1.0f / kPlaneRatio), total);
    }
    biased = fma(total, load(strip_bias + i * kLanes / 4), biased);
  }
  return {unit, fma(biased, set(-unit), rest)};
}

}  // namespace kve::KVE_ISA
