// Steps of the types with blocks of 32 values: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
#pragma once

#include "kernels/cpu/isa/avx512/spread.h"
#include "kernels/cpu/isa/avx512/step_bytes.h"
#include "kernels/cpu/isa/vector_input.h"

namespace kve::KVE_ISA {
namespace {

struct HalfPair {
  __m512 low;
  __m512 high;
};
static inline HalfPair halves_to_f32(__m512i halves) {
  return {_mm512_cvtph_ps(_mm512_castsi512_si256(halves)),
          _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1))};
}

// Index vectors: entry i of a table is f(i).
template <class T, int kSize, class F>
constexpr auto make_table(F f) {
  struct Table {
    alignas(64) T values[kSize];
  } table{};
  for (int i = 0; i < kSize; ++i) table.values[i] = static_cast<T>(f(i));
  return table;
}
// As indices into two 64-byte vectors, the second of which starts kSecond bytes after the first:
// the 16-bit word at byte `at` of a step.
template <int kSecond>
constexpr int word_index(int at) {
  return at < 64 ? at / 2 : 32 + (at - kSecond) / 2;
}
template <int kSecond>
constexpr int byte_index(int at) {
  return at < 64 ? at : 64 + (at - kSecond);
}

// Q4_0, Q4_1, Q5_0, Q5_1: kHeader bytes of scale (and minimum), kHigh bytes of fifth bits, 16 bytes
// of nibbles. Four blocks at a time: lanes 4b..4b+3 belong to block b.
template <int kHeader, int kHigh>
struct NibbleStep {
  static constexpr int kBlock = kHeader + kHigh + 16;
  static constexpr int kCols = 128;
  static constexpr int kGroups = 4;
  static constexpr int kBytes = 4 * kBlock;
  static constexpr int kSecond = kBytes - 64;
  static constexpr bool kMin = kHeader == 4;
  static constexpr float kZero = kMin ? 0.0f : (kHigh > 0 ? 16.0f : 8.0f);
  static constexpr auto kCodeWords = make_table<uint16_t, 32>(
      [](int i) { return word_index<kSecond>(i / 8 * kBlock + kHeader + kHigh + i % 8 * 2); });
  // Words 0-15: each block's scale 4 times; words 16-31: its minimum.
  static constexpr auto kScaleWords = make_table<uint16_t, 32>(
      [](int i) { return word_index<kSecond>(i % 16 / 4 * kBlock + (kMin ? i / 16 * 2 : 0)); });
  // The byte that holds the fifth bit of value i % 16 of block i / 16; two more for value + 16.
  template <int kPart>
  static constexpr auto high_bytes() {
    return make_table<uint8_t, 64>([](int i) {
      return byte_index<kSecond>(i / 16 * kBlock + kHeader + 2 * kPart + i % 16 / 8);
    });
  }
  static constexpr auto kHighBytes0 = high_bytes<0>();
  static constexpr auto kHighBytes1 = high_bytes<1>();

  __m512i low;
  __m512i high;
  HalfPair scales;

  template <class Bytes>
  explicit NibbleStep(const Bytes& bytes) {
    const __m512i first = bytes(0);
    const __m512i second = bytes(kSecond);
    const __m512i codes =
        _mm512_permutex2var_epi16(first, _mm512_load_si512(kCodeWords.values), second);
    const __m512i mask = _mm512_set1_epi8(15);
    low = _mm512_and_si512(codes, mask);
    high = _mm512_and_si512(_mm512_srli_epi16(codes, 4), mask);
    if constexpr (kHigh > 0) {
      const __m512i bit = _mm512_set1_epi64(static_cast<int64_t>(0x8040201008040201));
      const auto add_high = [&](__m512i value, const uint8_t* table) {
        const __m512i from = _mm512_permutex2var_epi8(first, _mm512_load_si512(table), second);
        return _mm512_mask_add_epi8(value, _mm512_test_epi8_mask(from, bit), value,
                                    _mm512_set1_epi8(16));
      };
      low = add_high(low, kHighBytes0.values);
      high = add_high(high, kHighBytes1.values);
    }
    const __m512i words =
        _mm512_permutex2var_epi16(first, _mm512_load_si512(kScaleWords.values), second);
    if constexpr (kMin) {
      scales = halves_to_f32(words);
    } else {
      scales.low = _mm512_cvtph_ps(_mm512_castsi512_si256(words));
    }
  }

  __m512 add(__m512 acc, const VectorInput& x, int64_t step) const {
    __m512i dot = _mm512_setzero_si512();
    dot = _mm512_dpbusd_epi32(dot, low, _mm512_load_si512(x.nibbles + 128 * step));
    dot = _mm512_dpbusd_epi32(dot, high, _mm512_load_si512(x.nibbles + 128 * step + 64));
    const __m512 value = _mm512_cvtepi32_ps(dot);
    const __m512 scale = _mm512_load_ps(x.nibble_scales + 16 * step);
    const __m512 sum = _mm512_load_ps(x.nibble_sums + 16 * step);
    if constexpr (kMin) {
      acc = _mm512_fmadd_ps(scales.high, sum, acc);
      return _mm512_fmadd_ps(scales.low, _mm512_mul_ps(value, scale), acc);
    } else {
      const __m512 offset = _mm512_mul_ps(sum, _mm512_set1_ps(-kZero));
      return _mm512_fmadd_ps(scales.low, _mm512_fmadd_ps(value, scale, offset), acc);
    }
  }
};
using StepQ4_0 = NibbleStep<2, 0>;
using StepQ4_1 = NibbleStep<4, 0>;
using StepQ5_0 = NibbleStep<2, 4>;
using StepQ5_1 = NibbleStep<4, 4>;

struct StepQ8_0 {
  static constexpr int kCols = 128;
  static constexpr int kGroups = 4;
  static constexpr int kBlock = 34;
  static constexpr int kBytes = 4 * kBlock;

  __m512i codes[2];  // plus 128
  __m128 scales;

  template <class Bytes>
  explicit StepQ8_0(const Bytes& bytes) {
    const __m512i flip = _mm512_set1_epi8(-128);
    uint64_t halves = 0;
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const int first = 2 * i * kBlock;
      const __m512i low = _mm512_castsi256_si512(bytes.half(first + 2));
      const __m512i both = _mm512_inserti64x4(low, bytes.half(first + kBlock + 2), 1);
      codes[i] = _mm512_xor_si512(both, flip);
      halves |= uint64_t{bytes.word(first)} << (32 * i);
      halves |= uint64_t{bytes.word(first + kBlock)} << (32 * i + 16);
    }
    scales = _mm_cvtph_ps(_mm_cvtsi64_si128(static_cast<int64_t>(halves)));
  }

  __m512 add(__m512 acc, const VectorInput& x, int64_t step) const {
    const __m512 scale =
        _mm512_castps128_ps512(_mm_mul_ps(scales, _mm_load_ps(x.scales + 4 * step)));
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const int64_t unit = 2 * step + i;
      __m512i dot = _mm512_load_si512(x.starts + 16 * unit);
      dot = _mm512_dpbusd_epi32(dot, codes[i], _mm512_load_si512(x.codes + 64 * unit));
      acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), spread_pair(scale, 2 * i), acc);
    }
    return acc;
  }
};

}  // namespace
}  // namespace kve::KVE_ISA
