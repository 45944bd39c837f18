// Loops that do nothing but keep the arithmetic units, or the memory, busy. Sums stay in registers;
// one operand is loaded anew in every round, so that nothing can be computed ahead of the loop.
#include "kernels/cpu/isa/isa.h"
#if defined(KVE_ISA_AMX)
#include "simd/amx.h"
#endif

namespace kve::KVE_ISA {
namespace {

// kRows x kCols sums hide the latency of a dependent multiply-add and leave room for operands.
constexpr int kRows = 4;
constexpr int kCols = kLanes == 16 ? 3 : 2;
// Bytes that a stream is read ahead: what is fastest for either kind of prefetch_once().
#if defined(KVE_BF16_DOT)
constexpr int64_t kAhead = 4096;
#else
constexpr int64_t kAhead = 8192;
#endif

// One kind of arithmetic: step() multiplies kValues pairs and adds the products to a vector of
// sums.
struct Int8 {
  using Value = int8_t;
  using Sums = I32;
  using Operand = I32;
  using Total = int32_t;
  static constexpr int kValues = 4 * kLanes;
  static inline Sums none() { return set_i32(0); }
  static inline Operand operand(const int8_t* p) { return load_i32(p); }
  // As dot4, for operands whose signs do not matter: what a kernel with offset codes can reach.
  static inline Sums step(Sums acc, Operand w, Operand x) {
#if defined(KVE_ISA_AVX2)
    const __m256i pairs = _mm256_maddubs_epi16(w.v, x.v);
    return {_mm256_add_epi32(acc.v, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))};
#else
    return dot4(acc, w, x);
#endif
  }
  static inline void put(int32_t* p, Sums sums) { store_i32(p, sums); }
};

struct Real {
  using Value = float;
  using Sums = F32;
  using Operand = F32;
  using Total = float;
  static constexpr int kValues = kLanes;
  static inline Sums none() { return zero(); }
  static inline Operand operand(const float* p) { return load(p); }
  static inline Sums step(Sums acc, Operand w, Operand x) { return fma(w, x, acc); }
  static inline void put(float* p, Sums sums) { store(p, sums); }
};

#if defined(__AVX512BF16__)
struct Bf16 : Real {
  using Value = uint16_t;
  using Operand = __m512bh;
  static constexpr int kValues = 2 * kLanes;
  static inline Operand operand(const uint16_t* p) {
    return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p));
  }
  static inline Sums step(Sums acc, Operand w, Operand x) {
    return {_mm512_dpbf16_ps(acc.v, w, x)};
  }
};
#endif

template <class Kind>
int64_t multiply_add(const typename Kind::Value* ones, int64_t rounds, typename Kind::Total* sums) {
  constexpr int kStep = kRows * Kind::kValues;
  static_assert(kPeakValues % kStep == 0 && kPeakValues >= kCols + Kind::kValues);
  static_assert(kPeakSums >= kRows * kCols * kLanes);
  typename Kind::Sums acc[kRows][kCols];
  typename Kind::Operand x[kCols];
  for (int c = 0; c < kCols; ++c) {
    x[c] = Kind::operand(ones + c);
    for (int r = 0; r < kRows; ++r) acc[r][c] = Kind::none();
  }
  int64_t at = 0;
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const typename Kind::Operand w = Kind::operand(ones + at + r * Kind::kValues);
#pragma GCC unroll 4
      for (int c = 0; c < kCols; ++c) acc[r][c] = Kind::step(acc[r][c], w, x[c]);
    }
    at = (at + kStep) & (kPeakValues - 1);
  }
  for (int i = 0; i < kPeakSums; ++i) sums[i] = 0;
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kCols; ++c) Kind::put(sums + (r * kCols + c) * kLanes, acc[r][c]);
  }
  return rounds * kCols * kStep;
}

}  // namespace

int64_t peak_int8(const int8_t* ones, int64_t rounds, int32_t* sums) {
  return multiply_add<Int8>(ones, rounds, sums);
}

int64_t peak_f32(const float* ones, int64_t rounds, float* sums) {
  return multiply_add<Real>(ones, rounds, sums);
}

#if defined(KVE_ISA_AMX)
// 2 x 2 registers of sums, as in products.
int64_t peak_bf16(const uint16_t* ones, int64_t rounds, float* sums) {
  static_assert(kPeakValues * sizeof(uint16_t) >= kTileUnitBytes && kPeakSums == 16 * 16);
  const TileUnit unit;
  alignas(64) float totals[4][kPeakSums];
  zero_tile<0>();
  zero_tile<1>();
  zero_tile<2>();
  zero_tile<3>();
  load_tile<6>(ones, 64);
  load_tile<7>(ones, 64);
  for (int64_t i = 0; i < rounds; ++i) {
    load_tile<4>(ones, 64);
    load_tile<5>(ones, 64);
    dot_bf16<0, 4, 6>();
    dot_bf16<1, 4, 7>();
    dot_bf16<2, 5, 6>();
    dot_bf16<3, 5, 7>();
  }
  store_tile<0>(totals[0], 64);
  store_tile<1>(totals[1], 64);
  store_tile<2>(totals[2], 64);
  store_tile<3>(totals[3], 64);
  for (int i = 0; i < kPeakSums; ++i) {
    sums[i] = totals[0][i] + totals[1][i] + totals[2][i] + totals[3][i];
  }
  return rounds * 4 * kPeakSums * 32;
}
#elif defined(__AVX512BF16__)
int64_t peak_bf16(const uint16_t* ones, int64_t rounds, float* sums) {
  return multiply_add<Bf16>(ones, rounds, sums);
}
#endif

void peak_read(const float* values, int64_t n, float* sums) {
  F32 acc[4] = {zero(), zero(), zero(), zero()};
  constexpr int64_t kLine = 16;  // floats
  for (int64_t i = 0; i < n; i += 4 * kLine) {
    const char* ahead = reinterpret_cast<const char*>(values + i) + kAhead;
#pragma GCC unroll 4
    for (int line = 0; line < 4; ++line) {
      prefetch_once(ahead + line * 64);
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
