// Few inputs against the common weight types, straight from the file's layout, with AVX-512.
//
// A step is what one iteration takes from a row: four blocks of 32 values, or one block of 256. A
// step type gives
//   kCols, kBytes            columns and bytes of a step
//   Step(const P& bytes)     unpacks; `bytes` loads the row's bytes, 64 at an offset
//   add(acc, x, step)        acc plus the products with input x, spread over the lanes
#pragma once

#include <string.h>

#include "kernels/cpu/isa/vector_input.h"

namespace kve::KVE_ISA {

// 64 bytes at `offset` of a step that is complete.
struct WholeStep {
  static constexpr bool kWhole = true;
  const std::byte* data;
  __m512i operator()(int offset) const { return _mm512_loadu_si512(data + offset); }
  __m256i half(int offset) const {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + offset));
  }
  uint16_t word(int offset) const {
    uint16_t value;
    memcpy(&value, data + offset, sizeof(value));
    return value;
  }
};
// A step of which only the first `size` bytes exist; the rest reads as zero.
struct PartialStep {
  static constexpr bool kWhole = false;
  const std::byte* data;
  int64_t size;
  __m512i operator()(int offset) const {
    const int64_t n = size - offset;
    if (n <= 0) return _mm512_setzero_si512();
    const __mmask64 mask = n >= 64 ? ~__mmask64{0} : (__mmask64{1} << n) - 1;
    return _mm512_maskz_loadu_epi8(mask, data + offset);
  }
  __m256i half(int offset) const { return _mm512_castsi512_si256((*this)(offset)); }
  uint16_t word(int offset) const {
    return static_cast<uint16_t>(_mm_cvtsi128_si32(_mm512_castsi512_si128((*this)(offset))));
  }
};

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
  static constexpr auto kCodeWords = make_table<uint16_t, 32>([](int i) {
    return word_index<kSecond>(i / 8 * kBlock + kHeader + kHigh + i % 8 * 2);
  });
  // Words 0-15: each block's scale 4 times; words 16-31: its minimum.
  static constexpr auto kScaleWords = make_table<uint16_t, 32>([](int i) {
    return word_index<kSecond>(i % 16 / 4 * kBlock + (kMin ? i / 16 * 2 : 0));
  });
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

// Each of two floats 8 times.
static inline __m512 spread_pair(__m512 values, int first) {
  const __m512i index = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  return _mm512_permutexvar_ps(_mm512_add_epi32(index, _mm512_set1_epi32(first)), values);
}

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
    const __m512i bit =
        _mm512_inserti64x4(_mm512_set1_epi8(1), _mm256_set1_epi8(2), 1);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      codes[j] =
          _mm512_and_si512(_mm512_srlv_epi16(load_twice(quants + 32 * j), shift), mask);
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
      const __m512i dot =
          _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes[j],
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
    const uint64_t scale = (packed[0] & low) |
                           (uint64_t{(packed[2] & nibble) | ((packed[0] >> 2) & top)} << 32);
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
    const __m512i numbers = _mm512_cvtepi8_epi32(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(data + 192)));
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
      const __m512 each = _mm512_permutexvar_ps(
          _mm512_add_epi32(index, _mm512_set1_epi32(4 * j)), scale);
      acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), each, acc);
    }
    return acc;
  }
};

// The sums of four vectors.
static inline __m128 sums_of(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 abcd =
      _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 half =
      _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// Rows that are multiplied together lie side by side, so the file is read in order, only not byte
// by byte: asks for what the steps kPrefetch bytes further on will read.
template <int kBytes>
static inline void prefetch_ahead(const std::byte* data) {
  constexpr int kPrefetch = 8192;
#pragma GCC unroll 16
  for (int i = 0; i < kBytes; i += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(data) + kPrefetch + i, _MM_HINT_T0);
  }
}

