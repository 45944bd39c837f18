// Dot products of rows of binary16 with a few vectors, and of their columns with each other.
#pragma once

#include <stdint.h>

namespace kve {

// Results are written for rows up to the next multiple of so many.
inline constexpr int64_t kHalfDotRows = 16;

struct HalfDots {
  const uint16_t* rows;  // f16 [n, width]
  int64_t n;
  int64_t width;
  const float* vectors;   // [n_vectors] rows of `width` values, vector_stride apart
  int64_t vector_stride;  // at least `width` rounded up to 16
  int64_t n_vectors;
  float* out;          // [n_vectors] rows of n values, out_stride apart
  int64_t out_stride;  // at least n rounded up to kHalfDotRows
};

// Of wider blocks others sum up.
inline constexpr int64_t kMostGramBlock = 64;

// Rows are cut into pieces of `block` columns, pieces x of all rows being added first column first:
// upper[i][j] += x[i] * x[j] for i <= j, one after the other. Pieces with a number that is not
// finite are left out. Products of binary16 are exact in float64, so that the bits are the same on
// every instruction set.
struct HalfGram {
  const uint16_t* rows;  // f16 [n, width]
  int64_t n;
  int64_t stride;  // between rows
  int64_t width;   // a multiple of `block`
  int64_t block;   // at most kMostGramBlock
  double* upper;   // [block, block]; what is below the diagonal stays as it is
};

}  // namespace kve
