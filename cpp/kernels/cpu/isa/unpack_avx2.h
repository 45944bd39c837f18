// unpack_group of the common weight types with 256-bit vectors. The formats' headers are the
// definition.
#pragma once

#include <immintrin.h>

#include "formats/weight/q4_0.h"
#include "formats/weight/q4_1.h"
#include "formats/weight/q4_k.h"
#include "formats/weight/q5_0.h"
#include "formats/weight/q5_1.h"
#include "formats/weight/q5_k.h"
#include "formats/weight/q6_k.h"
#include "formats/weight/q8_0.h"
#include "kernels/cpu/isa/isa.h"

namespace kve::KVE_ISA {

static inline float native_half(const uint8_t* bytes) { return _cvtsh_ss(load_u16(bytes)); }
static inline __m256i load_codes(const void* bytes) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(bytes));
}
static inline void store_codes(CodeGroup* out, __m256i codes) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out->codes), codes);
}

// 16 bytes: low nibbles, then high nibbles.
static inline __m256i nibbles(const uint8_t* qs) {
  const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(qs));
  return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(packed, 4), packed),
                          _mm256_set1_epi8(15));
}
// 16 where bit i of the four bytes is set.
static inline __m256i fifth_bits(const uint8_t* qh) {
  const __m256i bytes =
      _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int32_t>(load_u32(qh))),
                          _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2,
                                           2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3));
  const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
  const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
  return _mm256_and_si256(set, _mm256_set1_epi8(16));
}
// Every byte shifted right, its upper bits cleared by `mask`.
static inline __m256i shifted(__m256i bytes, int count, int mask) {
  return _mm256_and_si256(_mm256_srl_epi16(bytes, _mm_cvtsi32_si128(count)),
                          _mm256_set1_epi8(to_code(mask)));
}

static inline void unpack_native(const BlockQ4_0& block, int /*group*/, CodeGroup* out) {
  store_codes(out, _mm256_sub_epi8(nibbles(block.qs), _mm256_set1_epi8(8)));
  set_scale(out, native_half(block.d));
}
static inline void unpack_native(const BlockQ4_1& block, int /*group*/, CodeGroup* out) {
  store_codes(out, nibbles(block.qs));
  set_scale(out, native_half(block.d), native_half(block.m));
}
static inline void unpack_native(const BlockQ5_0& block, int /*group*/, CodeGroup* out) {
  const __m256i codes = _mm256_or_si256(nibbles(block.qs), fifth_bits(block.qh));
  store_codes(out, _mm256_sub_epi8(codes, _mm256_set1_epi8(16)));
  set_scale(out, native_half(block.d));
}
static inline void unpack_native(const BlockQ5_1& block, int /*group*/, CodeGroup* out) {
  store_codes(out, _mm256_or_si256(nibbles(block.qs), fifth_bits(block.qh)));
  set_scale(out, native_half(block.d), native_half(block.m));
}
static inline void unpack_native(const BlockQ8_0& block, int /*group*/, CodeGroup* out) {
  store_codes(out, load_codes(block.qs));
  set_scale(out, native_half(block.d));
}

template <class Block>
static inline void set_k_scale(const Block& block, int group, CodeGroup* out) {
  const KScale k = load_k_scale(block.scales, group);
  set_scale(out, native_half(block.d) * static_cast<float>(k.scale),
            -(native_half(block.dmin) * static_cast<float>(k.min)));
}
static inline void unpack_native(const BlockQ4_K& block, int group, CodeGroup* out) {
  store_codes(out, shifted(load_codes(block.qs + 32 * (group / 2)), 4 * (group & 1), 15));
  set_k_scale(block, group, out);
}
static inline void unpack_native(const BlockQ5_K& block, int group, CodeGroup* out) {
  const __m256i low = shifted(load_codes(block.qs + 32 * (group / 2)), 4 * (group & 1), 15);
  const __m256i high = shifted(load_codes(block.qh), group, 1);
  store_codes(out, _mm256_or_si256(low, _mm256_slli_epi16(high, 4)));
  set_k_scale(block, group, out);
}
static inline void unpack_native(const BlockQ6_K& block, int group, CodeGroup* out) {
  const int half = group / 4;
  const int place = group % 4;
  const __m256i low =
      shifted(load_codes(block.ql + 64 * half + 32 * (place & 1)), 4 * (place / 2), 15);
  const __m256i high = shifted(load_codes(block.qh + 32 * half), 2 * place, 3);
  const __m256i codes = _mm256_or_si256(low, _mm256_slli_epi16(high, 4));
  store_codes(out, _mm256_sub_epi8(codes, _mm256_set1_epi8(32)));
  const float d = native_half(block.d);
  set_scales(out, d * static_cast<float>(block.scales[2 * group]),
             d * static_cast<float>(block.scales[2 * group + 1]));
}

}  // namespace kve::KVE_ISA
