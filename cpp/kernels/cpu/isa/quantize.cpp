#include "kernels/cpu/isa/isa.h"

namespace kve::KVE_ISA {

namespace {

// Is no number once a value was none, or infinite. Several, so that none waits for the one before.
struct Poison {
  F32 part[4] = {zero(), zero(), zero(), zero()};

  void add(int i, F32 x) { part[i % 4] = fma(x, zero(), part[i % 4]); }
  float total() const { return sum((part[0] + part[1]) + (part[2] + part[3])); }
};

}  // namespace

// The largest magnitudes of n groups of 32, at most kLanes, one to a lane; the rest is zero.
static inline F32 largest_of(const float* x, int64_t n, Poison& poison) {
  F32 most[kLanes];
  KVE_UNROLL(16)
  for (int g = 0; g < kLanes; ++g) {
    most[g] = zero();
    if (g >= n) continue;
    KVE_UNROLL(8)
    for (int i = 0; i < 32; i += kLanes) {
      const F32 part = load(x + 32 * g + i);
      most[g] = max(most[g], abs(part));
      poison.add(g * (32 / kLanes) + i / kLanes, part);
    }
  }
  if (4 * n <= kLanes) {
    float few[kLanes] = {};
    for (int64_t g = 0; g < n; ++g) few[g] = max_of(most[g]);
    return load(few);
  }
  transpose(most);
  KVE_UNROLL(16)
  for (int i = 1; i < kLanes; ++i) most[0] = max(most[0], most[i]);
  return most[0];
}

// Codes of 32 values: x * inverse ~ code + remainder / kPlaneRatio, all within [-127, 127].
static inline void round_group(const float* x, float inverse, int8_t* codes, int8_t* remainders) {
  KVE_UNROLL(8)
  for (int i = 0; i < 32; i += kLanes) {
    const F32 code = round_even(load(x + i) * set(inverse));
    store_i8(codes + i, to_i32(code));
    const F32 rest = fma(load(x + i), set(inverse), zero() - code) * set(kPlaneRatio);
    store_i8(remainders + i, to_i32(max(set(-127.0f), min(set(127.0f), rest))));
  }
}

// Codes of n groups: x * inverse ~ code.
static inline void round_groups(const float* x, int64_t n, const float* inverse, int8_t* codes) {
  int64_t at = 0;
  for (; at + 4 * kLanes <= 32 * n; at += 4 * kLanes) {
    I32 part[4];
    KVE_UNROLL(4)
    for (int i = 0; i < 4; ++i) {
      const int64_t first = at + i * kLanes;
      part[i] = to_i32(load(x + first) * set(inverse[first / 32]));
    }
    store_i32(codes + at, pack_i8(part[0], part[1], part[2], part[3]));
  }
  for (; at < 32 * n; at += kLanes) {
    store_i8(codes + at, to_i32(load(x + at) * set(inverse[at / 32])));
  }
}

// x ~ scale * (code + remainder / kPlaneRatio). A NaN or an infinity makes the scale of its group
// NaN, so that it reaches the result.
void quantize_values(const float* x, int64_t cols, int8_t* codes, int8_t* remainders,
                     float* scales) {
  Poison poison;
  for (int64_t first = 0; first < cols / 32; first += kLanes) {
    const int64_t n = least(cols / 32 - first, kLanes);
    const int64_t at = 32 * first;
    const F32 top = largest_of(x + at, n, poison);
    const Mask tiny = less(top, set(1e-35f));  // its inverse would overflow
    float inverse[kLanes];
    store(inverse, select(tiny, zero(), set(127.0f) / top));
    store_n(scales + first, select(tiny, zero(), top / set(127.0f)), n);
    if (remainders == nullptr) {
      round_groups(x + at, n, inverse, codes + at);
      continue;
    }
    for (int64_t g = 0; g < n; ++g) {
      const int64_t place = at + 32 * g;
      round_group(x + place, inverse[g], codes + place, remainders + place);
    }
  }
  if (poison.total() == 0.0f) return;
  for (int64_t g = 0; g < cols / 32; ++g) {
    Poison own;
    largest_of(x + 32 * g, 1, own);
    scales[g] += own.total();
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
