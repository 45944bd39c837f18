// Plain C++: 4 lanes, which compilers map to whatever the baseline offers.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "base/half.h"

namespace kve::KVE_ISA {

constexpr int kLanes = 4;
constexpr int kDotBias = 0;
constexpr int kVecInputs = 4;
constexpr int kMatTokens = 2;
constexpr int kMatVectors = 1;
constexpr int kGemmTokens = 4;
constexpr int kGemmVectors = 2;
constexpr int kRowVectors = 2;
constexpr float kExp2Least = -127.0f;

struct F32 {
  float v[kLanes];
};
struct I32 {
  int32_t v[kLanes];
};
struct Mask {
  bool v[kLanes];
};

#define KVE_LANES for (int i = 0; i < kLanes; ++i)

static inline F32 set(float x) { return {{x, x, x, x}}; }
static inline F32 zero() { return set(0.0f); }
static inline F32 load(const float* p) { return {{p[0], p[1], p[2], p[3]}}; }
static inline F32 load_n(const float* p, int64_t n) {
  F32 r = zero();
  for (int64_t i = 0; i < n; ++i) r.v[i] = p[i];
  return r;
}
static inline void store(float* p, F32 a) { KVE_LANES p[i] = a.v[i]; }
static inline void store_n(float* p, F32 a, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = a.v[i];
}
static inline float one_half(const void* p) {
  uint16_t bits;
  memcpy(&bits, p, sizeof(bits));
  return half_to_float(bits);
}
static inline F32 load_f16(const uint16_t* p) {
  F32 r;
  KVE_LANES r.v[i] = half_to_float(p[i]);
  return r;
}
static inline F32 load_bf16(const uint16_t* p) {
  F32 r;
  KVE_LANES r.v[i] = bf16_to_float(p[i]);
  return r;
}
static inline F32 load_f16_n(const uint16_t* p, int64_t n) {
  F32 r = zero();
  for (int64_t i = 0; i < n; ++i) r.v[i] = half_to_float(p[i]);
  return r;
}
static inline F32 load_bf16_n(const uint16_t* p, int64_t n) {
  F32 r = zero();
  for (int64_t i = 0; i < n; ++i) r.v[i] = bf16_to_float(p[i]);
  return r;
}

static inline F32 load_u8(const uint8_t* p) {
  F32 r;
  KVE_LANES r.v[i] = static_cast<float>(p[i]);
  return r;
}
static inline F32 load_i8(const int8_t* p) {
  F32 r;
  KVE_LANES r.v[i] = static_cast<float>(p[i]);
  return r;
}

#define KVE_LANEWISE(signature, expression) \
  static inline F32 signature {             \
    F32 r;                                  \
    KVE_LANES r.v[i] = (expression);        \
    return r;                               \
  }
KVE_LANEWISE(operator+(F32 a, F32 b), a.v[i] + b.v[i])
KVE_LANEWISE(operator-(F32 a, F32 b), a.v[i] - b.v[i])
KVE_LANEWISE(operator*(F32 a, F32 b), a.v[i] * b.v[i])
KVE_LANEWISE(operator/(F32 a, F32 b), a.v[i] / b.v[i])
KVE_LANEWISE(fma(F32 a, F32 b, F32 c), a.v[i] * b.v[i] + c.v[i])
KVE_LANEWISE(max(F32 a, F32 b), a.v[i] > b.v[i] ? a.v[i] : b.v[i])
KVE_LANEWISE(min(F32 a, F32 b), a.v[i] < b.v[i] ? a.v[i] : b.v[i])
KVE_LANEWISE(abs(F32 a), fabsf(a.v[i]))
KVE_LANEWISE(select(Mask m, F32 yes, F32 no), m.v[i] ? yes.v[i] : no.v[i])
// Adding 1.5 * 2^23 leaves no fraction bits; inputs are far smaller.
KVE_LANEWISE(round_even(F32 a), (a.v[i] + 12582912.0f) - 12582912.0f)
#undef KVE_LANEWISE

static inline Mask less(F32 a, F32 b) {
  Mask r;
  KVE_LANES r.v[i] = a.v[i] < b.v[i];
  return r;
}
static inline bool any(Mask m) { return m.v[0] || m.v[1] || m.v[2] || m.v[3]; }
static inline float pow2(int32_t n) {
  return std::bit_cast<float>(static_cast<uint32_t>(n + 127) << 23);
}
static inline F32 scale_pow2(F32 a, F32 n) {
  F32 r;
  KVE_LANES {
    // In two steps, so that neither factor leaves the range of normal floats for |n| <= 250. A NaN
    // has no whole number; it reaches the result through `a`.
    const int32_t whole = n.v[i] >= -250.0f && n.v[i] <= 250.0f ? static_cast<int32_t>(n.v[i]) : 0;
    const int32_t first = whole >> 1;
    r.v[i] = a.v[i] * pow2(first) * pow2(whole - first);
  }
  return r;
}
static inline F32 fraction(F32 a) {
  F32 r;
  KVE_LANES r.v[i] = a.v[i] - floorf(a.v[i]);
  return r;
}
static inline F32 scale_floor(F32 p, F32 a) {
  F32 r;
  // A NaN has no whole number; it reaches the result through `p`.
  KVE_LANES r.v[i] = p.v[i] * pow2(a.v[i] == a.v[i] ? static_cast<int32_t>(floorf(a.v[i])) : 0);
  return r;
}
static inline float sum(F32 a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
static inline float max_of(F32 a) {
  const F32 b = max(a, F32{{a.v[2], a.v[3], a.v[0], a.v[1]}});
  return b.v[0] > b.v[1] ? b.v[0] : b.v[1];
}

static inline I32 load_i32(const void* p) {
  I32 r;
  memcpy(r.v, p, sizeof(r.v));
  return r;
}
static inline void store_i32(void* p, I32 a) { memcpy(p, a.v, sizeof(a.v)); }
static inline I32 set_i32(int32_t x) { return {{x, x, x, x}}; }
// The four bytes at p in every lane.
static inline I32 broadcast_i32(const void* p) {
  int32_t word;
  __builtin_memcpy(&word, p, sizeof(word));
  return set_i32(word);
}
static inline F32 to_f32(I32 a) {
  F32 r;
  KVE_LANES r.v[i] = static_cast<float>(a.v[i]);
  return r;
}
// Rounds to even; lanes must be small (below 2^22).
static inline I32 to_i32(F32 a) {
  const F32 rounded = round_even(a);
  I32 r;
  KVE_LANES r.v[i] = fabsf(rounded.v[i]) < 1e9f ? static_cast<int32_t>(rounded.v[i]) : 0;
  return r;
}
static inline void store_i8(int8_t* p, I32 a) { KVE_LANES p[i] = static_cast<int8_t>(a.v[i]); }
// The low bytes of the lanes of a, then of b, c and d.
static inline I32 pack_i8(I32 a, I32 b, I32 c, I32 d) {
  int8_t bytes[16];
  store_i8(bytes, a);
  store_i8(bytes + 4, b);
  store_i8(bytes + 8, c);
  store_i8(bytes + 12, d);
  return load_i32(bytes);
}
static inline I32 widen_u8(const uint8_t* p) {
  I32 r;
  KVE_LANES r.v[i] = p[i];
  return r;
}
static inline I32 widen_u8_n(const uint8_t* p, int64_t n) {
  uint8_t bytes[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) bytes[i] = p[i];
  return widen_u8(bytes);
}
static inline F32 as_f32(I32 bits) {
  F32 r;
  memcpy(r.v, bits.v, sizeof(r.v));
  return r;
}
static inline int32_t sum(I32 a) { return a.v[0] + a.v[1] + a.v[2] + a.v[3]; }

static inline I32 operator+(I32 a, I32 b) {
  KVE_LANES a.v[i] += b.v[i];
  return a;
}
static inline I32 operator-(I32 a, I32 b) {
  KVE_LANES a.v[i] -= b.v[i];
  return a;
}
static inline I32 operator&(I32 a, I32 b) {
  KVE_LANES a.v[i] &= b.v[i];
  return a;
}
static inline I32 operator|(I32 a, I32 b) {
  KVE_LANES a.v[i] |= b.v[i];
  return a;
}
static inline I32 shift_right(I32 a, int n) {
  KVE_LANES a.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) >> n);
  return a;
}
static inline I32 shift_left(I32 a, int n) {
  KVE_LANES a.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << n);
  return a;
}
static inline I32 set_bytes(int8_t x) {
  I32 a;
  memset(a.v, x, sizeof(a.v));
  return a;
}
static inline I32 add_bytes(I32 a, I32 b) {
  uint8_t ab[4 * kLanes];
  uint8_t bb[4 * kLanes];
  memcpy(ab, a.v, sizeof(ab));
  memcpy(bb, b.v, sizeof(bb));
  for (int i = 0; i < 4 * kLanes; ++i) ab[i] = static_cast<uint8_t>(ab[i] + bb[i]);
  memcpy(a.v, ab, sizeof(ab));
  return a;
}
static inline I32 lookup_bytes(const int8_t* table, I32 index) {
  int8_t bytes[4 * kLanes];
  memcpy(bytes, index.v, sizeof(bytes));
  for (int i = 0; i < 4 * kLanes; ++i) bytes[i] = table[bytes[i]];
  memcpy(index.v, bytes, sizeof(bytes));
  return index;
}

