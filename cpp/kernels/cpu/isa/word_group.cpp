#include "kernels/cpu/isa/word_group.h"

#if defined(KVE_WORD_TILES)

#include <math.h>
#include <string.h>

#include "kernels/cpu/isa/tile_rows.h"

namespace kve::KVE_ISA {

// The unit of a query that has seen nothing.
constexpr float kNoUnit = -1e30f;

// ---- a group ----

namespace {

// Rows are computed so many at a time.
constexpr int32_t kSpanRows = kBf16Tiles ? kBf16Rows : kWordRows;

// The rows of a tile that are computed, of which those from `end` on are not seen.
struct Span {
  int32_t first;
  int32_t end;
};

}  // namespace

// Softcap, slopes, and minus infinity for rows that are not seen, then what values count; broken
// rows make the sums of those who see them no numbers.
static void limit_group(const GroupTask& task, int64_t lane, Span span, float* top) {
  const AttendChunk& chunk = task.chunk;
  const WordTile& tile = task.tile;
  const QueryLanes& lanes = task.work.lanes;
  float* scores = task.work.scores;
  if (chunk.softcap > 0) {
    softcap(chunk.softcap * kLog2E, scores + span.first * kWordLanes,
            int64_t{span.end - span.first} * kWordLanes);
  }
  const uint64_t broken = tile.broken_keys | tile.broken_values;
  for (int64_t v = 0; v < kWordLanes; v += kLanes) {
    F32 most = set(-INFINITY);
    for (int32_t r = span.first; r < round_up(span.end, kSpanRows); ++r) {
      float* at = scores + r * kWordLanes + v;
      const int32_t row = task.base + r;
      const auto number = static_cast<float>(row);
      F32 score = load(at);
      if (chunk.alibi != nullptr) {
        const float position = r < task.n ? position_of(chunk, row) : number;
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

// The unit of the queries from lane + v on, raised where `peak` exceeds it by more than the slack.
static inline F32 raise_unit(const GroupTask& task, int64_t lane, int64_t v, F32 peak) {
  const QueryLanes& lanes = task.work.lanes;
  const int64_t channels = task.work.channels;
  const F32 unit = load(lanes.unit + lane + v);
  const Mask raised = less(unit + set(kUnitSlack), peak);
  if (!any(raised)) return unit;
  const F32 now = select(raised, peak, unit);
  const F32 factor = exp2(unit - now);
  float* weight = lanes.weight + lane + v;
  store(weight, load(weight) * factor);
  scale_lanes(task.work.sums + lane * channels + v, channels, factor);
  if (task.has_coded) scale_lanes(task.work.coded + lane * channels + v, channels, factor);
  store(lanes.unit + lane + v, now);
  return now;
}

// Rows outside [first, end) of a tile have no weight.
static void clear_others(int64_t first, int64_t end, const KeptTile& kept) {
  const auto clear = [&](int64_t begin, int64_t last) {
    memset(kept.weights + begin / 2 * kWordLanes, 0,
           sizeof(int32_t) * static_cast<size_t>((last - begin) / 2 * kWordLanes));
  };
  clear(0, first);
  clear(end, kTile);
}

// ---- products: scores of the rows [first, end), and what they add to sums ----

#if defined(KVE_BF16_TILES)

static bool fills_products(const GroupTask& task) { return task.n % kSpanRows == 0; }

static void score_group(const GroupTask& task, int64_t lane, int32_t first, int32_t end,
                        bool /*limited*/, float* /*top*/) {
  score_bf16(task.tile, first, end, task.work.queries + lane * task.tile.key_words,
             task.work.scores);
}

static bool exceeds(const float* top, const float* units) {
  bool some = false;
  for (int64_t v = 0; v < kWordLanes; v += kLanes) {
    some |= any(less(load(units + v) + set(kUnitSlack), load(top + v)));
  }
  return some;
}

static void add_group(const GroupTask& task, int64_t lane, int32_t first, int32_t end, bool limited,
                      const float* top) {
  const float* scores = task.work.scores;
  const QueryLanes& lanes = task.work.lanes;
  const float* units = lanes.unit + lane;
  alignas(64) float totals[kWordLanes];
  alignas(64) float most[kWordLanes];
  int32_t* weights = task.kept == nullptr ? task.work.weights : task.kept->weights;
  const auto raise = [&](const float* peaks) {
    for (int64_t v = 0; v < kWordLanes; v += kLanes) raise_unit(task, lane, v, load(peaks + v));
  };
  if (limited) {
    raise(top);
    weigh_seen_bf16(scores, units, first, end, weights, totals);
  } else {
    // Units are seldom raised, so that weights are made before it is known.
    weigh_bf16(scores, units, first, end, weights, totals, most);
    if (exceeds(most, units)) {
      raise(most);
      weigh_bf16(scores, units, first, end, weights, totals, most);
    }
  }
  if (task.kept != nullptr) {
    clear_others(first, end, *task.kept);
    memcpy(task.kept->top, units, sizeof(float) * kWordLanes);
  }
  for (int64_t v = 0; v < kWordLanes; v += kLanes) {
    float* weight = lanes.weight + lane + v;
    store(weight, load(weight) + load(totals + v));
  }
  add_bf16_values(task.tile, first, end, task.value_width, weights,
                  task.sums + lane * task.work.channels);
}

#else

static bool fills_products(const GroupTask& /*task*/) { return true; }

static void score_group(const GroupTask& task, int64_t lane, int32_t first, int32_t end,
                        bool limited, float* top) {
  static constexpr float kNothing[kTile] = {};
  const GroupWork& work = task.work;
  const int64_t words = (task.chunk.k.width + 1) / 2;
  for (int64_t v = 0; v < kWordLanes; v += kLanes) store(top + v, set(-INFINITY));
  for (int32_t r = first; r < end; r += kWordRows) {
    score_rows(task.tile, r, words, work.queries + lane * task.tile.key_words,
               work.lanes.scale + lane, limited ? kNothing : task.tile.value_log, work.scores, top);
  }
}

// As weigh_rows(), but the weights are kept as well.
static void weigh_kept(const GroupTask& task, int32_t first, int32_t end, const float* top,
                       float* totals) {
  clear_others(first, end, *task.kept);
  memcpy(task.kept->top, top, sizeof(float) * kWordLanes);
  weigh_and_keep_rows(task.work.scores, top, task.tile.value_inverse, first, end, task.work.weights,
                      task.kept->weights, totals);
}

static void add_group(const GroupTask& task, int64_t lane, int32_t first, int32_t end,
                      bool /*limited*/, const float* top) {
  const GroupWork& work = task.work;
  const WordTile& tile = task.tile;
  alignas(64) float totals[kWordLanes];
  alignas(64) float factors[kWordLanes];
  if (task.kept == nullptr) {
    weigh_rows(work.scores, top, tile.value_inverse, first, end, work.weights, totals);
  } else {
    weigh_kept(task, first, end, top, totals);
  }
  for (int64_t v = 0; v < kWordLanes; v += kLanes) {
    const F32 peak = load(top + v);
    const F32 unit = raise_unit(task, lane, v, peak);
    const F32 factor = exp2(peak - unit) * set(1.0f / (1 << kWordWeightBits));
    float* weight = work.lanes.weight + lane + v;
    store(weight, fma(load(totals + v), factor, load(weight)));
    store(factors + v, factor);
  }
  for (int64_t c = 0; c < task.value_width; c += kWordRows) {
    add_channels(tile.values + first / 2 * tile.value_words + c, tile.value_words,
                 work.weights + first / 2 * kWordLanes, (end - first) / 2, factors,
                 task.sums + lane * work.channels + c * kWordLanes);
  }
}

#endif

bool attend_group(const GroupTask& task, int64_t lane) {
  const AttendChunk& chunk = task.chunk;
  const WordTile& tile = task.tile;
  const int64_t last = least(lane + kWordLanes, task.n_vectors) - 1;
  const int32_t pos = chunk.query_pos + static_cast<int32_t>(lane / chunk.n_group);
  const int32_t last_pos = chunk.query_pos + static_cast<int32_t>(last / chunk.n_group);
  if (none_visible(chunk, pos, last_pos, task.base, task.n)) return false;
  const bool limited = chunk.softcap > 0 || chunk.alibi != nullptr ||
                       (tile.broken_keys | tile.broken_values) != 0 || !fills_products(task) ||
                       !all_visible(chunk, pos, last_pos, task.base, task.n);
  const Span span = {visible_rows(chunk, pos, task.base, task.n).first / kSpanRows * kSpanRows,
                     visible_rows(chunk, last_pos, task.base, task.n).end};
  const auto end = static_cast<int32_t>(round_up(span.end, kSpanRows));
  alignas(64) float top[kWordLanes];
  score_group(task, lane, span.first, end, limited, top);
  if (limited) limit_group(task, lane, span, top);
  add_group(task, lane, span.first, end, limited, top);
  return true;
}

// ---- all groups ----

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

// Positions and rows count from row 0.
static void prepare_lane(const AttendChunk& chunk, int64_t n_vectors, int64_t v,
                         const QueryLanes& lanes) {
  lanes.unit[v] = kNoUnit;
  lanes.weight[v] = lanes.scale[v] - lanes.scale[v];  // not a number if the scale is none
  lanes.position[v] = set_seen(chunk, v, n_vectors, lanes.seen);
  lanes.slope[v] = slope_of(chunk, v);
}

void start_groups(const AttendChunk& chunk, const AttendState& state, const GroupWork& work) {
  const int64_t padded = round_up(state.n_vectors, kWordLanes);
  put_queries(state.queries, state.key_stride, state.n_vectors, work.key_words, work.query_rows,
              work.queries, work.lanes.scale);
  memset(work.sums, 0, sizeof(float) * static_cast<size_t>(padded * work.channels));
  for (int64_t v = 0; v < padded; ++v) prepare_lane(chunk, state.n_vectors, v, work.lanes);
}

void finish_groups(const AttendState& state, const GroupWork& work) {
  turn_sums(work.sums, work.channels, state.n_vectors, state.sums, state.value_stride);
  for (int64_t v = 0; v < state.n_vectors; ++v) {
    const float weight = work.lanes.weight[v];
    state.unit[v] = weight == 0 ? -INFINITY : work.lanes.unit[v];
    state.weight[v * kLanes] = weight;
  }
}

}  // namespace kve::KVE_ISA

#endif
