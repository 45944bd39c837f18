// Attention of many queries in int16 (word_tiles.h). A tile of kTile rows meets a group of queries
// at a time: scores, weights and sums of values are vectors whose lanes are queries, so that the
// softmax has no sums across lanes and no tile is transposed.
//
// Weights are those of the codes of the values: 2^(score + log2 of the scale of the row's values),
// relative to the largest of the tile, in whole numbers. What the query sees decides about them and
// nothing else does.
#include "kernels/cpu/isa/attend.h"

#if defined(KVE_WORD_TILES)

#include <math.h>
#include <string.h>

#include "kernels/cpu/isa/basis.h"
#include "kernels/cpu/isa/next_tile.h"
#include "kernels/cpu/isa/tile_rows.h"
#include "kernels/cpu/isa/word_keys.h"
#include "kernels/cpu/isa/word_values.h"

namespace kve::KVE_ISA {

// The unit of a query that has seen nothing.
constexpr float kNoUnit = -1e30f;

namespace {

// Numbers of a query, one to a lane, [n_vectors rounded up to groups].
struct Lanes {
  float* scale;   // of the codes of the query
  float* unit;    // as in AttendState
  float* weight;  // the sum of the weights
  // Where scores are limited: the rows it sees, its position, and its slope.
  SeenRows seen;
  float* position;
  float* slope;
};

struct WordWork {
  TileRows rows;
  WordTile tile;
  Lanes lanes;
  int32_t* query_rows;  // [kLanes][key_words]
  int32_t* queries;     // [group][key_words][kWordLanes]
  float* scores;        // [kTile][kWordLanes]
  int32_t* weights;     // [kTile / 2][kWordLanes]: pairs of rows
  int64_t channels;     // of sums
  float* sums;          // [group][channels][kWordLanes]
  float* coded;         // the same of values in their basis
  float* lift;          // [value_dim][channels]
  WordTile lift_tile;
  int32_t* lift_lanes;  // [channels / 2][kWordLanes]
  float* lift_scale;    // [kWordLanes]
  WordKeys keys;
  std::byte* lifting;
  size_t size;

