#include <string.h>

#include "kernels/cpu/isa/rounded_projection.h"

#if defined(KVE_WORD_TILES) && !defined(KVE_BF16_TILES)

namespace kve::KVE_ISA {

// Columns of the lift are taken as queries (word_tiles.h), turned queries as keys: their norm, and
// therefore their scale, is that of the query.
void round_projection(Projection* plan) {
  const BasisView& basis = plan->basis;
  const LiftWords& words = plan->words;
  const int64_t width = basis.block_width;
  float* columns = plan->lift;
  memset(columns, 0, sizeof(float) * static_cast<size_t>(width * plan->row_stride));
  for (int64_t j = 0; j < basis.block; ++j) {
    const int64_t row = lift_row(*plan, j);
    float numbers[kLanes];
    for (int64_t c = 0; c < width; c += kLanes) {
      store(numbers, lift_numbers(basis, row, c));
      for (int64_t i = 0; i < least(kLanes, width - c); ++i) {
        columns[(c + i) * plan->row_stride + j] = numbers[i];
      }
    }
  }
  quantize_queries(columns, plan->row_stride, width, words.row_words, kLiftLanes, words.codes,
                   words.lift, words.column_scale);
  for (int64_t v = 0; v < plan->n_vectors; ++v) {
    words.query_inverse[v] =
        row_step(plan->queries + v * plan->row_stride, basis.dim, words.row_scale + v);
  }
}

void project_rounded(const Projection& plan, const float* const* angles, int64_t n_pages,
                     float* coefficients, int64_t stride) {
  const LiftWords& words = plan.words;
  const int64_t n_rows = n_pages * plan.n_vectors;
  WordTile tile = {};
  tile.key_words = words.row_words;
  tile.keys = words.rows;
  tile.key_scale = words.row_scale;
  for (int64_t r = 0; r < n_rows; ++r) {
    const int64_t v = r % plan.n_vectors;
    const float* query =
        turned_query(plan, plan.queries + v * plan.row_stride, angles[r / plan.n_vectors]);
    put_row_words(query, plan.basis.dim, words.query_inverse[v], words.row_words,
                  words.rows + r * words.row_words);
    words.row_scale[r] = words.row_scale[v];
  }
  lift_rows(tile, n_rows, words.row_words, words.lift, words.column_scale,
            round_up(plan.basis.block_width, kLanes), coefficients, stride);
}

}  // namespace kve::KVE_ISA

#endif
