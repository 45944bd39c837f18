// Arguments of the functions that read pages of strips (formats/cache/strips.h) as they lie in
// memory. Plain data: see kernels.h.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernels/basis_view.h"

namespace kve {

// Coefficients of a row that is read code by code, at most.
inline constexpr int kMaxStripWidth = 1024;

// A value is scale * level + zero. How a code stands for its level:
enum class StripLevels : uint8_t {
  code,     // the code itself
  centred,  // code - 2^(bits - 1)
  table,    // an entry of a table, of codes of 4 bits at most
};

// What a page stores beside the parameters of its groups, in binary16.
enum class StripFactors : uint8_t {
  none,
  add_channels,    // [width], added to the values
  scale_channels,  // [width], multiplied into the values
  scale_tokens,    // [64], the same
};

// What the pages of one head and basis have in common: `width` coefficients of a row, which may be
// some of those that a page holds.
struct StripSide {
  int32_t width = 0;                    // coefficients of a row
  int32_t bits = 0;                     // of every strip, unless `strip_bits` says otherwise
  const uint8_t* strip_bits = nullptr;  // keys: [key_strips(width)], 0 to 8, falling
  StripLevels levels = StripLevels::code;
  const float* table = nullptr;  // [2^bits]
  // Parameters: per channel and `group` (16, 32 or 64) tokens, [64 / group][width]; or per token
  // and `group` channels (a multiple of 16, or the whole width), [ceil(width / group)][64]. Rows of
  // parameters are scale_stride scales and zero_stride zeros apart.
  bool per_channel = false;
  int32_t group = 0;
  int32_t scale_bytes = 2;   // 2: binary16; 1: the 8-bit logarithmic format
  bool has_zero = false;     // binary16
  int32_t scaled_width = 0;  // per channel: channels that have a scale; the others lie behind them
  int32_t scale_stride = 0;
  int32_t zero_stride = 0;
  StripFactors factors = StripFactors::none;
  // Within a page.
  size_t code_offset = 0;
  size_t scale_offset = 0;
  size_t zero_offset = 0;
  size_t factor_offset = 0;
  // Queries and weights become sums of this many int8 numbers (1 or 2).
  int32_t planes = 1;
};

// Products of queries and the keys of several pages, not yet limited to the rows of a page.
struct StripScores {
  const StripSide* side;
  const std::byte* const* pages;
  int32_t n_pages;
  const float* queries;  // [n_vectors] rows of side->width values, query_stride apart
  int64_t query_stride;
  int32_t n_vectors;
  float* scores;  // [n_pages][n_vectors][64]
  std::byte* scratch;
};

// Values of several pages, times their weights, added to sums.
struct StripSums {
  const StripSide* side;
  const std::byte* const* pages;
  int32_t n_pages;
  int32_t last_rows;     // of the last page; the others have 64
  const float* weights;  // [n_pages][n_vectors][64], zero past the last row
  int32_t n_vectors;
  float* sums;  // [n_vectors][side->width]
  std::byte* scratch;
};

// Queries as the coefficients of a basis, once for each of several positions that keys are anchored
// at: coefficient = lift^T R(-position) query. Without rotation where basis->anchor == 0.
struct QueryProjection {
  const BasisView* basis;
  const float* const* angles;  // [n_positions] cosines, then sines, of all pairs
  int32_t n_positions;
  const float* queries;  // [n_vectors] rows of basis->dim values, query_stride apart
  int64_t query_stride;
  int32_t n_vectors;
  bool rounded;         // to bf16, where the instruction set multiplies that
  float* coefficients;  // [n_positions][n_vectors] rows of `stride` >= width rounded up to 16
  int64_t stride;
  std::byte* scratch;
};

// Sums of coefficients as values: out += lift coefficients.
struct ValueLift {
  const BasisView* basis;
  const float* coefficients;  // [n_vectors] rows of basis->width values, stride apart
  int64_t stride;
  int32_t n_vectors;
  float* out;  // [n_vectors] rows of basis->dim values, out_stride apart
  int64_t out_stride;
};

}  // namespace kve