  // lifted: numbers of the rows that are rebuilt.
  WordWork(std::byte* data, int key_dim, int value_dim, int lifted) {
    constexpr int64_t kMost = (kMaxTileVectors + kWordLanes - 1) / kWordLanes * kWordLanes;
    Carver carver(data);
    const int64_t key_stride = round_up(key_dim, 2 * kLanes);
    channels = round_up(value_dim, 2 * kLanes);
    rows = carve_rows(carver, key_stride > channels ? key_stride : channels);
    tile = carve_word_tile(carver, key_dim, value_dim);
    float** const numbers[] = {&lanes.scale,     &lanes.unit,     &lanes.weight, &lanes.seen.first,
                               &lanes.seen.last, &lanes.position, &lanes.slope};
    for (float** number : numbers) *number = carver.take<float>(kMost);
    query_rows = carver.take<int32_t>(kLanes * tile.key_words);
    queries = carver.take<int32_t>(kMost * tile.key_words);
    scores = carver.take<float>(kTile * kWordLanes);
    weights = carver.take<int32_t>(kTile / 2 * kWordLanes);
    sums = carver.take<float>(kMost * channels);
    coded = carver.take<float>(kMost * channels);
    lift = carver.take<float>(round_up(value_dim, kLanes) * channels);
    lift_tile = carve_word_tile(carver, value_dim, 1);
    lift_lanes = carver.take<int32_t>(channels / 2 * kWordLanes);
    lift_scale = carver.take<float>(kWordLanes);
    const auto key_bytes = static_cast<int64_t>(word_keys_bytes(key_dim, value_dim));
    keys = carve_word_keys(key_dim, value_dim, carver.take<std::byte>(key_bytes));
    lifting = carver.take<std::byte>(static_cast<int64_t>(lift_scratch(lifted)));
    size = carver.size();
  }
};

}  // namespace

// ---- a group ----

namespace {

// The tile in `work`: rows [base, base + n) of the cache.
struct WordTask {
  const AttendChunk& chunk;
  const WordWork& work;
  int64_t n_vectors;
  int32_t base;
  int32_t n;
  int64_t value_width;
  float* sums;     // of work, which the tile's values are added to
  bool has_coded;  // whether there are any sums in a basis
};

// The rows of a tile that are computed, of which those from `end` on are not seen.
struct Span {
  int32_t first;
  int32_t end;
};

}  // namespace

// Softcap, slopes, and minus infinity for rows that are not seen, then what values count; broken
// rows make the sums of those who see them no numbers.
static void limit_group(const WordTask& task, int64_t lane, Span span, float* top) {
  const AttendChunk& chunk = task.chunk;
  const WordTile& tile = task.work.tile;
  const Lanes& lanes = task.work.lanes;
  float* scores = task.work.scores;
  if (chunk.softcap > 0) {
    softcap(chunk.softcap * kLog2E, scores + span.first * kWordLanes,
            int64_t{span.end - span.first} * kWordLanes);
  }
  const uint64_t broken = tile.broken_keys | tile.broken_values;
  for (int64_t v = 0; v < kWordLanes; v += kLanes) {
    F32 most = set(-INFINITY);
    for (int32_t r = span.first; r < round_up(span.end, kWordRows); ++r) {
      float* at = scores + r * kWordLanes + v;
      const int32_t row = task.base + r;
      const auto number = static_cast<float>(row);
      F32 score = load(at);
      if (chunk.alibi != nullptr) {
        const int32_t* positions = chunk.k.positions;
        const float position =
            positions != nullptr && r < task.n
                ? static_cast<float>(positions[row] - chunk.dropped - chunk.first_pos)
                : number;
        score = fma(load(lanes.slope + lane + v), set(position) - load(lanes.position + lane + v),
                    score);
      }
      score = hide(lanes.seen, lane + v, number, set(-INFINITY), score + set(tile.value_log[r]));
      if (r >= span.end || is_dead(chunk, row)) {
        score = set(-INFINITY);
      } else if ((broken >> r & 1) != 0) {
        float* weight = lanes.weight + lane + v;
        store(weight, load(weight) + hide(lanes.seen, lane + v, number, zero(), set(NAN)));
      }
      store(at, score);
      most = max(most, score);
    }
    store(top + v, most);
  }
}

static inline void scale_lanes(float* sums, int64_t channels, F32 factor) {
  for (int64_t c = 0; c < channels; ++c, sums += kWordLanes) store(sums, load(sums) * factor);
}

// Factors of the tile's sums, after units that were exceeded by more than the slack were raised.
static void update_units(const WordTask& task, int64_t lane, const float* top, const float* totals,
                         float* factors) {
  const Lanes& lanes = task.work.lanes;
  const int64_t channels = task.work.channels;
  for (int64_t v = 0; v < kWordLanes; v += kLanes) {
    const F32 peak = load(top + v);
    F32 unit = load(lanes.unit + lane + v);
    F32 weight = load(lanes.weight + lane + v);
    const Mask raised = less(unit + set(kUnitSlack), peak);
    if (any(raised)) {
      const F32 now = select(raised, peak, unit);
      const F32 factor = exp2(unit - now);
      weight = weight * factor;
      scale_lanes(task.work.sums + lane * channels + v, channels, factor);
      if (task.has_coded) scale_lanes(task.work.coded + lane * channels + v, channels, factor);
      store(lanes.unit + lane + v, now);
      unit = now;
    }
    const F32 factor = exp2(peak - unit) * set(1.0f / (1 << kWordWeightBits));
    store(lanes.weight + lane + v, fma(load(totals + v), factor, weight));
    store(factors + v, factor);
  }
}

// The group of queries from `lane` on against the tile.
static void attend_group(const WordTask& task, int64_t lane) {
  const AttendChunk& chunk = task.chunk;
  const WordWork& work = task.work;
  const WordTile& tile = work.tile;
  const int64_t last = least(lane + kWordLanes, task.n_vectors) - 1;
  const int32_t pos = chunk.query_pos + static_cast<int32_t>(lane / chunk.n_group);
  const int32_t last_pos = chunk.query_pos + static_cast<int32_t>(last / chunk.n_group);
  if (none_visible(chunk, pos, last_pos, task.base, task.n)) return;
  const bool limited = chunk.softcap > 0 || chunk.alibi != nullptr ||
                       (tile.broken_keys | tile.broken_values) != 0 ||
                       !all_visible(chunk, pos, last_pos, task.base, task.n);
  const Span span = {visible_rows(chunk, pos, task.base, task.n).first / kWordRows * kWordRows,
                     visible_rows(chunk, last_pos, task.base, task.n).end};
  const auto end = static_cast<int32_t>(round_up(span.end, kWordRows));
  static constexpr float kNothing[kTile] = {};
  alignas(64) float top[kWordLanes];
  alignas(64) float totals[kWordLanes];
  alignas(64) float factors[kWordLanes];
  for (int64_t v = 0; v < kWordLanes; v += kLanes) store(top + v, set(-INFINITY));
  const int64_t words = (chunk.k.width + 1) / 2;
  for (int32_t r = span.first; r < end; r += kWordRows) {
    score_rows(tile, r, words, work.queries + lane * tile.key_words, work.lanes.scale + lane,
               limited ? kNothing : tile.value_log, work.scores, top);
  }
  if (limited) limit_group(task, lane, span, top);
  weigh_rows(work.scores, top, tile.value_inverse, span.first, end, work.weights, totals);
  update_units(task, lane, top, totals, factors);
  for (int64_t c = 0; c < task.value_width; c += kWordRows) {
    add_channels(tile.values + span.first / 2 * tile.value_words + c, tile.value_words,
                 work.weights + span.first / 2 * kWordLanes, (end - span.first) / 2, factors,
                 task.sums + lane * work.channels + c * kWordLanes);
  }
}

// ---- a chunk ----

// Sums whose lanes are queries to rows.
static void turn_sums(const float* sums, int64_t channels, int64_t n_vectors, float* rows,
                      int64_t stride) {
  for (int64_t first = 0; first < n_vectors; first += kLanes) {
    const float* from = sums + first / kWordLanes * channels * kWordLanes + first % kWordLanes;
    for (int64_t c = 0; c < stride; c += kLanes) {
      F32 square[kLanes];
      for (int i = 0; i < kLanes; ++i) square[i] = load(from + (c + i) * kWordLanes);
      transpose(square);
      for (int64_t i = 0; i < least(n_vectors - first, kLanes); ++i) {
        store(rows + (first + i) * stride + c, square[i]);
      }
    }
  }
}

namespace {

// The tiles of a chunk, one after the other.
class WordLoop {
 public:
  WordLoop(const AttendChunk& chunk, const AttendState& state, WordWork& work)
      : chunk_(chunk),
        state_(state),
        work_(work),
        keys_(chunk.k, chunk.first_pos, false, work.lifting),
        values_(chunk.v, chunk.first_pos, false, work.lifting),
        padded_(round_up(state.n_vectors, kWordLanes)) {
    quantize_queries(state.queries, state.key_stride, state.n_vectors, work.tile.key_words,
                     kWordLanes, work.query_rows, work.queries, work.lanes.scale);
    clear(work.sums);
    for (int64_t v = 0; v < padded_; ++v) prepare_lane(v);
  }

