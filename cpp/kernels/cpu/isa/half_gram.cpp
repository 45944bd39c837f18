#include "kernels/half_dots.h"

#include <string.h>

#include "kernels/cpu/isa/isa.h"

namespace kve::KVE_ISA {

constexpr int64_t kGramRows = 32;   // that are doubles at a time
constexpr int64_t kGramSquare = 8;  // rows and columns of sums that stay in registers
constexpr int64_t kGramStride = kMostGramBlock;

// As long as AVX-512's registers; elsewhere a few of them.
typedef double GramVector __attribute__((vector_size(kGramSquare * sizeof(double))));

// n numbers in f64, zeros up to `padded`. Other than zero if one is not finite.
static inline float widen_piece(const uint16_t* from, int64_t n, int64_t padded, double* to) {
  float numbers[kGramStride + kLanes];
  F32 bad = zero();
  for (int64_t c = 0; c < n; c += kLanes) {
    const F32 some = load_f16_n(from + c, least(n - c, kLanes));
    bad = fma(some, zero(), bad);
    store(numbers + c, some);
  }
  for (int64_t c = n; c < padded; ++c) numbers[c] = 0;
  for (int64_t c = 0; c < padded; c += kGramSquare) {
    for (int64_t i = c; i < c + kGramSquare; ++i) to[i] = static_cast<double>(numbers[i]);
  }
  return sum(bad);
}

// Of the squares on and above the diagonal.
static void add_products(const double* pieces, int64_t n, int64_t padded, double* sums) {
  for (int64_t i = 0; i < padded; i += kGramSquare) {
    for (int64_t j = i; j < padded; j += kGramSquare) {
      GramVector square[kGramSquare];
      double* at = sums + i * kGramStride + j;
      KVE_UNROLL(8)
      for (int k = 0; k < kGramSquare; ++k)
        memcpy(&square[k], at + k * kGramStride, sizeof(GramVector));
      for (int64_t r = 0; r < n; ++r) {
        const double* piece = pieces + r * kGramStride;
        GramVector x;
        memcpy(&x, piece + j, sizeof(x));
        KVE_UNROLL(8)
        for (int k = 0; k < kGramSquare; ++k) square[k] += piece[i + k] * x;
      }
      KVE_UNROLL(8)
      for (int k = 0; k < kGramSquare; ++k) {
        memcpy(at + k * kGramStride, &square[k], sizeof(GramVector));
      }
    }
  }
}

int64_t gram_halves(const HalfGram& job) {
  const int64_t padded = round_up(job.block, kGramSquare);
  alignas(64) double pieces[kGramRows * kGramStride];
  alignas(64) double sums[kGramStride * kGramStride];
  memset(sums, 0, sizeof(sums));
  for (int64_t i = 0; i < job.block; ++i) {
    for (int64_t j = i; j < job.block; ++j)
      sums[i * kGramStride + j] = job.upper[i * job.block + j];
  }
  int64_t count = 0;
  for (int64_t c = 0; c < job.width; c += job.block) {
    for (int64_t first = 0; first < job.n; first += kGramRows) {
      const int64_t end = least(first + kGramRows, job.n);
      int64_t held = 0;
      for (int64_t r = first; r < end; ++r) {
        const uint16_t* from = job.rows + r * job.stride + c;
        const float bad = widen_piece(from, job.block, padded, pieces + held * kGramStride);
        if (bad == 0) ++held;
      }
      add_products(pieces, held, padded, sums);
      count += held;
    }
  }
  for (int64_t i = 0; i < job.block; ++i) {
    for (int64_t j = i; j < job.block; ++j)
      job.upper[i * job.block + j] = sums[i * kGramStride + j];
  }
  return count;
}

}  // namespace kve::KVE_ISA