static inline I32 dot4(I32 acc, I32 w, I32 x) {
  int8_t wb[4 * kLanes];
  int8_t xb[4 * kLanes];
  memcpy(wb, w.v, sizeof(wb));
  memcpy(xb, x.v, sizeof(xb));
  KVE_LANES {
    for (int j = 4 * i; j < 4 * i + 4; ++j) acc.v[i] += wb[j] * xb[j];
  }
  return acc;
}
static inline I32 dot4_small(I32 acc, I32 w, I32 x) { return dot4(acc, w, x); }
// 32 signed codes as dot4 wants them: as they are.
static inline void dot_bytes(int8_t* /*codes*/) {}

// The sums of codes 0-15 and 16-31.
static inline void code_sums(const int8_t* codes, int32_t (&sums)[2]) {
  sums[0] = sums[1] = 0;
  for (int i = 0; i < 32; ++i) sums[i / 16] += codes[i];
}

static inline void transpose(F32 (&r)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < i; ++j) {
      const float swapped = r[i].v[j];
      r[i].v[j] = r[j].v[i];
      r[j].v[i] = swapped;
    }
  }
}
static inline F32 block_sums(F32 a, F32 b, F32 c, F32 d) {
  return {{sum(a), sum(b), sum(c), sum(d)}};
}
static inline F32 join_sums(const F32 (&s)[1]) { return s[0]; }
#undef KVE_LANES

struct GroupAcc {
  float v;
};
static inline GroupAcc group_zero() { return {0.0f}; }
static inline GroupAcc group_dot(GroupAcc acc, const int8_t* w, const int8_t* x, float scale0,
                                 float scale1) {
  int32_t dot0 = 0;
  int32_t dot1 = 0;
  for (int i = 0; i < 16; ++i) dot0 += w[i] * x[i];
  for (int i = 16; i < 32; ++i) dot1 += w[i] * x[i];
  return {acc.v + scale0 * static_cast<float>(dot0) + scale1 * static_cast<float>(dot1)};
}
static inline float sum(GroupAcc a) { return a.v; }

}  // namespace kve::KVE_ISA
