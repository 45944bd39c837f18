// AVX2 with FMA and F16C: 8 lanes.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace kve::KVE_ISA {

constexpr int kLanes = 8;
constexpr int kDotBias = 0;
constexpr int kVecInputs = 4;
constexpr int kMatTokens = 4;
constexpr int kMatVectors = 1;
constexpr int kGemmTokens = 6;
constexpr int kGemmVectors = 2;
constexpr int kRowVectors = 2;
constexpr float kExp2Least = -127.0f;

struct F32 {
  __m256 v;
};
struct I32 {
  __m256i v;
};
struct Mask {
  __m256 v;
};

static inline __m256i first_lanes(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int32_t>(n)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline F32 load(const float* p) { return {_mm256_loadu_ps(p)}; }
static inline F32 load_n(const float* p, int64_t n) {
  return {_mm256_maskload_ps(p, first_lanes(n))};
}
static inline void store(float* p, F32 a) { _mm256_storeu_ps(p, a.v); }
static inline void store_n(float* p, F32 a, int64_t n) {
  _mm256_maskstore_ps(p, first_lanes(n), a.v);
}
static inline F32 set(float x) { return {_mm256_set1_ps(x)}; }
static inline F32 zero() { return {_mm256_setzero_ps()}; }
static inline float one_half(const void* p) {
  uint16_t bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  return _cvtsh_ss(bits);
}
static inline F32 load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
static inline F32 load_bf16(const uint16_t* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
}
// Bytes past n are not touched: they may lie outside the page.
static inline F32 load_f16_n(const uint16_t* p, int64_t n) {
  uint16_t halves[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) halves[i] = p[i];
  return load_f16(halves);
}
static inline F32 load_bf16_n(const uint16_t* p, int64_t n) {
  uint16_t halves[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) halves[i] = p[i];
  return load_bf16(halves);
}

static inline F32 load_u8(const uint8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))};
}
static inline F32 load_i8(const int8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))};
}

static inline F32 operator+(F32 a, F32 b) { return {_mm256_add_ps(a.v, b.v)}; }
static inline F32 operator-(F32 a, F32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
static inline F32 operator*(F32 a, F32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
static inline F32 operator/(F32 a, F32 b) { return {_mm256_div_ps(a.v, b.v)}; }
static inline F32 fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
static inline F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.v, b.v)}; }
static inline F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.v, b.v)}; }
static inline F32 abs(F32 a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
static inline Mask less(F32 a, F32 b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
static inline bool any(Mask m) { return _mm256_movemask_ps(m.v) != 0; }
static inline F32 select(Mask m, F32 yes, F32 no) { return {_mm256_blendv_ps(no.v, yes.v, m.v)}; }
static inline F32 round_even(F32 a) { return {_mm256_round_ps(a.v, 8)}; }
static inline F32 scale_pow2(F32 a, F32 n) {
  // In two steps, so that neither factor leaves the range of normal floats for |n| <= 250.
  const __m256i whole = _mm256_cvtps_epi32(n.v);
  const __m256i first = _mm256_srai_epi32(whole, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const auto pow2 = [&](__m256i e) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, bias), 23));
  };
  return {_mm256_mul_ps(_mm256_mul_ps(a.v, pow2(first)), pow2(_mm256_sub_epi32(whole, first)))};
}
static inline F32 fraction(F32 a) { return {_mm256_sub_ps(a.v, _mm256_floor_ps(a.v))}; }
static inline F32 scale_floor(F32 p, F32 a) {
  const __m256i whole = _mm256_cvtps_epi32(_mm256_floor_ps(a.v));
  const __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(whole, _mm256_set1_epi32(127)), 23);
  return {_mm256_mul_ps(p.v, _mm256_castsi256_ps(bits))};
}
static inline float sum(F32 a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
static inline float max_of(F32 a) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

static inline I32 load_i32(const void* p) {
  return {_mm256_loadu_si256(static_cast<const __m256i*>(p))};
}
static inline void store_i32(void* p, I32 a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a.v); }
static inline I32 set_i32(int32_t x) { return {_mm256_set1_epi32(x)}; }
// The four bytes at p in every lane.
static inline I32 broadcast_i32(const void* p) {
  int32_t word;
  __builtin_memcpy(&word, p, sizeof(word));
  return {_mm256_set1_epi32(word)};
}
static inline F32 to_f32(I32 a) { return {_mm256_cvtepi32_ps(a.v)}; }
static inline I32 to_i32(F32 a) { return {_mm256_cvtps_epi32(a.v)}; }
// The low bytes of the lanes, which must be in the range of int8.
static inline void store_i8(int8_t* p, I32 a) {
  const __m128i words =
      _mm_packs_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}
