// Dot products of int8 codes: how their sums become floats, and which groups of an input have a
// second plane of codes.
#pragma once

#include "kernels/cpu/isa/isa.h"

namespace kve::KVE_ISA {

// Dot products of one plane are below 2^22 in magnitude. Begun at the bits of 1.5 * 2^23, whose
// last bit counts 1, their sum is the bits of the float kFloatStart + dot. With one rounding, sum *
// scale - kFloatStart * scale is then the product dot * scale, in one instruction instead of two
// that convert and multiply: where all vector arithmetic shares its ports with the dot products,
// these are 73 % of it instead of 67 %. Needs a fused multiply-add.
#if defined(__FMA__)
constexpr bool kFloatDots = true;
#else
constexpr bool kFloatDots = false;
#endif
constexpr int32_t kFloatStartBits = 0x4b400000;
constexpr float kFloatStart = 12582912.0f;
constexpr int32_t kDotsBegin = kFloatDots ? kFloatStartBits : 0;

// What integer sums are, and how they are scaled.
enum class Sums {
  whole,    // dot products
  shifted,  // the bits of floats, from which kFloatStart is taken
  fused,    // the same, by an offset of -kFloatStart * scale
};

// Of a type of weights. has_offsets: whether kFloatStart * scale is a finite float for all of its
// scales, without rounding: the scale has 22 bits at most.
constexpr Sums sums_of(bool has_offsets) {
  return !kFloatDots ? Sums::whole : has_offsets ? Sums::fused : Sums::shifted;
}

template <Sums kSums>
static inline F32 scaled(I32 sum, F32 scale, F32 offset) {
  if constexpr (kSums == Sums::fused) return fma(as_f32(sum), scale, offset);
  if constexpr (kSums == Sums::shifted) return (as_f32(sum) - set(kFloatStart)) * scale;
  return to_f32(sum) * scale;
}

// Groups of an input whose scale exceeds this have a second plane: rounding errors are as large as
// scales, and their mean square is to exceed least_error times the mean over all groups. `squares`:
// of all scales. A scale that is no number never does.
static inline float plane_limit(float squares, float least_error, int64_t n_groups) {
  constexpr float kLeastScale = 1e-30f;  // its inverse is finite
  const float root = __builtin_sqrtf(squares * least_error / static_cast<float>(n_groups));
  return root > kLeastScale ? root : kLeastScale;
}

}  // namespace kve::KVE_ISA
