// Attention over a cache of any codec: one chunk of queries, and the merging of partial results.
#include "kernels/cpu/isa/attend.h"

#include <math.h>
#include <string.h>

namespace kve::KVE_ISA {

static AttendState carve_state(Carver& carver, int64_t n_vectors, int key_dim, int value_dim) {
  AttendState state;
  state.n_vectors = n_vectors;
  state.key_stride = round_up(key_dim, 16);
  state.value_stride = attend_value_stride(value_dim);
  state.queries = carver.take<float>(n_vectors * state.key_stride);
  state.sums = carver.take<float>(n_vectors * state.value_stride);
  state.unit = carver.take<float>(n_vectors);
  state.weight = carver.take<float>(n_vectors * kLanes);
  state.coded = nullptr;
  state.coded_stride = 0;
  return state;
}

size_t attend_scratch(int key_dim, int value_dim) {
  Carver carver(nullptr);
  carve_state(carver, kMaxTileVectors, key_dim, value_dim);
  const size_t rows = attend_rows_scratch(key_dim, value_dim);
  const size_t tiles = attend_tiles_scratch(key_dim, value_dim);
  const size_t strips = attend_strips_scratch(key_dim, value_dim);
  const size_t words = attend_words_scratch(key_dim, value_dim);
  size_t most = rows > tiles ? rows : tiles;
  most = most > strips ? most : strips;
  return carver.size() + (most > words ? most : words);
}

#if defined(KVE_WORD_TILES)
size_t weighed_scratch(int key_dim, int value_dim, int64_t n_rows) {
  Carver carver(nullptr);
  carve_state(carver, kMaxTileVectors, key_dim, value_dim);
  return carver.size() + attend_weighed_scratch(key_dim, value_dim, n_rows);
}
#endif

int attend_value_stride(int value_dim) { return static_cast<int>(round_up(value_dim, kLanes)); }

void scale_queries(const AttendChunk& chunk, const AttendState& state) {
  const int key_dim = chunk.k.width;
  const F32 factor = set(chunk.scale * kLog2E);
  for (int64_t i = 0; i < state.n_vectors; ++i) {
    const float* q =
        chunk.q + i / chunk.n_group * chunk.q_stride + i % chunk.n_group * int64_t{key_dim};
    float* to = state.queries + i * state.key_stride;
    int64_t d = 0;
    for (; d + kLanes <= key_dim; d += kLanes) store(to + d, load(q + d) * factor);
    if (d < key_dim) {
      store(to + d, load_n(q + d, key_dim - d) * factor);
      d += kLanes;
    }
    for (; d < state.key_stride; d += kLanes) store(to + d, zero());
  }
}

static void start(const AttendChunk& chunk, const AttendState& state) {
  scale_queries(chunk, state);
  const int64_t n = state.n_vectors;
  for (int64_t i = 0; i < n; ++i) state.unit[i] = -INFINITY;
  memset(state.sums, 0, sizeof(float) * static_cast<size_t>(n * state.value_stride));
  memset(state.weight, 0, sizeof(float) * static_cast<size_t>(n * kLanes));
}

// The base 2 logarithm of the sum of 2^scores; of no scores, that of nothing.
static float log_sum(float unit, float weight) {
  return weight == 0 ? -INFINITY : unit + log2f(weight);
}

static void finish(const AttendChunk& chunk, const AttendState& state) {
  const int64_t n = state.n_vectors;
  if (chunk.out == nullptr) {
    const int64_t stride = state.value_stride + chunk.kept_floats;
    for (int64_t i = 0; state.sums != chunk.partial && i < n; ++i) {
      memcpy(chunk.partial + i * stride, state.sums + i * state.value_stride,
             sizeof(float) * static_cast<size_t>(state.value_stride));
    }
    float* tail = chunk.partial + n * stride;
    memcpy(tail, state.unit, sizeof(float) * static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) tail[n + i] = sum(load(state.weight + i * kLanes));
    return;
  }
  const int value_dim = chunk.v.width;
  for (int64_t i = 0; i < n; ++i) {
    float* out =
        chunk.out + i / chunk.n_group * chunk.out_stride + i % chunk.n_group * int64_t{value_dim};
    memcpy(out, state.sums + i * state.value_stride,
           sizeof(float) * static_cast<size_t>(value_dim));
    const float weight = sum(load(state.weight + i * kLanes));
    scale(out, weight == 0 ? 0.0f : 1.0f / weight, value_dim);
    if (chunk.log_sums != nullptr) {
      chunk.log_sums[i / chunk.n_group * chunk.log_sum_stride + i % chunk.n_group] =
          log_sum(state.unit[i], weight);
    }
  }
}

// Rows that are not read are not seen.
static void hide_scores(const AttendChunk& chunk, int64_t n_vectors) {
  for (int64_t v = 0; v < n_vectors; ++v) {
    float* scores = chunk.scores + v * chunk.score_stride;
    for (int32_t r = chunk.first_row; r < chunk.end_row; ++r) scores[r] = -INFINITY;
  }
}

void attend(const AttendChunk& chunk) {
  Carver carver(chunk.scratch);
  AttendState state =
      carve_state(carver, int64_t{chunk.n_tokens} * chunk.n_group, chunk.k.width, chunk.v.width);
  // Partial results lie like the sums where there is nothing beside them.
  if (chunk.out == nullptr && chunk.kept_floats == 0) state.sums = chunk.partial;
  start(chunk, state);
  if (chunk.scores != nullptr) hide_scores(chunk, state.n_vectors);
  const int32_t last = chunk.query_pos + chunk.n_tokens - 1 - chunk.first_pos;
  const int32_t end = last + 1 < chunk.end_row ? last + 1 : chunk.end_row;
  int32_t first = chunk.first_row;
  if (chunk.window > 0) {
    const int32_t oldest = chunk.query_pos - chunk.window + 1 - chunk.page_offset;
    const int32_t row = oldest / kTile * kTile + chunk.page_offset - chunk.first_pos;
    if (oldest >= 0 && row > first) first = row;
  }
  if (chunk.method == AttendMethod::strips) {
    attend_strips(chunk, state, first, end, chunk.scratch + carver.size());
  } else if (chunk.method == AttendMethod::rows) {
    attend_rows(chunk, state, first, end, chunk.scratch + carver.size());
#if defined(KVE_WORD_TILES)
  } else if (chunk.method == AttendMethod::rounded_tiles) {
    attend_words(chunk, state, first, end, chunk.scratch + carver.size());
  } else if (chunk.method == AttendMethod::weighed_tiles) {
    attend_weighed(chunk, state, first, end, chunk.scratch + carver.size());
#endif
  } else {
    attend_tiles(chunk, state, first, end, chunk.scratch + carver.size());
  }
  finish(chunk, state);
}

// Adds up n values of all parts, times the parts' factors.
static void merge_sums(const AttendMerge& merge, const float* sums, int64_t n_parts,
                       const float* factors, bool first, int64_t n, float* out) {
  for (int64_t d = 0; d < n; d += kLanes) {
    const int64_t width = least(n - d, kLanes);
    F32 acc = first ? zero() : load_n(out + d, width);
    for (int64_t p = 0; p < n_parts; ++p) {
      acc = fma(load(sums + p * merge.part_stride + d), set(factors[p]), acc);
    }
    store_n(out + d, acc, width);
  }
}

// A part of which the vector saw nothing changes no bit: the result is that of the other parts.
static void merge_vector(const AttendMerge& merge, int64_t vector, float* out) {
  constexpr int64_t kGroup = 64;  // parts at a time
  const int64_t n_vectors = int64_t{merge.n_tokens} * merge.n_group;
  const int64_t value_stride = attend_value_stride(merge.value_dim);
  const int64_t stride = value_stride + merge.kept_floats;
  const float* sums = merge.partial + vector * stride;
  const float* unit = merge.partial + n_vectors * stride + vector;
  const float* weight = unit + n_vectors;
  float peak = -INFINITY;
  for (int64_t p = 0; p < merge.n_parts; ++p) {
    const float value = unit[p * merge.part_stride];
    peak = value > peak ? value : peak;
  }
  float total = 0;
  float kept[kMaxKeptFloats + kLanes];
  for (int64_t first = 0; first < merge.n_parts; first += kGroup) {
    const int64_t n = least(merge.n_parts - first, kGroup);
    float factors[kGroup];
    for (int64_t p = 0; p < n; ++p) factors[p] = unit[(first + p) * merge.part_stride] - peak;
    for (int64_t p = 0; p < n; p += kLanes) {
      const int64_t some = least(n - p, kLanes);
      store_n(factors + p, exp2(load_n(factors + p, some)), some);
    }
    for (int64_t p = 0; p < n; ++p) {
      const float part = weight[(first + p) * merge.part_stride];
      if (part == 0) factors[p] = 0;  // it has no unit
      total += factors[p] * part;
    }
    const float* from = sums + first * merge.part_stride;
    merge_sums(merge, from, n, factors, first == 0, merge.value_dim, out);
    merge_sums(merge, from + value_stride, n, factors, first == 0, merge.kept_floats, kept);
  }
  if (merge.kept_floats > 0) {
    store(kept + merge.kept_floats, zero());  // the lift of the last block may read past them
    lift_values({merge.basis, kept, kMaxKeptFloats, 1, out, merge.out_stride});
  }
  scale(out, total == 0 ? 0.0f : 1.0f / total, merge.value_dim);
  if (merge.log_sums != nullptr) {
    merge.log_sums[vector / merge.n_group * merge.log_sum_stride + vector % merge.n_group] =
        log_sum(peak, total);
  }
}

void attend_merge(const AttendMerge& merge) {
  for (int64_t t = 0; t < merge.n_tokens; ++t) {
    for (int64_t g = 0; g < merge.n_group; ++g) {
      merge_vector(merge, t * merge.n_group + g,
                   merge.out + t * merge.out_stride + g * merge.value_dim);
    }
  }
}

}  // namespace kve::KVE_ISA
