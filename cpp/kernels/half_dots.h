// Dot products of rows of binary16 with a few vectors.
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

}  // namespace kve