  void attend(int32_t first, int32_t end) {
    const int64_t shares = padded_ / kWordLanes;
    for_tiles(chunk_, first, end, [&](int32_t base, int32_t n) {
      WordTask task = {chunk_, work_, state_.n_vectors, base, n, 0, nullptr, false};
      read_word_tile(chunk_, keys_, base, n, &work_.keys, work_.rows, &work_.tile);
      read_values(&task);
      NextTile ahead(chunk_, keys_, values_, base + n, end, shares);
      for (int64_t lane = 0; lane < padded_; lane += kWordLanes) {
        ahead.prefetch();
        attend_group(task, lane);
      }
    });
    finish();
  }

 private:
  void clear(float* sums) const {
    memset(sums, 0, sizeof(float) * static_cast<size_t>(padded_ * work_.channels));
  }

  // Positions and rows count from row 0.
  void prepare_lane(int64_t v) const {
    const Lanes& lanes = work_.lanes;
    lanes.unit[v] = kNoUnit;
    lanes.weight[v] = lanes.scale[v] - lanes.scale[v];  // not a number if the scale is none
    lanes.position[v] = set_seen(chunk_, v, state_.n_vectors, lanes.seen);
    lanes.slope[v] = chunk_.alibi == nullptr ? 0.0f : chunk_.alibi[v % chunk_.n_group] * kLog2E;
  }

