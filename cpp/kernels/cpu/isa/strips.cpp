// Pages of strips for those who are not the attention frame: tests and benchmarks.
#include <string.h>

#include "kernels/cpu/isa/strip_pages.h"

namespace kve::KVE_ISA {

// How far prefetching is ahead of reading.
constexpr int32_t kPagesAhead = 1;

size_t strip_scratch(const StripSide& side, int n_vectors) {
  Carver carver(nullptr);
  carver.take<float>(n_vectors * strip_sum_floats(side));
  carver.take<float>(n_vectors * round_up(side.width, 16));
  carver.take<float>(n_vectors * kRunStride);
  const size_t keys = key_strips_bytes(side, n_vectors);
  const size_t values = value_strips_bytes(side);
  return carver.size() + (keys > values ? keys : values);
}

// At most kRunPages pages from number `first` on, and the lines of those that follow each.
static StripRun run_of(const StripSide& side, const std::byte* const* pages, int32_t first,
                       int32_t n_pages, int32_t last_rows) {
  StripRun run = {};
  run.n_pages = static_cast<int32_t>(least(kRunPages, n_pages - first));
  for (int32_t p = 0; p < run.n_pages; ++p) {
    const int32_t at = first + p;
    run.pages[p] = pages[at];
    run.rows[p] = at + 1 == n_pages ? last_rows : 64;
    const int32_t later = at + kPagesAhead;
    run.codes_ahead[p].soon = later < n_pages ? pages[later] + side.code_offset : nullptr;
    run.params_ahead[p] = at + kRunPages < n_pages ? pages[at + kRunPages] : nullptr;
    run.params_side[p] = &side;
  }
  return run;
}

// Copies rows of `n` floats, `from_stride` and `to_stride` apart.
static void copy_rows(const float* from, int64_t from_stride, int64_t rows, int64_t n, float* to,
                      int64_t to_stride) {
  for (int64_t r = 0; r < rows; ++r) {
    memcpy(to + r * to_stride, from + r * from_stride, sizeof(float) * static_cast<size_t>(n));
  }
}

void score_strips(const StripScores& job) {
  const int64_t padded = round_up(job.side->width, 16);
  Carver carver(job.scratch);
  float* queries = carver.take<float>(job.n_vectors * padded);
  float* scores = carver.take<float>(job.n_vectors * kRunStride);
  memset(queries, 0, sizeof(float) * static_cast<size_t>(job.n_vectors * padded));
  copy_rows(job.queries, job.query_stride, job.n_vectors, job.side->width, queries, padded);
  const KeyStrips keys = plan_keys(*job.side, job.n_vectors, job.scratch + carver.size());
  const StripQueries vectors = {queries, padded, 0};
  set_queries(keys, vectors);
  for (int32_t first = 0; first < job.n_pages; first += kRunPages) {
    const StripRun run = run_of(*job.side, job.pages, first, job.n_pages, 64);
    score_run(keys, vectors, run, scores);
    for (int32_t p = 0; p < run.n_pages; ++p) {
      copy_rows(scores + p * 64, kRunStride, job.n_vectors, 64,
                job.scores + int64_t{first + p} * job.n_vectors * 64, 64);
    }
  }
}

void add_strips(const StripSums& job) {
  const int64_t floats = strip_sum_floats(*job.side);
  const int64_t width = job.side->width;
  Carver carver(job.scratch);
  float* sums = carver.take<float>(job.n_vectors * floats);
  float* weights = carver.take<float>(job.n_vectors * kRunStride);
  memset(sums, 0, sizeof(float) * static_cast<size_t>(job.n_vectors * floats));
  const ValueStrips values = plan_values(*job.side, job.scratch + carver.size());
  for (int32_t first = 0; first < job.n_pages; first += kRunPages) {
    const StripRun run = run_of(*job.side, job.pages, first, job.n_pages, job.last_rows);
    for (int32_t p = 0; p < run.n_pages; ++p) {
      copy_rows(job.weights + int64_t{first + p} * job.n_vectors * 64, 64, job.n_vectors, 64,
                weights + p * 64, kRunStride);
    }
    add_run(values, run, job.n_vectors, weights, sums, floats);
  }
  for (int64_t v = 0; v < job.n_vectors; ++v) {
    close_sums(*job.side, sums + v * floats);
    for (int64_t c = 0; c < width; ++c) job.sums[v * width + c] += sums[v * floats + c];
  }
}

}  // namespace kve::KVE_ISA
