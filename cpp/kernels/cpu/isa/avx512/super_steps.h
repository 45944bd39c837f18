// Steps of the types with blocks of 256 values: Q4_K, Q5_K, Q6_K.
#pragma once

#include "kernels/cpu/isa/avx512/spread.h"
#include "kernels/cpu/isa/avx512/step_bytes.h"
#include "kernels/cpu/isa/vector_input.h"

namespace kve::KVE_ISA {
namespace {

// Q4_K and Q5_K. Vector j holds groups 2j and 2j + 1.
template <bool kFive>
struct StepK {
  static constexpr int kCols = 256;
  static constexpr int kGroups = 8;
  static constexpr int kBytes = kFive ? 176 : 144;

  __m512i codes[4];
  __m512 scales;  // 8 scales, 8 negated minima

  template <class Bytes>
  explicit StepK(const Bytes& bytes) {
    static_assert(Bytes::kWhole, "rows hold whole blocks of 256");
    const std::byte* data = bytes.data;
    const std::byte* quants = data + (kFive ? 48 : 16);
    const __m512i shift = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
    const __m512i mask = _mm512_set1_epi8(15);
    const __m512i high = kFive ? load_twice(data + 16) : _mm512_setzero_si512();
    // The fifth bit of group g is bit g of a byte.
    const __m512i bit = _mm512_inserti64x4(_mm512_set1_epi8(1), _mm256_set1_epi8(2), 1);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      codes[j] = _mm512_and_si512(_mm512_srlv_epi16(load_twice(quants + 32 * j), shift), mask);
      if constexpr (kFive) {
        const __mmask64 set = _mm512_test_epi8_mask(high, _mm512_slli_epi16(bit, 2 * j));
        codes[j] = _mm512_mask_add_epi8(codes[j], set, codes[j], _mm512_set1_epi8(16));
      }
    }
    scales = unpack_scales(data);
  }

  __m512 add(__m512 acc, const VectorInput& x, int64_t step) const {
    const __m512 scale = _mm512_mul_ps(scales, _mm512_load_ps(x.k_scales + 16 * step));
    acc = _mm512_mask_add_ps(acc, 0xff00, acc, scale);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m512i dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes[j],
                                              _mm512_load_si512(x.codes + 256 * step + 64 * j));
      acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), spread_pair(scale, 2 * j), acc);
    }
    return acc;
  }

 private:
  static __m512i load_twice(const std::byte* data) {
    return _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(data)));
  }
  // See formats/weight/k_scales.h; here on whole words of four 6-bit numbers.
  static __m512 unpack_scales(const std::byte* data) {
    uint32_t head;
    uint32_t packed[3];
    memcpy(&head, data, 4);
    memcpy(packed, data + 4, 12);
    const uint32_t low = 0x3f3f3f3f;
    const uint32_t nibble = 0x0f0f0f0f;
    const uint32_t top = 0x30303030;
    const uint64_t scale =
        (packed[0] & low) | (uint64_t{(packed[2] & nibble) | ((packed[0] >> 2) & top)} << 32);
    const uint64_t min = (packed[1] & low) |
                         (uint64_t{((packed[2] >> 4) & nibble) | ((packed[1] >> 2) & top)} << 32);
    const __m512 numbers = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(
        _mm_set_epi64x(static_cast<int64_t>(min), static_cast<int64_t>(scale))));
    // Lane 0: d, lane 1: -dmin.
    const __m128 unit = _mm_cvtph_ps(_mm_cvtsi32_si128(static_cast<int32_t>(head ^ 0x80000000u)));
    return _mm512_mul_ps(numbers, spread_pair(_mm512_castps128_ps512(unit), 0));
  }
};

// Q6_K. Vector j holds groups 2j and 2j + 1, four lanes to each scale.
struct StepQ6_K {
  static constexpr int kCols = 256;
  static constexpr int kGroups = 8;
  static constexpr int kBytes = 210;

  __m512i codes[4];  // plus 32
  __m512 scales;     // per 16

  template <class Bytes>
  explicit StepQ6_K(const Bytes& bytes) {
    static_assert(Bytes::kWhole, "rows hold whole blocks of 256");
    const std::byte* data = bytes.data;
    const __m512i nibble = _mm512_set1_epi8(15);
    const __m512i pair = _mm512_set1_epi8(0x30);
    const __m512i left = _mm512_inserti64x4(_mm512_set1_epi32(4), _mm256_set1_epi32(2), 1);
    const __m512i right = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi32(2), 1);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m512i low = _mm512_loadu_si512(data + 64 * half);
      const __m512i high = _mm512_broadcast_i64x4(
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + 128 + 32 * half)));
      // Their two bits come to bits 4 and 5.
      const __m512i high0 = _mm512_and_si512(_mm512_sllv_epi32(high, left), pair);
      const __m512i high1 = _mm512_and_si512(_mm512_srlv_epi32(high, right), pair);
      codes[2 * half] = _mm512_or_si512(_mm512_and_si512(low, nibble), high0);
      codes[2 * half + 1] =
          _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(low, 4), nibble), high1);
    }
    uint16_t unit;
    memcpy(&unit, data + 208, 2);
    const __m512i numbers =
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data + 192)));
    scales = _mm512_mul_ps(_mm512_cvtepi32_ps(numbers), _mm512_set1_ps(_cvtsh_ss(unit)));
  }

  __m512 add(__m512 acc, const VectorInput& x, int64_t step) const {
    const __m512 scale = _mm512_mul_ps(scales, _mm512_load_ps(x.half_scales + 16 * step));
    const __m512i index = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const int64_t unit = 4 * step + j;
      // -128 times the sums becomes -32 times.
      __m512i dot = _mm512_srai_epi32(_mm512_load_si512(x.starts + 16 * unit), 2);
      dot = _mm512_dpbusd_epi32(dot, codes[j], _mm512_load_si512(x.codes + 64 * unit));
      const __m512 each =
          _mm512_permutexvar_ps(_mm512_add_epi32(index, _mm512_set1_epi32(4 * j)), scale);
      acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), each, acc);
    }
    return acc;
  }
};

}  // namespace
}  // namespace kve::KVE_ISA
