// Dot products of pairs of int16 numbers, for the instruction sets that have them (KVE_WORD_TILES):
//
//   dot2_words(acc, a, b)   acc + the dot product of the two int16 numbers of each lane
//   pair_words(low, high)   lanes of the low 16 bits of two vectors, the first in the low half
//   store_words(p, a)       the low 16 bits of the lanes
//   as_i32(a)               the bits of floats as lanes
//   scaled_bytes<i>(a)      bytes i and i + 1 of the lanes, which have a sign, as int16 times 2^5
//   swap_pairs(a)           lanes 2 i and 2 i + 1 exchanged
//   blend_bits(mask, a, b)  bits of a where the mask has ones, else of b
//   round_bf16_pair(low, high)   lanes of pairs of bf16 numbers, rounded to the nearest
//   inverse_rough(a)             1 / a to 2^-14, relative
//   turn_quads(r)           lane 4 q + j of vector i becomes lane 4 q + i of vector j
//   widen_u16(p, q)         eight numbers at p and eight at q, without a sign
//   every_second<i>(a, b)   lanes i, i + 2, ... of a, then those of b
#pragma once

#include "simd/simd.h"

namespace kve::KVE_ISA {

#if defined(KVE_ISA_AVX512)

static inline I32 dot2_words(I32 acc, I32 a, I32 b) {
  // The intrinsic makes GCC 12 copy the accumulator in and out.
  asm("vpdpwssd %2, %1, %0" : "+v"(acc.v) : "v"(a.v), "v"(b.v));
  return acc;
}
static inline I32 pair_words(I32 low, I32 high) {
  return {_mm512_mask_blend_epi16(0xaaaaaaaau, low.v, _mm512_slli_epi32(high.v, 16))};
}
static inline void store_words(int16_t* p, I32 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a.v));
}
static inline I32 as_i32(F32 a) { return {_mm512_castps_si512(a.v)}; }
template <int kFirst>
static inline I32 scaled_bytes(I32 a) {
  // To the upper halves of the words, and back.
  constexpr int kOrder = 0x00800080 | kFirst << 8 | (kFirst + 1) << 24;
  const __m512i order = _mm512_add_epi32(
      _mm512_set1_epi32(kOrder),
      _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0x04000400, 0x08000800, 0x0c000c00)));
  return {_mm512_srai_epi16(_mm512_shuffle_epi8(a.v, order), 3)};
}
static inline F32 swap_pairs(F32 a) { return {_mm512_permute_ps(a.v, 0xb1)}; }
static inline I32 blend_bits(I32 mask, I32 a, I32 b) {
  return {_mm512_ternarylogic_epi32(mask.v, a.v, b.v, 0xca)};
}
static inline F32 inverse_rough(F32 a) { return {_mm512_rcp14_ps(a.v)}; }
static inline I32 round_bf16_pair(F32 low, F32 high) {
  const I32 half = set_i32(0x8000);
  return blend_bits(set_i32(static_cast<int32_t>(0xffff0000)), as_i32(high) + half,
                    shift_right(as_i32(low) + half, 16));
}
static inline void turn_quads(I32 (&r)[4]) {
  const __m512i a = _mm512_unpacklo_epi32(r[0].v, r[1].v);
  const __m512i b = _mm512_unpackhi_epi32(r[0].v, r[1].v);
  const __m512i c = _mm512_unpacklo_epi32(r[2].v, r[3].v);
  const __m512i d = _mm512_unpackhi_epi32(r[2].v, r[3].v);
  r[0].v = _mm512_unpacklo_epi64(a, c);
  r[1].v = _mm512_unpackhi_epi64(a, c);
  r[2].v = _mm512_unpacklo_epi64(b, d);
  r[3].v = _mm512_unpackhi_epi64(b, d);
}
static inline I32 widen_u16(const void* p, const void* q) {
  const __m128i low = _mm_loadu_si128(static_cast<const __m128i*>(p));
  const __m128i high = _mm_loadu_si128(static_cast<const __m128i*>(q));
  return {_mm512_cvtepu16_epi32(_mm256_set_m128i(high, low))};
}
template <int kFirst>
static inline F32 every_second(F32 a, F32 b) {
  const __m512i order =
      _mm512_add_epi32(_mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
                       _mm512_set1_epi32(kFirst));
  return {_mm512_permutex2var_ps(a.v, order, b.v)};
}

#endif

}  // namespace kve::KVE_ISA
