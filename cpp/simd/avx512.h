// AVX-512 F/BW/DQ/VL with VNNI and VBMI: 16 lanes.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace kve::KVE_ISA {

constexpr int kLanes = 16;
constexpr int kDotBias = 128;
constexpr int kVecInputs = 8;
constexpr int kMatTokens = 6;
constexpr int kMatVectors = 2;
constexpr int kGemmTokens = 6;
constexpr int kGemmVectors = 4;
constexpr int kRowVectors = 4;
constexpr float kExp2Least = -160.0f;

struct F32 {
  __m512 v;
};
struct I32 {
  __m512i v;
};
using Mask = __mmask16;

static inline __mmask16 first_lanes(int64_t n) {
  return static_cast<__mmask16>((1u << static_cast<unsigned>(n)) - 1u);
}

static inline F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline F32 load_n(const float* p, int64_t n) {
  return {_mm512_maskz_loadu_ps(first_lanes(n), p)};
}
static inline void store(float* p, F32 a) { _mm512_storeu_ps(p, a.v); }
static inline void store_n(float* p, F32 a, int64_t n) {
  _mm512_mask_storeu_ps(p, first_lanes(n), a.v);
}
static inline F32 set(float x) { return {_mm512_set1_ps(x)}; }
static inline F32 zero() { return {_mm512_setzero_ps()}; }
static inline float one_half(const void* p) {
  uint16_t bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  return _cvtsh_ss(bits);
}
static inline F32 load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
static inline F32 load_bf16(const uint16_t* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
static inline F32 load_f16_n(const uint16_t* p, int64_t n) {
  return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p))};
}
static inline F32 load_bf16_n(const uint16_t* p, int64_t n) {
  const __m256i half = _mm256_maskz_loadu_epi16(first_lanes(n), p);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}

static inline F32 load_u8(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))};
}
static inline F32 load_i8(const int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
}

static inline F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline F32 operator/(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
static inline F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
static inline F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
static inline F32 abs(F32 a) { return {_mm512_abs_ps(a.v)}; }
#define KVE_MAX_ABS 1
static inline F32 max_abs(F32 a, F32 b) { return {_mm512_range_ps(a.v, b.v, 0b1011)}; }
static inline Mask less(F32 a, F32 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }
static inline bool any(Mask m) { return m != 0; }
static inline F32 select(Mask m, F32 yes, F32 no) { return {_mm512_mask_blend_ps(m, no.v, yes.v)}; }
static inline F32 round_even(F32 a) { return {_mm512_roundscale_ps(a.v, 8)}; }
static inline F32 scale_pow2(F32 a, F32 n) { return {_mm512_scalef_ps(a.v, n.v)}; }
static inline F32 fraction(F32 a) { return {_mm512_reduce_ps(a.v, 9)}; }
static inline F32 scale_floor(F32 p, F32 a) { return {_mm512_scalef_ps(p.v, a.v)}; }
static inline float sum(F32 a) { return _mm512_reduce_add_ps(a.v); }
static inline float max_of(F32 a) { return _mm512_reduce_max_ps(a.v); }

static inline I32 load_i32(const void* p) { return {_mm512_loadu_si512(p)}; }
static inline void store_i32(void* p, I32 a) { _mm512_storeu_si512(p, a.v); }
static inline I32 set_i32(int32_t x) { return {_mm512_set1_epi32(x)}; }
// The four bytes at p in every lane.
static inline I32 broadcast_i32(const void* p) {
  int32_t word;
  __builtin_memcpy(&word, p, sizeof(word));
  return {_mm512_set1_epi32(word)};
}
static inline F32 to_f32(I32 a) { return {_mm512_cvtepi32_ps(a.v)}; }
static inline I32 to_i32(F32 a) { return {_mm512_cvtps_epi32(a.v)}; }
// The low bytes of the lanes.
static inline void store_i8(int8_t* p, I32 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
// The low bytes of the lanes of a, then of b, c and d.
static inline I32 pack_i8(I32 a, I32 b, I32 c, I32 d) {
  const __m512i words =
      _mm512_packs_epi16(_mm512_packs_epi32(a.v, b.v), _mm512_packs_epi32(c.v, d.v));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return {_mm512_permutexvar_epi32(order, words)};
}
static inline I32 widen_u8(const uint8_t* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
static inline I32 widen_u8_n(const uint8_t* p, int64_t n) {
  return {_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first_lanes(n), p))};
}
static inline F32 as_f32(I32 bits) { return {_mm512_castsi512_ps(bits.v)}; }
static inline int32_t sum(I32 a) { return _mm512_reduce_add_epi32(a.v); }

static inline I32 operator+(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
static inline I32 operator-(I32 a, I32 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
static inline I32 operator&(I32 a, I32 b) { return {_mm512_and_si512(a.v, b.v)}; }
static inline I32 operator|(I32 a, I32 b) { return {_mm512_or_si512(a.v, b.v)}; }
static inline I32 shift_right(I32 a, int n) {
  return {_mm512_srl_epi32(a.v, _mm_cvtsi32_si128(n))};
}
static inline I32 shift_left(I32 a, int n) { return {_mm512_sll_epi32(a.v, _mm_cvtsi32_si128(n))}; }
static inline I32 set_bytes(int8_t x) { return {_mm512_set1_epi8(x)}; }
static inline I32 add_bytes(I32 a, I32 b) { return {_mm512_add_epi8(a.v, b.v)}; }
static inline I32 lookup_bytes(const int8_t* table, I32 index) {
  const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(entries), index.v)};
}

static inline I32 dot4(I32 acc, I32 w, I32 x) {
  // The intrinsic makes GCC 12 copy the accumulator in and out.
  asm("vpdpbusd %2, %1, %0" : "+v"(acc.v) : "v"(w.v), "v"(x.v));
  return acc;
}
static inline I32 dot4_small(I32 acc, I32 w, I32 x) { return dot4(acc, w, x); }
// 32 signed codes as dot4 wants them.
static inline void dot_bytes(int8_t* codes) {
  const __m256i c = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes),
                      _mm256_xor_si256(c, _mm256_set1_epi8(-128)));
}

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

