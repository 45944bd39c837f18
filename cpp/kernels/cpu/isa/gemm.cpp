// Matrix products on small blocks, for the exact matmul and both products of attention. Elements
// have 32 bits: one f32, or two bf16 numbers.
#include "kernels/cpu/isa/isa.h"

namespace kve::KVE_ISA {

enum class Element { f32, bf16_pair };

template <Element kElement>
static inline F32 multiply_add(F32 a, F32 b, F32 acc) {
#if defined(KVE_BF16_DOT)
  if constexpr (kElement == Element::bf16_pair) return dot2(acc, a, b);
#endif
  return fma(a, b, acc);
}

// kTokens x (kVectors * kLanes) values of C stay in registers. Not inlined: GCC 12 spills the
// accumulators when this loop shares a function with other vector code.
template <Element kElement, int kTokens, int kVectors>
__attribute__((noinline)) static void tile(int64_t n, int64_t k, const float* a, int64_t lda,
                                           const float* b, int64_t ldb, float* c, int64_t ldc,
                                           bool accumulate) {
  F32 acc[kTokens][kVectors];
  KVE_UNROLL(8)
  for (int t = 0; t < kTokens; ++t) {
    KVE_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) acc[t][v] = zero();
  }
  for (int64_t i = 0; i < k; ++i) {
    F32 row[kVectors];
    KVE_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) row[v] = load(b + i * ldb + v * kLanes);
    KVE_UNROLL(8)
    for (int t = 0; t < kTokens; ++t) {
      const F32 x = set(a[t * lda + i]);
      KVE_UNROLL(4)
      for (int v = 0; v < kVectors; ++v) acc[t][v] = multiply_add<kElement>(x, row[v], acc[t][v]);
    }
  }
  KVE_UNROLL(8)
  for (int t = 0; t < kTokens; ++t) {
    KVE_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) {
      float* out = c + t * ldc + v * kLanes;
      const int64_t width = least(n - v * kLanes, kLanes);
      if (width == kLanes) {
        store(out, accumulate ? load(out) + acc[t][v] : acc[t][v]);
      } else if (width > 0) {
        store_n(out, accumulate ? load_n(out, width) + acc[t][v] : acc[t][v], width);
      }
    }
  }
}

template <Element kElement, int kVectors>
static void columns(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
                    int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  static_assert(kGemmTokens == 4 || kGemmTokens == 6);
  for (; m >= kGemmTokens; m -= kGemmTokens, a += kGemmTokens * lda, c += kGemmTokens * ldc) {
    tile<kElement, kGemmTokens, kVectors>(n, k, a, lda, b, ldb, c, ldc, accumulate);
  }
  switch (m) {
    case 5:
      return tile<kElement, 5, kVectors>(n, k, a, lda, b, ldb, c, ldc, accumulate);
    case 4:
      return tile<kElement, 4, kVectors>(n, k, a, lda, b, ldb, c, ldc, accumulate);
    case 3:
      return tile<kElement, 3, kVectors>(n, k, a, lda, b, ldb, c, ldc, accumulate);
    case 2:
      return tile<kElement, 2, kVectors>(n, k, a, lda, b, ldb, c, ldc, accumulate);
    case 1:
      return tile<kElement, 1, kVectors>(n, k, a, lda, b, ldb, c, ldc, accumulate);
    default:
      return;
  }
}

template <Element kElement>
static void multiply(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
                     int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  while (n > 0) {
    int64_t width = kLanes;
    if (kGemmVectors == 4 && n > 3 * kLanes) {
      width = 4 * kLanes;
      columns<kElement, kGemmVectors>(m, n, k, a, lda, b, ldb, c, ldc, accumulate);
    } else if (kGemmVectors == 4 && n > 2 * kLanes) {
      width = 3 * kLanes;
      columns<kElement, 3>(m, n, k, a, lda, b, ldb, c, ldc, accumulate);
    } else if (n > kLanes) {
      width = 2 * kLanes;
      columns<kElement, 2>(m, n, k, a, lda, b, ldb, c, ldc, accumulate);
    } else {
      columns<kElement, 1>(m, n, k, a, lda, b, ldb, c, ldc, accumulate);
    }
    n -= width;
    b += width;
    c += width;
  }
}

void gemm(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
          float* c, int64_t ldc, bool accumulate) {
  multiply<Element::f32>(m, n, k, a, lda, b, ldb, c, ldc, accumulate);
}

#if defined(KVE_BF16_DOT)
void gemm_bf16(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
               int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  multiply<Element::bf16_pair>(m, n, k, a, lda, b, ldb, c, ldc, accumulate);
}
#endif

}  // namespace kve::KVE_ISA
