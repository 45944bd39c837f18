#include "kernels/cpu/isa/basis.h"

#include <string.h>

#include "kernels/cpu/isa/rounded_projection.h"

namespace kve::KVE_ISA {

static Projection carve_projection(Carver& carver, int64_t dim, int64_t most_pages,
                                   int64_t n_vectors) {
  Projection plan = {};
  const int64_t padded = round_up(dim, 2 * kLanes);
  plan.n_vectors = n_vectors;
  plan.row_stride = padded;
  plan.lift_stride = round_up(dim, kGemmCols);
  plan.queries = carver.take<float>(n_vectors * padded);
  plan.turned = carver.take<float>(padded);
  plan.rows = carver.take<float>(most_pages * n_vectors * padded);
  plan.lift = carver.take<float>(round_up(dim, kLanes) * round_up(dim, kGemmCols));
#if defined(KVE_WORD_TILES)
  plan.words = carve_lift_words(carver, dim, most_pages * n_vectors, n_vectors);
#endif
  return plan;
}

size_t projection_bytes(int64_t dim, int64_t most_pages, int64_t n_vectors) {
  Carver carver(nullptr);
  carve_projection(carver, dim, most_pages, n_vectors);
  return carver.size();
}

// ---- the lift, as the right side of the product ----

static void expand_lift(const Projection& plan) {
  for (int64_t j = 0; j < plan.basis.block; ++j) {
    const int64_t row = lift_row(plan, j);
    for (int64_t c = 0; c < plan.basis.block_width; c += kLanes) {
      store(plan.lift + j * plan.lift_stride + c, lift_numbers(plan.basis, row, c));
    }
  }
}

#if defined(KVE_BF16_DOT)
static void round_lift(const Projection& plan) {
  for (int64_t j = 0; j < plan.basis.block; j += 2) {
    const int64_t row = lift_row(plan, j);
    const int64_t next = lift_row(plan, j + 1);
    for (int64_t c = 0; c < plan.basis.block_width; c += kLanes) {
      uint16_t low[kLanes];
      uint16_t high[kLanes];
      store_bf16(low, lift_numbers(plan.basis, row, c));
      store_bf16(high, lift_numbers(plan.basis, next, c));
      store(plan.lift + j / 2 * plan.lift_stride + c, interleave16(low, high));
    }
  }
}
#endif

// ---- queries ----

// In the order that lift_row() asks for.
static void order_query(const Projection& plan, const float* query, float* to) {
  const int64_t n = plan.ordered && plan.basis.interleaved ? plan.basis.n_pairs : 0;
  for (int64_t i = 0; i < n; ++i) {
    to[i] = query[2 * i];
    to[n + i] = query[2 * i + 1];
  }
  for (int64_t i = 2 * n; i < plan.basis.dim; ++i) to[i] = query[i];
}

#if defined(KVE_BF16_DOT)
constexpr bool kRoundsLifts = true;
#else
constexpr bool kRoundsLifts = false;
#endif

Projection plan_projection(const BasisView& basis, const float* queries, int64_t query_stride,
                           int64_t n_vectors, int64_t most_pages, bool rounded, std::byte* memory) {
  Carver carver(memory);
  Projection plan = carve_projection(carver, basis.dim, most_pages, n_vectors);
  plan.basis = basis;
  const bool dense = basis.block == basis.dim;
  // Pairs of bf16 would reach over the end of a block of odd size.
  plan.rounded = rounded && kRoundsLifts && (dense || basis.block % 2 == 0);
  plan.ordered = dense && basis.anchor != 0;
  for (int64_t v = 0; v < n_vectors; ++v) {
    order_query(plan, queries + v * query_stride, plan.queries + v * plan.row_stride);
  }
#if defined(KVE_BF16_DOT)
  if (plan.rounded) {
    round_lift(plan);
    return plan;
  }
#elif defined(KVE_WORD_TILES)
  // A query that is projected once would not pay for rounding the lift.
  plan.in_words = rounded && plan.ordered;
  if (plan.in_words) {
    round_projection(&plan);
    return plan;
  }
#endif
  expand_lift(plan);
  return plan;
}

// Rotates n pairs (x, y) back.
static void turn_back(const float* x, const float* y, const float* cosines, const float* sines,
                      int64_t n, float* to_x, float* to_y) {
  F32 first;
  F32 second;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    turn_back(load(x + i), load(y + i), load(cosines + i), load(sines + i), &first, &second);
    store(to_x + i, first);
    store(to_y + i, second);
  }
  if (i < n) {
    const int64_t some = n - i;
    turn_back(load_n(x + i, some), load_n(y + i, some), load_n(cosines + i, some),
              load_n(sines + i, some), &first, &second);
    store_n(to_x + i, first, some);
    store_n(to_y + i, second, some);
  }
}