static inline void transpose(F32 (&r)[16]) {
  __m512 t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i].v, r[2 * i + 1].v);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i].v, r[2 * i + 1].v);
  }
  __m512 u[16];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    u[4 * i] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    u[4 * i + 1] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    u[4 * i + 2] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    u[4 * i + 3] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512 a = _mm512_shuffle_f32x4(u[i], u[4 + i], 0x88);
    const __m512 b = _mm512_shuffle_f32x4(u[i], u[4 + i], 0xdd);
    const __m512 c = _mm512_shuffle_f32x4(u[8 + i], u[12 + i], 0x88);
    const __m512 d = _mm512_shuffle_f32x4(u[8 + i], u[12 + i], 0xdd);
    r[i].v = _mm512_shuffle_f32x4(a, c, 0x88);
    r[i + 8].v = _mm512_shuffle_f32x4(a, c, 0xdd);
    r[i + 4].v = _mm512_shuffle_f32x4(b, d, 0x88);
    r[i + 12].v = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
}

// Lane 4 j + i: lanes 4 j ... 4 j + 3 of the i-th vector, joined.
template <class Join>
static inline F32 join_blocks(F32 a, F32 b, F32 c, F32 d, const Join& join) {
  const auto halves = [&](__m512 x, __m512 y) {  // [x0+x2, x1+x3, y2+y0, y3+y1] of every block
    return join(F32{_mm512_mask_blend_ps(0xcccc, x, y)}, F32{_mm512_shuffle_ps(x, y, 0x4e)}).v;
  };
  const __m512 ab = halves(a.v, b.v);
  const __m512 cd = halves(c.v, d.v);
  return join(F32{_mm512_shuffle_ps(ab, cd, 0x88)}, F32{_mm512_shuffle_ps(ab, cd, 0xdd)});
}
static inline F32 block_sums(F32 a, F32 b, F32 c, F32 d) {
  return join_blocks(a, b, c, d, [](F32 x, F32 y) { return x + y; });
}
template <class Join>
static inline void join_each(const F32 (&v)[4], const Join& join, float* to) {
  F32 all = join_blocks(v[0], v[1], v[2], v[3], join);
  all = join(all, F32{_mm512_shuffle_f32x4(all.v, all.v, 0x4e)});
  all = join(all, F32{_mm512_shuffle_f32x4(all.v, all.v, 0xb1)});
  _mm_storeu_ps(to, _mm512_castps512_ps128(all.v));
}
static inline void sum_of_each(const F32 (&v)[4], float* to) {
  join_each(v, [](F32 x, F32 y) { return x + y; }, to);
}
static inline void max_of_each(const F32 (&v)[4], float* to) {
  join_each(v, [](F32 x, F32 y) { return max(x, y); }, to);
}
// Sums of codes 0-15 and of codes 16-31 of six rows of 32, in the first six lanes.
#define KVE_SIX_SUMS 1
static inline void six_code_sums(const int8_t* codes, I32 (&sums)[2]) {
  const auto two_rows = [&](int i) {  // sums of 4 codes
    return to_f32(dot4(set_i32(0), set_bytes(1), load_i32(codes + 64 * i)));
  };
  const F32 blocks = block_sums(two_rows(0), two_rows(1), two_rows(2), zero());
  const __m512i order[2] = {_mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3),
                            _mm512_setr_epi32(4, 12, 5, 13, 6, 14, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3)};
  for (int half = 0; half < 2; ++half) {
    sums[half] = to_i32(F32{_mm512_permutexvar_ps(order[half], blocks.v)});
  }
}

