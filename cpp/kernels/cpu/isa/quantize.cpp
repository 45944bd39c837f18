#include "kernels/cpu/isa/isa.h"

namespace kve::KVE_ISA {

// Codes of 32 values: x ~ scale * (code + remainder / kPlaneRatio), all within [-127, 127]. A NaN
// or an infinity makes the scale NaN, so that it reaches the result.
static inline float quantize_group(const float* x, int8_t* codes, int8_t* remainders) {
  constexpr int kParts = 32 / kLanes;
  F32 part[kParts];
  F32 largest = zero();
  F32 poison = zero();
#pragma GCC unroll 8
  for (int i = 0; i < kParts; ++i) {
    part[i] = load(x + i * kLanes);
    largest = max(largest, abs(part[i]));
    poison = poison + (part[i] - part[i]);
  }
  const float top = max_of(largest);
  const bool tiny = top < 1e-35f;  // its inverse would overflow
  const F32 inverse = set(tiny ? 0.0f : 127.0f / top);
#pragma GCC unroll 8
  for (int i = 0; i < kParts; ++i) {
    const F32 code = round_even(part[i] * inverse);
    store_i8(codes + i * kLanes, to_i32(code));
    if (remainders != nullptr) {
      const F32 rest = fma(part[i], inverse, zero() - code) * set(kPlaneRatio);
      store_i8(remainders + i * kLanes, to_i32(max(set(-127.0f), min(set(127.0f), rest))));
    }
  }
  return (tiny ? 0.0f : top / 127.0f) + sum(poison);
}

void quantize_values(const float* x, int64_t cols, int8_t* codes, int8_t* remainders,
                     float* scales) {
  for (int64_t g = 0; g < cols / 32; ++g) {
    scales[g] = quantize_group(x + 32 * g, codes + 32 * g,
                               remainders == nullptr ? nullptr : remainders + 32 * g);
  }
}

}  // namespace kve::KVE_ISA
