// Inputs quantized for products of many inputs (matmat.cpp).
#pragma once

#include "kernels/cpu/isa/dots.h"
#include "simd/words.h"

namespace kve::KVE_ISA {

// Where minima have dot products of int16 pairs, what an input sums to in each group and the minima
// of a row are both int16 numbers in units of their norm over kMostWord, so that their dot product
// stays below 2^30 (Cauchy and Schwarz). That is half of the arithmetic of floats.
#if defined(KVE_ISA_AVX512)
#define KVE_WORD_MINIMA 1
constexpr bool kWordMinima = true;
#else
constexpr bool kWordMinima = false;
#endif
constexpr float kMostWord = 32767.0f;
static inline int64_t group_pairs(int64_t cols) { return (cols / 32 + 1) / 2; }

#if defined(KVE_WORD_MINIMA)
// Writes values(0) ... values(n - 1), lanes of F32, as pairs of words: put(j, words of 2 j and
// 2 j + 1). Returns their units: NaN where a value is no number, or infinite.
template <class Values, class Put>
static inline F32 round_to_words(int64_t n, const Values& values, const Put& put) {
  F32 most = zero();
  for (int64_t i = 0; i < n; ++i) most = max(most, abs(values(i)));
  const Mask tiny = less(most, set(1e-30f));  // the inverse of its unit would overflow
  const F32 share = select(tiny, zero(), set(1.0f) / most);
  F32 squares = zero();
  for (int64_t i = 0; i < n; ++i) squares = fma(values(i) * share, values(i) * share, squares);
  float norms[kLanes];
  store(norms, squares);
  for (float& norm : norms) norm = __builtin_sqrtf(norm);
  const F32 unit = most * load(norms) * set(1.0f / kMostWord);
  const F32 inverse = select(tiny, zero(), set(1.0f) / unit);
  for (int64_t i = 0; i < n; i += 2) {
    const F32 next = i + 1 < n ? values(i + 1) : zero();
    put(i / 2, pair_words(to_i32(values(i) * inverse), to_i32(next * inverse)));
  }
  return unit;
}
#endif

namespace {

// kMatTokens inputs. An entry is 32 columns of them in one plane: first all columns in their order,
// then those that some input has a second plane of, in which the other inputs are zero.
struct Pack {
  int32_t* n_entries;  // [1]
  int32_t* groups;     // [entries]: columns 32 * group ...
  int32_t* codes;      // [entries][kMatTokens][8], 4 codes each
  float* scales;       // [entries][kMatTokens]
  int32_t* start16;    // [entries][2][kMatTokens]: what sums begin with, to take back kDotBias
  int32_t* start32;    // [entries][kMatTokens]
  float* sums16;       // [n_groups][2][kMatTokens]: scale times the sum of codes, of both planes
  float* sums32;       // [n_groups][kMatTokens]
  int32_t* sum_words;  // [group_pairs][kMatTokens]: sums32 of two groups (kWordMinima)
  float* sum_units;    // [kMatTokens]
  int64_t n_groups;

  Pack(std::byte* data, int64_t cols) : n_groups(cols / 32) {
    const int64_t most = 2 * n_groups;
    Carver carver(data);
    n_entries = carver.take<int32_t>(1);
    groups = carver.take<int32_t>(most);
    codes = carver.take<int32_t>(most * 8 * kMatTokens);
    scales = carver.take<float>(most * kMatTokens);
    start16 = carver.take<int32_t>(most * 2 * kMatTokens);
    start32 = carver.take<int32_t>(most * kMatTokens);
    sums16 = carver.take<float>(n_groups * 2 * kMatTokens);
    sums32 = carver.take<float>(n_groups * kMatTokens);
    sum_words = carver.take<int32_t>(kWordMinima ? group_pairs(cols) * kMatTokens : 0);
    sum_units = carver.take<float>(kWordMinima ? kMatTokens : 0);
    size = carver.size();
  }
  size_t size;
};

}  // namespace

}  // namespace kve::KVE_ISA
