// Projections of queries that are turned for every page, in rounded numbers: the lift is rounded
// once, queries page by page. By int16 (word_projection.cpp) or, where the tile unit is there, by
// bf16 (bf16_projection.cpp).
#pragma once

#include "kernels/cpu/isa/basis.h"
#include "kernels/cpu/isa/word_tiles.h"

#if defined(KVE_WORD_TILES)

namespace kve::KVE_ISA {

// For at most `most_rows` queries at a time, of n_vectors different ones and `dim` values.
static inline LiftWords carve_lift_words(Carver& carver, int64_t dim, int64_t most_rows,
                                         int64_t n_vectors) {
  const int64_t lanes = round_up(dim, kLiftLanes);
  const int64_t rows = round_up(most_rows, kWordLiftRows);
  LiftWords words = {};
  words.row_words = round_up(dim, 2 * kLanes) / 2;
  words.rows = carver.take<int32_t>(rows * words.row_words);
  words.lift = carver.take<int32_t>(lanes * words.row_words);
#if defined(KVE_BF16_TILES)
  words.factor = carver.take<float>(2 * words.row_words);
  words.broken = carver.take<float>(n_vectors);
#else
  words.column_scale = carver.take<float>(lanes);
  words.row_scale = carver.take<float>(rows);
  words.query_inverse = carver.take<float>(n_vectors);
  words.codes = carver.take<int32_t>(kLanes * words.row_words);
#endif
  return words;
}
// The lift, and what is common to all turns of a query.
void round_projection(Projection* plan);
// As project_pages().
void project_rounded(const Projection& plan, const float* const* angles, int64_t n_pages,
                     float* coefficients, int64_t stride);

}  // namespace kve::KVE_ISA

#endif
