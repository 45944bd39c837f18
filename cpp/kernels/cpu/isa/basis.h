// Queries and sums in the basis of the cached rows (kernels/basis_view.h), so that neither rows nor
// codes have to be lifted out of it.
#pragma once

#include <string.h>

#include "kernels/cpu/isa/isa.h"
#include "kernels/cpu/strip_args.h"

namespace kve::KVE_ISA {

// kLanes numbers of row j of the lift from number c on, those of int8 without their factor; zeros
// past the end of a row or of the lift.
static inline F32 lift_codes(const BasisView& basis, int64_t j, int64_t c) {
  const int64_t n = basis.block_width - c;
  if (j >= basis.block || n <= 0) return zero();
  const int64_t at = j * basis.block_width + c;
  if (basis.lift8 == nullptr) {
    const uint16_t* from = basis.lift + at;
    return n >= kLanes ? load_f16(from) : load_f16_n(from, n);
  }
  if (n >= kLanes) return load_i8(basis.lift8 + at);
  int8_t some[kLanes] = {};
  memcpy(some, basis.lift8 + at, static_cast<size_t>(n));
  return load_i8(some);
}
static inline float lift_factor(const BasisView& basis, int64_t j) {
  return basis.lift8 == nullptr || j >= basis.block ? 1.0f : basis.lift8_scale[j];
}
static inline F32 lift_numbers(const BasisView& basis, int64_t j, int64_t c) {
  return set(lift_factor(basis, j)) * lift_codes(basis, j, c);
}

// The lift in f32, rows `stride` apart and filled with zeros up to whole lanes.
static inline void expand_lift(const BasisView& basis, int64_t stride, float* to) {
  for (int64_t j = 0; j < basis.block; ++j) {
    for (int64_t c = 0; c < basis.block_width; c += kLanes) {
      store(to + j * stride + c, lift_numbers(basis, j, c));
    }
  }
}

// Pairs of rounded numbers of the lift and of the queries, in words (rounded_projection.h).
struct LiftWords {
  int64_t row_words;
  int32_t* rows;  // [most pages * n_vectors rounded up to 4][row_words]: turned queries
  int32_t* lift;  // [width rounded up to kLiftLanes][row_words], in the order of the product
  // Of int16: scales of the lift's columns and of the rows, and, of each query, one over its scale.
  float* column_scale;   // [width rounded up to kLiftLanes]
  float* row_scale;      // [rows]
  float* query_inverse;  // [n_vectors]
  int32_t* codes;        // [kLanes][row_words]: scratch
  // Of bf16: what each value of a query is multiplied with, and 0, or none of a broken query.
  float* factor;  // [row_stride]
  float* broken;  // [n_vectors]
};

// The basis and the queries as the product wants them. Where a dense basis is anchored, the values
// are put in the order first of each pair, second of each pair, rest, which rotation works on.
struct Projection {
  BasisView basis;
  bool rounded;   // elements hold two bf16 numbers
  bool in_words;  // or words of rounded_projection.h, of an anchored dense lift
  bool ordered;
  int64_t n_vectors;
  int64_t row_stride;   // elements
  int64_t lift_stride;  // elements
  float* queries;       // [n_vectors][row_stride]
  float* turned;        // [row_stride]: one query, zero from the dimension on
  float* rows;          // [most pages * n_vectors][row_stride]
  float* lift;          // [block][lift_stride], or [block / 2][lift_stride] pairs
  LiftWords words;
};

// The row of the lift that row j of the product is.
static inline int64_t lift_row(const Projection& plan, int64_t j) {
  const BasisView& basis = plan.basis;
  const int64_t n = basis.n_pairs;
  if (!plan.ordered || !basis.interleaved || j >= 2 * n) return j;
  return j < n ? 2 * j : 2 * (j - n) + 1;
}
// Pairs (x, y) rotated back: (x cos + y sin, y cos - x sin).
static inline void turn_back(F32 x, F32 y, F32 cosine, F32 sine, F32* to_x, F32* to_y) {
  *to_x = fma(y, sine, x * cosine);
  *to_y = fma(zero() - x, sine, y * cosine);
}
// One query, rotated back by the angles of a page.
const float* turned_query(const Projection& plan, const float* query, const float* angles);

// For bases of at most `dim` values and coefficients.
size_t projection_bytes(int64_t dim, int64_t most_pages, int64_t n_vectors);
Projection plan_projection(const BasisView& basis, const float* queries, int64_t query_stride,
                           int64_t n_vectors, int64_t most_pages, bool rounded, std::byte* memory);
// coefficients [n_pages][n_vectors] rows of `stride` >= width rounded up to kLanes. angles
// [n_pages]: cosines, then sines of all pairs at a page's anchor; for bases without, n_pages is 1.
void project_pages(const Projection& plan, const float* const* angles, int64_t n_pages,
                   float* coefficients, int64_t stride);

}  // namespace kve::KVE_ISA