static inline F32 join_sums(const F32 (&s)[4]) {
  const auto halves = [](__m512 x, __m512 y) {
    return _mm512_add_ps(_mm512_mask_blend_ps(0xff00, x, y), _mm512_shuffle_f32x4(x, y, 0x4e));
  };
  const __m512 ab = halves(s[0].v, s[1].v);
  const __m512 cd = halves(s[2].v, s[3].v);
  return {_mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd))};
}

#if defined(__AVX512BF16__)
#define KVE_BF16_DOT 1
static inline F32 dot2(F32 acc, F32 a, F32 b) {
  // The intrinsic makes GCC 12 copy the accumulator in and out.
  asm("vdpbf16ps %2, %1, %0" : "+v"(acc.v) : "v"(a.v), "v"(b.v));
  return acc;
}
static inline void store_bf16(uint16_t* p, F32 a) {
  const auto bits = (__m256i)_mm512_cvtneps_pbh(a.v);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bits);
}
// 2 * kLanes values.
static inline void store_bf16(uint16_t* p, F32 low, F32 high) {
  _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(high.v, low.v));
}
static inline F32 pair_bf16(F32 low, F32 high) {
  alignas(64) static constexpr uint16_t kOrder[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                      21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                      11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const auto halves = (__m512i)_mm512_cvtne2ps_pbh(high.v, low.v);
  return {_mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_load_si512(kOrder), halves))};
}
static inline F32 interleave16(const uint16_t* low, const uint16_t* high) {
  const auto wide = [](const uint16_t* p) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  };
  return {_mm512_castsi512_ps(_mm512_or_si512(wide(low), _mm512_slli_epi32(wide(high), 16)))};
}
#endif

struct GroupAcc {
  __m256 v;
};
static inline GroupAcc group_zero() { return {_mm256_setzero_ps()}; }
static inline GroupAcc group_dot(GroupAcc acc, const int8_t* w, const int8_t* x, float scale0,
                                 float scale1) {
  const __m256i wv = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
  const __m256i xv = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  const __m256i dot =
      _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_abs_epi8(wv), _mm256_sign_epi8(xv, wv));
  const __m256 scale = _mm256_set_m128(_mm_set1_ps(scale1), _mm_set1_ps(scale0));
  return {_mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, acc.v)};
}
static inline float sum(GroupAcc a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

}  // namespace kve::KVE_ISA