  void read_values(WordTask* task) {
    const PageView* page = values_.coded_page(task->base, task->n);
    const bool in_basis = page != nullptr && chunk_.v.bases != nullptr;
    const int width = in_basis ? chunk_.v.n_channels : chunk_.v.width;
    task->value_width = width;
    task->sums = in_basis ? work_.coded : work_.sums;
    if (in_basis && page->basis != basis_) {
      lift();
      clear(work_.coded);
      basis_ = page->basis;
    }
    task->has_coded = basis_ >= 0;
    if (page == nullptr) {
      read_rows<F32Tile>(work_.rows, values_, width, task->base, task->n);
    } else if (read_word_values(chunk_.v.strips[page->basis], *page, work_.keys.tiles.params,
                                &work_.tile)) {
      return;
    } else {
      value_elements(chunk_.v.strips[page->basis], *page, false, work_.rows.rows, work_.rows.stride,
                     work_.keys.tiles.params);
    }
    quantize_value_rows(work_.rows.rows, work_.rows.stride, width, task->n, &work_.tile);
  }

  // Sums in a basis are added to those of values.
  void lift() {
    if (basis_ < 0) return;
    const BasisView& basis = chunk_.v.bases[basis_];
    expand_lift(basis, work_.channels, work_.lift);
    if (basis.block == basis.dim && basis.dim % kWordRows == 0) {
      lift_dense(basis);
    } else {
      lift_blocks(basis);
    }
    basis_ = -1;
  }

  // In int16: rows of the lift are a tile of keys.
  void lift_dense(const BasisView& basis) {
    const int64_t words = (basis.block_width + 1) / 2;
    WordTile* tile = &work_.lift_tile;
    for (int64_t first = 0; first < basis.dim; first += kTile) {
      const auto n = static_cast<int32_t>(least(kTile, basis.dim - first));
      clear_row_ends(basis.block_width, n, work_.lift + first * work_.channels);
      quantize_key_rows(work_.lift + first * work_.channels, work_.channels, basis.block_width, n,
                        tile);
      for (int64_t lane = 0; lane < padded_; lane += kWordLanes) {
        quantize_lanes(work_.coded + lane * work_.channels, words, work_.lift_lanes,
                       work_.lift_scale);
        float* to = work_.sums + lane * work_.channels + first * kWordLanes;
        for (int32_t r = 0; r < n; r += kWordRows) {
          add_lifted(*tile, r, words, work_.lift_lanes, work_.lift_scale, to + r * kWordLanes);
        }
      }
    }
  }
  // Rows of the lift are zero past their end.
  void clear_row_ends(int64_t width, int64_t n, float* rows) const {
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t c = round_up(width, kLanes); c < work_.channels; c += kLanes) {
        store(rows + r * work_.channels + c, zero());
      }
    }
  }

  void lift_blocks(const BasisView& basis) {
    for (int64_t lane = 0; lane < padded_; lane += kWordLanes) {
      const float* from = work_.coded + lane * work_.channels;
      float* to = work_.sums + lane * work_.channels;
      for (int64_t b = 0; b < basis.dim / basis.block; ++b) {
        gemm(basis.block, kWordLanes, basis.block_width, work_.lift, work_.channels,
             from + b * basis.block_width * kWordLanes, kWordLanes,
             to + b * basis.block * kWordLanes, kWordLanes, true);
      }
    }
  }

  void finish() {
    lift();
    turn_sums(work_.sums, work_.channels, state_.n_vectors, state_.sums, state_.value_stride);
    for (int64_t v = 0; v < state_.n_vectors; ++v) {
      const float weight = work_.lanes.weight[v];
      state_.unit[v] = weight == 0 ? -INFINITY : work_.lanes.unit[v];
      state_.weight[v * kLanes] = weight;
    }
  }

  const AttendChunk& chunk_;
  const AttendState& state_;
  WordWork& work_;
  SideReader keys_;
  SideReader values_;
  int64_t padded_;      // queries
  int32_t basis_ = -1;  // of the coded sums; -1: there are none
};

}  // namespace

size_t attend_words_scratch(int key_dim, int value_dim) {
  return WordWork(nullptr, key_dim, value_dim, key_dim > value_dim ? key_dim : value_dim).size;
}

void attend_words(const AttendChunk& chunk, const AttendState& state, int32_t first, int32_t end,
                  std::byte* scratch) {
  WordWork work(scratch, chunk.k.width, chunk.v.width, row_numbers(chunk));
  WordLoop(chunk, state, work).attend(first, end);
}

}  // namespace kve::KVE_ISA

#endif
