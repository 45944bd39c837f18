// Loops that do nothing but keep the arithmetic units, or the memory, busy. Sums stay in registers;
// one operand is loaded anew in every round, so that nothing can be computed ahead of the loop.
#include "kernels/cpu/isa/isa.h"

namespace kve::KVE_ISA {
namespace {

// kRows x kCols sums hide the latency of a dependent multiply-add and leave room for operands.
constexpr int kRows = 4;
constexpr int kCols = kLanes == 16 ? 3 : 2;
// Bytes that a stream is read ahead. Streams that are read once go past the caches.
constexpr int64_t kAhead = 4096;

// As dot4, for operands whose signs do not matter: what a kernel with offset codes can reach.
inline I32 unsigned_dot4(I32 acc, I32 w, I32 x) {
#if defined(KVE_ISA_AVX2)
  const __m256i pairs = _mm256_maddubs_epi16(w.v, x.v);
  return {_mm256_add_epi32(acc.v, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))};
#else
  return dot4(acc, w, x);
#endif
}

}  // namespace

static_assert(kPeakValues % (kRows * 4 * kLanes) == 0);
static_assert(kPeakSums >= kRows * kCols * kLanes);

int64_t peak_int8(const int8_t* ones, int64_t rounds, int32_t* sums) {
  I32 acc[kRows][kCols];
  I32 x[kCols];
  for (int c = 0; c < kCols; ++c) {
    x[c] = load_i32(ones + c);
    for (int r = 0; r < kRows; ++r) acc[r][c] = set_i32(0);
  }
  int64_t at = 0;
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const I32 w = load_i32(ones + at + r * 4 * kLanes);
#pragma GCC unroll 4
      for (int c = 0; c < kCols; ++c) acc[r][c] = unsigned_dot4(acc[r][c], w, x[c]);
    }
    at = (at + kRows * 4 * kLanes) & (kPeakValues - 1);
  }
  for (int i = 0; i < kPeakSums; ++i) sums[i] = 0;
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kCols; ++c) store_i32(sums + (r * kCols + c) * kLanes, acc[r][c]);
  }
  return rounds * kRows * kCols * kLanes * 4;
}

int64_t peak_f32(const float* ones, int64_t rounds, float* sums) {
  F32 acc[kRows][kCols];
  F32 x[kCols];
  for (int c = 0; c < kCols; ++c) {
    x[c] = load(ones + c);
    for (int r = 0; r < kRows; ++r) acc[r][c] = zero();
  }
  int64_t at = 0;
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const F32 w = load(ones + at + r * kLanes);
#pragma GCC unroll 4
      for (int c = 0; c < kCols; ++c) acc[r][c] = fma(w, x[c], acc[r][c]);
    }
    at = (at + kRows * kLanes) & (kPeakValues - 1);
  }
  for (int i = 0; i < kPeakSums; ++i) sums[i] = 0;
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kCols; ++c) store(sums + (r * kCols + c) * kLanes, acc[r][c]);
  }
  return rounds * kRows * kCols * kLanes;
}

void peak_read(const float* values, int64_t n, float* sums) {
  F32 acc[4] = {zero(), zero(), zero(), zero()};
  constexpr int64_t kLine = 16;  // floats
  for (int64_t i = 0; i < n; i += 4 * kLine) {
    const char* ahead = reinterpret_cast<const char*>(values + i) + kAhead;
#pragma GCC unroll 4
    for (int line = 0; line < 4; ++line) {
      __builtin_prefetch(ahead + line * 64, 0, 0);
#pragma GCC unroll 4
      for (int64_t k = 0; k < kLine; k += kLanes) {
        acc[line] = acc[line] + load(values + i + line * kLine + k);
      }
    }
  }
  for (int i = 0; i < kPeakSums; ++i) sums[i] = 0;
  for (int line = 0; line < 4; ++line) store(sums + line * kLanes, acc[line]);
}

}  // namespace kve::KVE_ISA
