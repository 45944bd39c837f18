#include "kernels/cpu/isa/rounded_projection.h"

#if defined(KVE_BF16_TILES)

#include <math.h>

#include "simd/amx.h"

namespace kve::KVE_ISA {

constexpr int64_t kStepNumbers = 2 * kLanes;  // of a row in one product

// Words of the lift: [step][block of 16 columns][16 pairs of rows][16 columns], pairs being those
// of a query (round_bf16_pair of neighbouring vectors). Factors of int8 numbers belong to the
// query's values, so that the numbers stay what they are.
void round_projection(Projection* plan) {
  const BasisView& basis = plan->basis;
  const LiftWords& words = plan->words;
  int32_t* to = words.lift;
  for (int64_t first = 0; first < basis.block; first += kStepNumbers) {
    for (int64_t c = 0; c < basis.block_width; c += kLanes) {
      for (int64_t j = first; j < first + kLanes; ++j, to += kLanes) {
        store_i32(to, round_bf16_pair(lift_codes(basis, lift_row(*plan, j), c),
                                      lift_codes(basis, lift_row(*plan, j + kLanes), c)));
      }
    }
  }
  for (int64_t j = 0; j < 2 * words.row_words; ++j) {
    words.factor[j] = lift_factor(basis, lift_row(*plan, j));
  }
  for (int64_t v = 0; v < plan->n_vectors; ++v) {
    const float* query = plan->queries + v * plan->row_stride;
    F32 bad = zero();
    for (int64_t d = 0; d < basis.dim; d += kLanes) {
      bad = fma(load_n(query + d, least(basis.dim - d, kLanes)), zero(), bad);
    }
    words.broken[v] = sum(bad);
  }
  for (int64_t d = basis.dim; d < plan->row_stride; ++d) plan->turned[d] = 0;
}

// A turned query as a row of the product; one that has infinities or such is none throughout.
static inline void put_query(const LiftWords& words, const float* query, bool broken, int32_t* to) {
  constexpr int32_t kNoNumbers = 0x7fc07fc0;
  for (int64_t w = 0; w < words.row_words; w += kLanes) {
    const int64_t d = 2 * w;
    const I32 pair = round_bf16_pair(load(query + d) * load(words.factor + d),
                                     load(query + d + kLanes) * load(words.factor + d + kLanes));
    store_i32(to + w, broken ? set_i32(kNoNumbers) : pair);
  }
}

// Some rows times kBlocks blocks of 16 columns of the lift; blocks are kTileUnitBytes apart and
// steps `step` words.
template <int kBlocks>
static inline void multiply_rows(const LiftWords& words, const int32_t* rows, const int32_t* lift,
                                 int64_t step, float* to, int64_t stride) {
  constexpr int64_t kBlockWords = kTileUnitBytes / 4;
  const int64_t to_bytes = stride * static_cast<int64_t>(sizeof(float));
  zero_tile<0>();
  if constexpr (kBlocks == 4) {
    zero_tile<1>();
    zero_tile<2>();
    zero_tile<3>();
  }
  for (int64_t w = 0; w < words.row_words; w += kLanes, lift += step) {
    load_tile<4>(rows + w, words.row_words * 4);
    load_tile<5>(lift, 64);
    dot_bf16<0, 4, 5>();
    if constexpr (kBlocks == 4) {
      load_tile<6>(lift + kBlockWords, 64);
      dot_bf16<1, 4, 6>();
      load_tile<7>(lift + 2 * kBlockWords, 64);
      dot_bf16<2, 4, 7>();
      load_tile<5>(lift + 3 * kBlockWords, 64);
      dot_bf16<3, 4, 5>();
    }
  }
  store_tile<0>(to, to_bytes);
  if constexpr (kBlocks == 4) {
    store_tile<1>(to + kLanes, to_bytes);
    store_tile<2>(to + 2 * kLanes, to_bytes);
    store_tile<3>(to + 3 * kLanes, to_bytes);
  }
}

void project_rounded(const Projection& plan, const float* const* angles, int64_t n_pages,
                     float* coefficients, int64_t stride) {
  const LiftWords& words = plan.words;
  const int64_t n_rows = n_pages * plan.n_vectors;
  int32_t* row = words.rows;
  for (int64_t p = 0; p < n_pages; ++p) {
    for (int64_t v = 0; v < plan.n_vectors; ++v, row += words.row_words) {
      const float* query = turned_query(plan, plan.queries + v * plan.row_stride, angles[p]);
      put_query(words, query, words.broken[v] != 0, row);
    }
  }
  // As many rows to each product, the last of which makes some a second time.
  const int64_t products = (n_rows + kTileUnitRows - 1) / kTileUnitRows;
  const int64_t rows = (n_rows + products - 1) / products;
  const int64_t width = round_up(plan.basis.block_width, kLanes);
  const int64_t step = width * kLanes;
  const TileUnit unit(static_cast<int>(rows));
  for (int64_t i = 0; i < products; ++i) {
    const int64_t first = least(i * rows, n_rows - rows);
    const int32_t* from = words.rows + first * words.row_words;
    float* to = coefficients + first * stride;
    int64_t c = 0;
    for (; c + 4 * kLanes <= width; c += 4 * kLanes) {
      multiply_rows<4>(words, from, words.lift + c * kLanes, step, to + c, stride);
    }
    for (; c < width; c += kLanes) {
      multiply_rows<1>(words, from, words.lift + c * kLanes, step, to + c, stride);
    }
  }
}

}  // namespace kve::KVE_ISA

#endif
