#include "kernels/cpu/isa/rounded_projection.h"

#if defined(KVE_BF16_TILES)

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

// 32 values of a turned query as words of its row; zero from the dimension on.
static inline I32 round_turned(const LiftWords& words, int64_t d, F32 low, F32 high) {
  return round_bf16_pair(low * load(words.factor + d), high * load(words.factor + d + kLanes));
}
// A turned query as a row of the product.
static void put_query(const LiftWords& words, const float* query, int32_t* to) {
  for (int64_t w = 0; w < words.row_words; w += kLanes) {
    const int64_t d = 2 * w;
    store_i32(to + w, round_turned(words, d, load(query + d), load(query + d + kLanes)));
  }
}
// Turns a query all of whose n pairs do, a multiple of 32, on the way.
static void put_turned(const LiftWords& words, const float* query, const float* angles, int64_t n,
                       int32_t* to) {
  for (int64_t i = 0; i < n; i += kStepNumbers) {
    F32 first[2];
    F32 second[2];
    KVE_UNROLL(2)
    for (int k = 0; k < 2; ++k) {
      const int64_t at = i + k * kLanes;
      turn_back(load(query + at), load(query + n + at), load(angles + at), load(angles + n + at),
                &first[k], &second[k]);
    }
    store_i32(to + i / 2, round_turned(words, i, first[0], first[1]));
    store_i32(to + (n + i) / 2, round_turned(words, n + i, second[0], second[1]));
  }
}
// Of the queries of some pages, rows of the product; those that have infinities or such are none
// throughout.
static void put_rows(const Projection& plan, const float* const* angles, int64_t n_pages) {
  constexpr int32_t kNoNumbers = 0x7fc07fc0;
  const LiftWords& words = plan.words;
  const int64_t n_pairs = plan.basis.n_pairs;
  const bool all_turn = 2 * n_pairs == plan.basis.dim && n_pairs % kStepNumbers == 0;
  int32_t* to = words.rows;
  for (int64_t p = 0; p < n_pages; ++p) {
    for (int64_t v = 0; v < plan.n_vectors; ++v, to += words.row_words) {
      const float* query = plan.queries + v * plan.row_stride;
      if (words.broken[v] != 0) {
        for (int64_t w = 0; w < words.row_words; ++w) to[w] = kNoNumbers;
      } else if (all_turn) {
        put_turned(words, query, angles[p], n_pairs, to);
      } else {
        put_query(words, turned_query(plan, query, angles[p]), to);
      }
    }
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
  put_rows(plan, angles, n_pages);
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