const float* turned_query(const Projection& plan, const float* query, const float* angles) {
  const BasisView& basis = plan.basis;
  if (basis.anchor == 0) return query;
  const int64_t n = basis.n_pairs;
  float* to = plan.turned;
  if (basis.interleaved && !plan.ordered) {
    for (int64_t i = 0; i < n; ++i) {
      const float x = query[2 * i];
      const float y = query[2 * i + 1];
      to[2 * i] = x * angles[i] + y * angles[n + i];
      to[2 * i + 1] = y * angles[i] - x * angles[n + i];
    }
  } else {
    turn_back(query, query + n, angles, angles + n, n, to, to + n);
  }
  for (int64_t i = 2 * n; i < basis.dim; ++i) to[i] = query[i];
  return to;
}

// A query as a row of the product.
static void put_row(const Projection& plan, const float* query, float* to) {
  const int64_t dim = plan.basis.dim;
#if defined(KVE_BF16_DOT)
  if (plan.rounded) {
    auto* halves = reinterpret_cast<uint16_t*>(to);
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) store_bf16(halves + d, load(query + d));
    if (d < dim) store_bf16(halves + d, load_n(query + d, dim - d));
    return;
  }
#endif
  memcpy(to, query, sizeof(float) * static_cast<size_t>(dim));
}

void project_pages(const Projection& plan, const float* const* angles, int64_t n_pages,
                   float* coefficients, int64_t stride) {
#if defined(KVE_WORD_TILES)
  if (plan.in_words) return project_rounded(plan, angles, n_pages, coefficients, stride);
#endif
  const BasisView& basis = plan.basis;
  float* row = plan.rows;
  for (int64_t p = 0; p < n_pages; ++p) {
    const float* turn = basis.anchor == 0 ? nullptr : angles[p];
    for (int64_t v = 0; v < plan.n_vectors; ++v, row += plan.row_stride) {
      put_row(plan, turned_query(plan, plan.queries + v * plan.row_stride, turn), row);
    }
  }
  const int64_t n_rows = n_pages * plan.n_vectors;
  const auto product = [&](int64_t b, int64_t depth, int64_t at, auto gemm_of) {
    gemm_of(n_rows, basis.block_width, depth, plan.rows + at, plan.row_stride, plan.lift,
            plan.lift_stride, coefficients + b * basis.block_width, stride, false);
  };
  for (int64_t b = 0; b < basis.dim / basis.block; ++b) {
#if defined(KVE_BF16_DOT)
    if (plan.rounded) {
      product(b, (basis.block + 1) / 2, b * basis.block / 2, gemm_bf16);
      continue;
    }
#endif
    product(b, basis.block, b * basis.block, gemm);
  }
}

size_t projection_scratch(const BasisView& basis, int n_positions, int n_vectors) {
  return projection_bytes(basis.dim, n_positions, n_vectors);
}

void project_queries(const QueryProjection& job) {
  const Projection plan = plan_projection(*job.basis, job.queries, job.query_stride, job.n_vectors,
                                          job.n_positions, job.rounded, job.scratch);
  project_pages(plan, job.angles, job.n_positions, job.coefficients, job.stride);
}

// ---- lifting ----

// Rows of a block at a time.
constexpr int64_t kLiftRows = 64;

// out[v][i] = row first + i of the lift . vector v, for i < n.
static void dot_lift_rows(const BasisView& basis, int64_t first, int64_t n, const float* vectors,
                          int64_t vector_stride, int64_t n_vectors, float* out, int64_t stride) {
  const int64_t width = basis.block_width;
  // Whole vectors only: what lies behind other widths is multiplied by zeros, and may be no number.
  if (basis.lift8 == nullptr && width % kLanes == 0) {
    return dot_f16_rows({basis.lift + first * width, n, width, vectors, vector_stride, n_vectors},
                        out, stride);
  }
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t v = 0; v < n_vectors; ++v) {
      F32 total = zero();
      for (int64_t c = 0; c < width; c += kLanes) {
        const F32 values = load_n(vectors + v * vector_stride + c, least(width - c, kLanes));
        total = fma(lift_numbers(basis, first + i, c), values, total);
      }
      out[v * stride + i] = sum(total);
    }
  }
}

void lift_values(const ValueLift& job) {
  const BasisView& basis = *job.basis;
  float lifted[kRowVectors * (kLiftRows + kLanes)];
  constexpr int64_t kStride = kLiftRows + kLanes;
  for (int64_t at = 0; at < basis.dim; at += least(kLiftRows, basis.block - at % basis.block)) {
    const int64_t row = at % basis.block;
    const int64_t n = least(kLiftRows, basis.block - row);
    const float* from = job.coefficients + at / basis.block * basis.block_width;
    for (int64_t v = 0; v < job.n_vectors; v += kRowVectors) {
      const int64_t vectors = least(kRowVectors, job.n_vectors - v);
      dot_lift_rows(basis, row, n, from + v * job.stride, job.stride, vectors, lifted, kStride);
      for (int64_t i = 0; i < vectors; ++i) {
        add(job.out + (v + i) * job.out_stride + at, lifted + i * kStride, n);
      }
    }
  }
}

}  // namespace kve::KVE_ISA