// Products of kRows rows (at most 4) with kInputs inputs (kRows * kInputs == 4) of `cols` columns;
// results[input * kRows + row].
template <class Step, int kRows, int kInputs>
__attribute__((noinline)) static void multiply_rows(const std::byte* row, size_t row_bytes,
                                                    int64_t cols, const VectorInput* x,
                                                    float* results) {
  static_assert(kRows * kInputs == 4);
  __m512 acc[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) acc[i] = _mm512_setzero_ps();
  const int64_t n_steps = cols / Step::kCols;
  for (int64_t step = 0; step < n_steps; ++step) {
    prefetch_ahead<kRows * Step::kBytes>(row + step * kRows * Step::kBytes);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const std::byte* data = row + static_cast<size_t>(r) * row_bytes + step * Step::kBytes;
      const Step unpacked(WholeStep{data});
#pragma GCC unroll 4
      for (int i = 0; i < kInputs; ++i) {
        acc[i * kRows + r] = unpacked.add(acc[i * kRows + r], x[i], step);
      }
    }
  }
  if constexpr (Step::kCols == 128) {
    const int64_t rest = cols - n_steps * Step::kCols;
    for (int r = 0; rest > 0 && r < kRows; ++r) {
      const std::byte* data = row + static_cast<size_t>(r) * row_bytes + n_steps * Step::kBytes;
      const Step unpacked(PartialStep{data, rest / 32 * (Step::kBytes / Step::kGroups)});
#pragma GCC unroll 4
      for (int i = 0; i < kInputs; ++i) {
        acc[i * kRows + r] = unpacked.add(acc[i * kRows + r], x[i], n_steps);
      }
    }
  }
  _mm_storeu_ps(results, sums_of(acc[0], acc[1], acc[2], acc[3]));
}

// Inputs [first, ...) for kRows rows at `row`; sums[input][row]. Spare inputs repeat the last one.
template <class Step>
static void multiply_block(const MatmulChunk& chunk, const std::byte* row, int64_t n_rows,
                           const VectorInput* x, int64_t n_inputs, float (*sums)[4]) {
  const auto one_row = [&](int64_t r, int64_t input) {
    float results[4];
    multiply_rows<Step, 1, 4>(row + static_cast<size_t>(r) * chunk.row_bytes, chunk.row_bytes,
                              chunk.cols, x + input, results);
    for (int64_t i = 0; i < 4; ++i) sums[input + i][r] = results[i];
  };
  if (n_rows < 4 || n_inputs > 2) {
    for (int64_t r = 0; r < n_rows; ++r) {
      for (int64_t input = 0; input < n_inputs; input += 4) one_row(r, input);
    }
  } else if (n_inputs == 2) {
    for (int64_t r = 0; r < 4; r += 2) {
      float results[4];
      multiply_rows<Step, 2, 2>(row + static_cast<size_t>(r) * chunk.row_bytes, chunk.row_bytes,
                                chunk.cols, x, results);
      memcpy(&sums[0][r], results, 8);
      memcpy(&sums[1][r], results + 2, 8);
    }
  } else {
    multiply_rows<Step, 4, 1>(row, chunk.row_bytes, chunk.cols, x, sums[0]);
  }
}

template <class Step>
static void multiply_native(const MatmulChunk& chunk, const QuantizedInput& input) {
  const int64_t n_inputs = chunk.n_tokens * input.planes;
  const int64_t bytes = VectorInput::bytes(chunk.cols);
  VectorInput x[8];
  for (int64_t i = 0; i < 8; ++i) {
    x[i] = VectorInput(const_cast<std::byte*>(input.data) + least(i, n_inputs - 1) * bytes,
                       chunk.cols);
  }
  const int64_t end = chunk.first_row + chunk.n_rows;
  for (int64_t r = chunk.first_row; r < end; r += 4) {
    const int64_t n = least(end - r, 4);
    float sums[8][4];
    multiply_block<Step>(chunk, chunk.weight + static_cast<size_t>(r) * chunk.row_bytes, n, x,
                         n_inputs, sums);
    for (int64_t t = 0; t < chunk.n_tokens; ++t) {
      for (int64_t j = 0; j < n; ++j) {
        float total = sums[t * input.planes][j];
        if (input.planes == 2) total += sums[2 * t + 1][j];
        if (chunk.bias != nullptr) total += chunk.bias[r + j];
        chunk.y[t * chunk.y_stride + r + j] = total;
      }
    }
  }
}

// False for types without a kernel here.
static bool matvec_native(const MatmulChunk& chunk, const QuantizedInput& x) {
  switch (chunk.format->type) {
    case WeightType::q4_0:
      return multiply_native<StepQ4_0>(chunk, x), true;
    case WeightType::q4_1:
      return multiply_native<StepQ4_1>(chunk, x), true;
    case WeightType::q5_0:
      return multiply_native<StepQ5_0>(chunk, x), true;
    case WeightType::q5_1:
      return multiply_native<StepQ5_1>(chunk, x), true;
    case WeightType::q8_0:
      return multiply_native<StepQ8_0>(chunk, x), true;
    case WeightType::q4_k:
      return multiply_native<StepK<false>>(chunk, x), true;
    case WeightType::q5_k:
      return multiply_native<StepK<true>>(chunk, x), true;
    case WeightType::q6_k:
      return multiply_native<StepQ6_K>(chunk, x), true;
    default:
      return false;
  }
}

}  // namespace kve::KVE_ISA