// The low bytes of the lanes of a, then of b, c and d.
static inline I32 pack_i8(I32 a, I32 b, I32 c, I32 d) {
  const __m256i words =
      _mm256_packs_epi16(_mm256_packs_epi32(a.v, b.v), _mm256_packs_epi32(c.v, d.v));
  return {_mm256_permutevar8x32_epi32(words, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))};
}
static inline I32 widen_u8(const uint8_t* p) {
  return {_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
}
static inline I32 widen_u8_n(const uint8_t* p, int64_t n) {
  uint8_t bytes[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) bytes[i] = p[i];
  return widen_u8(bytes);
}
static inline F32 as_f32(I32 bits) { return {_mm256_castsi256_ps(bits.v)}; }
static inline int32_t sum(I32 a) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

// |w| <= 128 and |x| <= 127, so a pair of products stays below 2^15 and nothing saturates.
static inline I32 operator+(I32 a, I32 b) { return {_mm256_add_epi32(a.v, b.v)}; }
static inline I32 operator-(I32 a, I32 b) { return {_mm256_sub_epi32(a.v, b.v)}; }
static inline I32 operator&(I32 a, I32 b) { return {_mm256_and_si256(a.v, b.v)}; }
static inline I32 operator|(I32 a, I32 b) { return {_mm256_or_si256(a.v, b.v)}; }
static inline I32 shift_right(I32 a, int n) {
  return {_mm256_srl_epi32(a.v, _mm_cvtsi32_si128(n))};
}
static inline I32 shift_left(I32 a, int n) { return {_mm256_sll_epi32(a.v, _mm_cvtsi32_si128(n))}; }
static inline I32 set_bytes(int8_t x) { return {_mm256_set1_epi8(x)}; }
static inline I32 add_bytes(I32 a, I32 b) { return {_mm256_add_epi8(a.v, b.v)}; }
static inline I32 lookup_bytes(const int8_t* table, I32 index) {
  const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return {_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(entries), index.v)};
}

static inline I32 dot4_small(I32 acc, I32 w, I32 x) {
  const __m256i pairs = _mm256_maddubs_epi16(w.v, x.v);
  return {_mm256_add_epi32(acc.v, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))};
}
static inline I32 dot4(I32 acc, I32 w, I32 x) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w.v), _mm256_sign_epi8(x.v, w.v));
  return {_mm256_add_epi32(acc.v, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))};
}
// 32 signed codes as dot4 wants them: as they are.
static inline void dot_bytes(int8_t* /*codes*/) {}

// The sums of codes 0-15 and 16-31.
static inline void code_sums(const int8_t* codes, int32_t (&sums)[2]) {
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
  __m256i s = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0x4e));
  s = _mm256_add_epi32(s, _mm256_shuffle_epi32(s, 0xb1));
  sums[0] = _mm256_extract_epi32(s, 0);
  sums[1] = _mm256_extract_epi32(s, 4);
}

static inline void transpose(F32 (&r)[8]) {
  __m256 t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i].v, r[2 * i + 1].v);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i].v, r[2 * i + 1].v);
  }
  __m256 u[8];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i].v = _mm256_permute2f128_ps(u[i], u[4 + i], 0x20);
    r[i + 4].v = _mm256_permute2f128_ps(u[i], u[4 + i], 0x31);
  }
}

static inline F32 block_sums(F32 a, F32 b, F32 c, F32 d) {
  return {_mm256_hadd_ps(_mm256_hadd_ps(a.v, b.v), _mm256_hadd_ps(c.v, d.v))};
}
static inline F32 join_sums(const F32 (&s)[2]) {
  return {_mm256_add_ps(_mm256_blend_ps(s[0].v, s[1].v, 0xf0),
                        _mm256_permute2f128_ps(s[0].v, s[1].v, 0x21))};
}

struct GroupAcc {
  __m256 v;
};
static inline GroupAcc group_zero() { return {_mm256_setzero_ps()}; }
static inline GroupAcc group_dot(GroupAcc acc, const int8_t* w, const int8_t* x, float scale0,
                                 float scale1) {
  const I32 dot = dot4({_mm256_setzero_si256()}, load_i32(w), load_i32(x));
  const __m256 scale = _mm256_set_m128(_mm_set1_ps(scale1), _mm_set1_ps(scale0));
  return {_mm256_fmadd_ps(_mm256_cvtepi32_ps(dot.v), scale, acc.v)};
}
static inline float sum(GroupAcc a) { return sum(F32{a.v}); }

}  // namespace kve::KVE_ISA
