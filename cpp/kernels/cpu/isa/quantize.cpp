#include "kernels/cpu/isa/isa.h"

namespace kve::KVE_ISA {

constexpr int64_t kRoundedGroups = 8;  // at a time, so that divisions share their vectors

// The largest magnitude of 32 values. Adds a NaN to `poison` if one of them is no finite number.
static inline float largest_of(const float* x, F32& poison) {
  F32 largest = zero();
  KVE_UNROLL(8)
  for (int i = 0; i < 32; i += kLanes) {
    const F32 part = load(x + i);
    largest = max(largest, abs(part));
    poison = poison + (part - part);
  }
  return max_of(largest);
}

// Codes of 32 values: x * inverse ~ code + remainder / kPlaneRatio, all within [-127, 127].
static inline void round_group(const float* x, float inverse, int8_t* codes, int8_t* remainders) {
  KVE_UNROLL(8)
  for (int i = 0; i < 32; i += kLanes) {
    const F32 value = load(x + i) * set(inverse);
    if (remainders == nullptr) {
      store_i8(codes + i, to_i32(value));
      continue;
    }
    const F32 code = round_even(value);
    store_i8(codes + i, to_i32(code));
    const F32 rest = fma(load(x + i), set(inverse), zero() - code) * set(kPlaneRatio);
    store_i8(remainders + i, to_i32(max(set(-127.0f), min(set(127.0f), rest))));
  }
}

// x ~ scale * (code + remainder / kPlaneRatio). A NaN or an infinity makes the scale of its group
// NaN, so that it reaches the result.
void quantize_values(const float* x, int64_t cols, int8_t* codes, int8_t* remainders,
                     float* scales) {
  F32 poison = zero();
  for (int64_t first = 0; first < cols / 32; first += kRoundedGroups) {
    const int64_t n = least(cols / 32 - first, kRoundedGroups);
    float top[kRoundedGroups] = {};
    float inverse[kRoundedGroups];
    for (int64_t g = 0; g < n; ++g) top[g] = largest_of(x + 32 * (first + g), poison);
    for (int64_t g = 0; g < kRoundedGroups; ++g) {
      const bool tiny = top[g] < 1e-35f;  // its inverse would overflow
      inverse[g] = tiny ? 0.0f : 127.0f / top[g];
      top[g] = tiny ? 0.0f : top[g] / 127.0f;
    }
    for (int64_t g = 0; g < n; ++g) {
      const int64_t at = 32 * (first + g);
      scales[first + g] = top[g];
      round_group(x + at, inverse[g], codes + at,
                  remainders == nullptr ? nullptr : remainders + at);
    }
  }
  if (sum(poison) == 0.0f) return;
  for (int64_t g = 0; g < cols / 32; ++g) {
    F32 own = zero();
    largest_of(x + 32 * g, own);
    scales[g] += sum(own);
  }
}

// The second plane of 32 values: x ~ scale * (code + remainder / kPlaneRatio); scale is above 0.
void quantize_remainders(const float* x, const int8_t* codes, float scale, int8_t* remainders) {
  const F32 unit = set(kPlaneRatio / scale);
  KVE_UNROLL(8)
  for (int i = 0; i < 32; i += kLanes) {
    const F32 rest = fma(load_i8(codes + i), set(-scale), load(x + i)) * unit;
    store_i8(remainders + i, to_i32(max(set(-127.0f), min(set(127.0f), rest))));
  }
}

}  // namespace kve::KVE_ISA
