// Few inputs against the common weight types, straight from the file's layout, with kernels that
// know the layout. So far there are such kernels for AVX-512.
#include "kernels/cpu/isa/isa.h"

#if defined(KVE_ISA_AVX512)
#include "kernels/cpu/isa/avx512/block_steps.h"
#include "kernels/cpu/isa/avx512/super_steps.h"

namespace kve::KVE_ISA {

// The sums of four vectors.
static inline __m128 sums_of(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 abcd =
      _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// Rows that are multiplied together lie side by side, so the file is read in order, only not byte
// by byte: asks for what the steps kPrefetch bytes further on will read.
template <int kBytes>
static inline void prefetch_ahead(const std::byte* data) {
  constexpr int kPrefetch = 8192;
  KVE_UNROLL(16)
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
  KVE_UNROLL(4)
  for (int i = 0; i < 4; ++i) acc[i] = _mm512_setzero_ps();
  const int64_t n_steps = cols / Step::kCols;
  for (int64_t step = 0; step < n_steps; ++step) {
    prefetch_ahead<kRows * Step::kBytes>(row + step * kRows * Step::kBytes);
    KVE_UNROLL(4)
    for (int r = 0; r < kRows; ++r) {
      const std::byte* data = row + static_cast<size_t>(r) * row_bytes + step * Step::kBytes;
      const Step unpacked(WholeStep{data});
      KVE_UNROLL(4)
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
      KVE_UNROLL(4)
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

bool matvec_native(const MatmulChunk& chunk, const QuantizedInput& x) {
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

#else

namespace kve::KVE_ISA {

bool matvec_native(const MatmulChunk& /*chunk*/, const QuantizedInput& /*x*/) { return false; }

}  // namespace kve::KVE_ISA

#endif
