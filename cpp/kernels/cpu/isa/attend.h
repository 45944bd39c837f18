// What the methods of attention share: the state of a chunk's query vectors and their softmax,
// which runs online over tiles of rows (FlashAttention, arXiv:2205.14135).
//
// Scores are logarithms to base 2: the factor log2(e) is part of the scale of the queries, of the
// softcap and of the slopes.
#pragma once

#include <math.h>
#include <string.h>

#include "kernels/cpu/attend_block.h"
#include "kernels/cpu/isa/isa.h"
#include "simd/math.h"

namespace kve::KVE_ISA {

constexpr int kTile = kAttendTile;
constexpr float kLog2E = 1.44269504f;

struct AttendState {
  int64_t n_vectors;
  int64_t key_stride;
  int64_t value_stride;
  float* queries;  // [n_vectors][key_stride], scaled; zero past the end of a vector
  float* sums;     // [n_vectors][value_stride]: rows of the values, times their weights
  float* unit;     // [n_vectors]: a row's weight is 2^(score - unit)
  float* weight;   // [n_vectors][kLanes]: sums of weights
  // More sums that a new unit scales, or null: [n_vectors][coded_stride].
  float* coded;
  int64_t coded_stride;
};

// Neighbouring rows of plain floats (codec f32, f16 or bf16).
struct RowRun {
  CodecId type;
  const std::byte* data;
  int32_t rows;
  int64_t stride;  // values between rows
};

// What to prefetch while a run is read: the run's own memory some bytes ahead, and past its end the
// memory at `next`. With bytes == 0 nothing.
struct Ahead {
  const std::byte* run;
  const std::byte* next;
  int64_t bytes;  // of the run
};

// Cache rows that the query at `pos` sees, relative to `base`, within [0, n).
struct Visible {
  int32_t first;
  int32_t end;
};

static inline Visible visible_rows(const AttendChunk& chunk, int32_t pos, int32_t base, int32_t n) {
  const int32_t own = pos - chunk.first_pos - base;  // the row of the query itself
  const int32_t oldest = chunk.window > 0 ? own - chunk.window + 1 : 0;
  return {oldest > 0 ? oldest : 0, own + 1 < n ? own + 1 : n};
}

// Rows of the tile that begins at row `base`. Tiles end at fixed positions, so that the rows a
// query sees are added in the same order whatever other queries there are; they end where pages do.
static inline int32_t tile_rows(const AttendChunk& chunk, int32_t base, int32_t end) {
  const int32_t before = rows_before_in_tile(chunk.first_pos, chunk.page_offset, base);
  return static_cast<int32_t>(least(end - base, kTile - before));
}

// A larger score than this above the unit makes a new one. Weights may exceed 1 by this power of
// two, which f32 and bf16 hold as exactly, and most tiles leave the sums alone.
constexpr float kUnitSlack = 8;
constexpr float kMostWeight = 256;

// Softcap and alibi of the scores of n rows from `row` on, for the query at `pos`.
static inline void adjust(const AttendChunk& chunk, float* scores, int32_t row, int32_t n,
                          int group_index, int32_t pos) {
  if (chunk.softcap > 0) softcap(chunk.softcap * kLog2E, scores, n);
  if (chunk.alibi == nullptr) return;
  const float slope = chunk.alibi[group_index] * kLog2E;
  const int32_t* positions = chunk.k.positions;
  if (positions != nullptr) {
    for (int32_t i = 0; i < n; ++i) {
      scores[i] += slope * static_cast<float>(positions[row + i] - pos - chunk.dropped);
    }
    return;
  }
  const int32_t distance = chunk.first_pos + row - pos;
  for (int32_t i = 0; i < n; ++i) scores[i] += slope * static_cast<float>(distance + i);
}

// Bits of the rows [base, base + n), n <= 64, that nobody sees.
static inline uint64_t dead_rows(const AttendChunk& chunk, int32_t base, int32_t n) {
  if (chunk.dead == nullptr) return 0;
  const uint64_t* word = chunk.dead + base / 64;
  const int shift = base % 64;
  uint64_t bits = *word >> shift;
  if (shift != 0 && shift + n > 64) bits |= word[1] << (64 - shift);
  return n < 64 ? bits & ((uint64_t{1} << n) - 1) : bits;
}

// Whether nobody sees any of the rows [base, base + n), n <= 64.
static inline bool all_dead(const AttendChunk& chunk, int32_t base, int32_t n) {
  if (chunk.dead == nullptr) return false;
  return dead_rows(chunk, base, n) == (n < 64 ? (uint64_t{1} << n) - 1 : ~uint64_t{0});
}

// Rows of one tile, and what is left of it between rows that nobody sees: these are not read. Rows
// that are read begin and end at blocks of kLiveBlock rows of a tile, so that what a query adds up
// depends on what it sees alone.
constexpr int32_t kLiveBlock = 16;
struct LiveRows {
  int32_t base;
  int32_t n;
};
static inline LiveRows live_rows(const AttendChunk& chunk, int32_t base, int32_t end) {
  while (base < end) {
    const int32_t n = tile_rows(chunk, base, end);
    if (chunk.dead == nullptr) return {base, n};
    const auto block_at = [&](int32_t row) {
      return static_cast<int32_t>(least(n - row, kLiveBlock));
    };
    int32_t first = 0;
    while (first < n && all_dead(chunk, base + first, block_at(first))) first += kLiveBlock;
    int32_t last = first;
    while (last < n && !all_dead(chunk, base + last, block_at(last))) last += kLiveBlock;
    if (first < n) return {base + first, static_cast<int32_t>(least(last, n)) - first};
    base += n;
  }
  return {end, 0};
}

// Scores of dead rows among those that are seen of the rows from `base` on become minus infinity.
// False when no other is left.
static inline bool hide_dead(const AttendChunk& chunk, int32_t base, Visible seen, float* scores) {
  bool any_left = false;
  for (int32_t i = seen.first; i < seen.end; i += 64) {
    const auto n = static_cast<int32_t>(least(seen.end - i, 64));
    const uint64_t bits = dead_rows(chunk, base + i, n);
    for (uint64_t left = bits; left != 0; left &= left - 1) {
      scores[i + __builtin_ctzll(left)] = -INFINITY;
    }
    any_left = any_left || bits != (n < 64 ? (uint64_t{1} << n) - 1 : ~uint64_t{0});
  }
  return any_left;
}

// A score above the unit by more than the slack: what was summed so far is scaled down.
static void raise_unit(const AttendState& state, int64_t vector, F32 top) {
  const float peak = max_of(top);
  const float before = state.unit[vector];
  state.unit[vector] = peak;
  if (before == -INFINITY) return;  // all sums are zero
  const F32 factor = exp2(set(before - peak));
  float* weight = state.weight + vector * kLanes;
  store(weight, load(weight) * factor);
  float* sums = state.sums + vector * state.value_stride;
  for (int64_t d = 0; d < state.value_stride; d += kLanes) store(sums + d, load(sums + d) * factor);
  if (state.coded != nullptr) {
    float* coded = state.coded + vector * state.coded_stride;
    for (int64_t d = 0; d < state.coded_stride; d += kLanes) {
      store(coded + d, load(coded + d) * factor);
    }
  }
}

// Prepares the scores of one vector against the n rows from `base`: rows that it does not see or
// that are dead, and those up to the next multiple of kLanes, become minus infinity. False when it
// sees none.
static inline bool limit_scores(const AttendChunk& chunk, int64_t vector, int32_t base, int32_t n,
                                float* scores) {
  const auto token = static_cast<int32_t>(vector / chunk.n_group);
  const int32_t pos = chunk.query_pos + token;
  const Visible seen = visible_rows(chunk, pos, base, n);
  if (seen.first >= seen.end) return false;
  if (chunk.softcap > 0 || chunk.alibi != nullptr) {
    adjust(chunk, scores + seen.first, base + seen.first, seen.end - seen.first,
           static_cast<int>(vector % chunk.n_group), pos);
  }
  if (chunk.dead != nullptr && !hide_dead(chunk, base, seen, scores)) return false;
  for (int32_t i = 0; i < seen.first; ++i) scores[i] = -INFINITY;
  for (int32_t i = seen.end; i < round_up(n, kLanes); ++i) scores[i] = -INFINITY;
  return true;
}

// Keeps what limit_scores() made of the scores of n rows, where they are asked for.
static inline void keep_scores(const AttendChunk& chunk, int64_t vector, int32_t base, int32_t n,
                               const float* scores) {
  if (chunk.scores == nullptr) return;
  memcpy(chunk.scores + vector * chunk.score_stride + base, scores,
         sizeof(float) * static_cast<size_t>(n));
}

// Raises the unit of a vector where its scores, n rounded up to kLanes, ask for it; returns it.
static inline F32 update_unit(const AttendState& state, int64_t vector, const float* scores,
                              int32_t n) {
  F32 top = load(scores);
  for (int32_t i = kLanes; i < n; i += kLanes) top = max(top, load(scores + i));
  if (any(less(set(state.unit[vector] + kUnitSlack), top))) raise_unit(state, vector, top);
  return set(state.unit[vector]);
}

// attend.cpp: the queries of a chunk, scaled, to state.queries.
void scale_queries(const AttendChunk& chunk, const AttendState& state);

// attend_rows.cpp, attend_tiles.cpp, attend_strips.cpp: add the rows [first, end) of the cache to
// the state. `scratch` has the size that the function next to it states. Scores of a run's rows, up
// to the next multiple of kLanes, and sums of its rows times weights, for all vectors; scores and
// weights of two vectors are `stride` apart.
void score_row_run(const AttendState& state, const RowRun& run, int width, float* scores,
                   int64_t stride, Ahead ahead);
void add_row_run(const AttendState& state, const RowRun& run, int width, const float* weights,
                 int64_t stride, Ahead ahead);
size_t attend_rows_scratch(int key_dim, int value_dim);
void attend_rows(const AttendChunk& chunk, const AttendState& state, int32_t first, int32_t end,
                 std::byte* scratch);
size_t attend_strips_scratch(int key_dim, int value_dim);
void attend_strips(const AttendChunk& chunk, AttendState state, int32_t first, int32_t end,
                   std::byte* scratch);
size_t attend_tiles_scratch(int key_dim, int value_dim);
void attend_tiles(const AttendChunk& chunk, const AttendState& state, int32_t first, int32_t end,
                  std::byte* scratch);
#if defined(KVE_WORD_TILES)
// attend_words.cpp: the same in int16.
size_t attend_words_scratch(int key_dim, int value_dim);
void attend_words(const AttendChunk& chunk, const AttendState& state, int32_t first, int32_t end,
                  std::byte* scratch);
// attend_weighed.cpp: AttendMethod::weighed_tiles.
size_t attend_weighed_scratch(int key_dim, int value_dim, int64_t n_rows);
void attend_weighed(const AttendChunk& chunk, const AttendState& state, int32_t first, int32_t end,
                    std::byte* scratch);
#else
constexpr size_t attend_words_scratch(int /*key_dim*/, int /*value_dim*/) { return 0; }
#endif

}  // namespace kve::KVE_ISA
