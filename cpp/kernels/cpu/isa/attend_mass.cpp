// The weights that rows get from queries whose sums attention has left (AttendTask::log_sums): a
// second pass over the keys alone, tile by tile, so that no matrix of all weights is ever there.
// AttendMethod::rows is for few queries.
#include <math.h>
#include <string.h>

#include "kernels/cpu/isa/tile_rows.h"
#include "kernels/cpu/isa/word_group.h"
#include "kernels/cpu/isa/word_keys.h"

namespace kve::KVE_ISA {

// Vectors that meet a tile at once, where queries are few.
constexpr int64_t kFewVectors = 16;
constexpr int64_t kFewStride = kTile + kLanes;  // the last scores are written kLanes at a time

namespace {

struct MassWork {
  TileRows rows;
  float* keys;     // elements [key_dim][kTile]
  float* queries;  // [n_vectors][query_stride], f32
  float* rounded;  // elements [n_vectors][query_stride / 2], for bf16
  int64_t query_stride;
  float* scores;      // [kGemmTokens][kTile]
  float* few_scores;  // [kFewVectors][kFewStride]
  std::byte* coded_tiles;
  std::byte* lifting;
#if defined(KVE_WORD_TILES)
  WordTile tile;
  WordKeys word_keys;
  SeenRows seen;
  int32_t* query_rows;  // [kLanes][key_words]
  int32_t* words;       // [group][key_words][kWordLanes]: the queries
  float* scales;        // [n_vectors rounded up to groups], of the queries
  float* units;         // the same: logarithms of their sums
  float* slopes;        // the same
  float* positions;     // the same: rows of their own
  float* word_scores;   // [kTile][kWordLanes]
  float* sums;          // [kTile][kLanes], of the tile
#endif
  size_t size;

  MassWork(std::byte* data, int key_dim, int lifted) {
    Carver carver(data);
    query_stride = round_up(key_dim, 32);
    rows = carve_rows(carver, query_stride);
    keys = carver.take<float>(query_stride * kTile);
    queries = carver.take<float>(kMaxAttendVectors * query_stride);
    rounded = carver.take<float>(kMaxAttendVectors * query_stride / 2);
    scores = carver.take<float>(kGemmTokens * kTile);
    few_scores = carver.take<float>(kFewVectors * kFewStride);
    coded_tiles = carver.take<std::byte>(static_cast<int64_t>(coded_tiles_bytes(key_dim, key_dim)));
    lifting = carver.take<std::byte>(static_cast<int64_t>(lift_scratch(lifted)));
#if defined(KVE_WORD_TILES)
    constexpr int64_t kMost = (kMaxAttendVectors + kWordLanes - 1) / kWordLanes * kWordLanes;
    tile = carve_word_tile(carver, key_dim, 1);
    tile.bf16 = kBf16Tiles;
    const auto word_bytes = static_cast<int64_t>(word_keys_bytes(key_dim, key_dim));
    word_keys = carve_word_keys(key_dim, key_dim, carver.take<std::byte>(word_bytes));
    seen = {carver.take<float>(kMost), carver.take<float>(kMost)};
    query_rows = carver.take<int32_t>(kLanes * tile.key_words);
    words = carver.take<int32_t>(kMost * tile.key_words);
    scales = carver.take<float>(kMost);
    units = carver.take<float>(kMost);
    slopes = carver.take<float>(kMost);
    positions = carver.take<float>(kMost);
    word_scores = carver.take<float>(kTile * kWordLanes);
    sums = carver.take<float>(kTile * kLanes);
#endif
    size = carver.size();
  }
};

}  // namespace

// Adds the weights of a vector to the tile's, or takes the larger of both; n rounded up to kLanes.
static void add_weights(const float* scores, float log_sum, int32_t n, bool most, float* mass) {
  const F32 unit = set(log_sum);
  for (int32_t i = 0; i < n; i += kLanes) {
    const F32 p = exp2(load(scores + i) - unit);
    const F32 old = load(mass + i);
    store(mass + i, most ? max(old, p) : old + p);
  }
}

static float log_sum_of(const MassChunk& job, int64_t vector) {
  const int32_t group = job.chunk.n_group;
  return job.log_sums[vector / group * job.log_sum_stride + vector % group];
}

// The weights that a vector gives the n rows from `base` on, whose scores these are.
static void weigh_vector(const MassChunk& job, int64_t vector, int32_t base, int32_t n,
                         float* scores, float* mass) {
  const float log_sum = log_sum_of(job, vector);
  if (log_sum == -INFINITY || !limit_scores(job.chunk, vector, base, n, scores)) return;
  add_weights(scores, log_sum, n, job.most, mass);
}

// The vectors [first, end) of the chunk against the tile of n rows from `base` on.
template <class Tile>
static void weigh_tile(const MassChunk& job, const MassWork& work, int64_t first, int64_t end,
                       int32_t base, int32_t n, float* mass) {
  const AttendChunk& chunk = job.chunk;
  const int64_t depth = (chunk.k.width + Tile::kPerElement - 1) / Tile::kPerElement;
  const int64_t stride = work.query_stride / Tile::kPerElement;
  const float* queries = Tile::kRounded ? work.rounded : work.queries;
  for (; first < end; first += kGemmTokens) {
    const int64_t count = least(end - first, kGemmTokens);
    const int32_t pos = chunk.query_pos + static_cast<int32_t>(first / chunk.n_group);
    const int32_t last_pos =
        chunk.query_pos + static_cast<int32_t>((first + count - 1) / chunk.n_group);
    if (none_visible(chunk, pos, last_pos, base, n)) continue;
    Tile::kProduct(count, round_up(n, kLanes), depth, queries + first * stride, stride, work.keys,
                   kTile, work.scores, kTile, false);
    for (int64_t i = 0; i < count; ++i) {
      weigh_vector(job, first + i, base, n, work.scores + i * kTile, mass);
    }
  }
}

// The sums, or the largest, of a tile join those of its rows.
static void add_tile(const MassChunk& job, int32_t base, int32_t n, const float* mass) {
  for (int32_t r = 0; r < n; ++r) {
    float& sum = job.mass[base + r];
    sum = job.most ? (mass[r] > sum ? mass[r] : sum) : sum + mass[r];
  }
}

template <class Tile>
static void weigh_tiles(const MassChunk& job, int64_t n_vectors, const MassWork& work) {
  const AttendChunk& chunk = job.chunk;
  SideReader reader(chunk.k, chunk.first_pos, Tile::kRounded, work.lifting);
  CodedTiles tiles = carve_coded_tiles(chunk.k.width, chunk.k.width, work.coded_tiles);
  for_tiles(chunk, chunk.first_row, chunk.end_row, [&](int32_t base, int32_t n) {
    read_key_tile<Tile>(chunk, &tiles, work.rows, work.keys, reader, base, n);
    float mass[kTile] = {};
    weigh_tile<Tile>(job, work, 0, n_vectors, base, n, mass);
    add_tile(job, base, n, mass);
  });
}

// Few queries: dot products with the rows as they lie in memory, or as they are rebuilt.
static void weigh_few(const MassChunk& job, AttendState state, const MassWork& work) {
  const AttendChunk& chunk = job.chunk;
  const int64_t n_vectors = state.n_vectors;
  for (int64_t first = 0; first < n_vectors; first += kFewVectors) {
    state.n_vectors = least(n_vectors - first, kFewVectors);
    SideReader keys(chunk.k, chunk.first_pos, false, work.lifting);
    for_tiles(chunk, chunk.first_row, chunk.end_row, [&](int32_t base, int32_t n) {
      for (int32_t done = 0; done < n;) {
        const RowRun run = keys.read(base + done, n - done, work.keys, kTile);
        score_row_run(state, run, chunk.k.width, work.few_scores + done, kFewStride, {});
        done += run.rows;
      }
      float mass[kTile] = {};
      for (int64_t v = 0; v < state.n_vectors; ++v) {
        weigh_vector(job, first + v, base, n, work.few_scores + v * kFewStride, mass);
      }
      add_tile(job, base, n, mass);
    });
    state.queries += kFewVectors * state.key_stride;
  }
}

#if defined(KVE_WORD_TILES)
// Weights of a row, in the lanes of a group of queries, join a sum for each lane.
static inline void add_lanes(const F32 (&p)[kWordVectors], bool most, float* sums) {
  static_assert(kWordVectors == 3);
  const F32 old = load(sums);
  store(sums, most ? max(max(old, p[0]), max(p[1], p[2])) : (old + p[0]) + (p[1] + p[2]));
}

// Weights of kWordRows rows, whose scores with a group of queries are in `scores`, join `sums`.
// Not inlined: see gemm.cpp.
__attribute__((noinline)) static void add_word_weights(const float* scores, const float* units,
                                                       bool most, float* sums) {
  F32 unit[kWordVectors];
  KVE_UNROLL(3)
  for (int v = 0; v < kWordVectors; ++v) unit[v] = load(units + v * kLanes);
  for (int r = 0; r < kWordRows; ++r, scores += kWordLanes, sums += kLanes) {
    F32 p[kWordVectors];
    KVE_UNROLL(3)
    for (int v = 0; v < kWordVectors; ++v) p[v] = exp2_rough(load(scores + v * kLanes) - unit[v]);
    add_lanes(p, most, sums);
  }
}

namespace {

// A group of queries at a time, with scores of int16 or bf16 as attention has them, so that weights
// add up to one. Tiles of rows whose numbers are not finite are left to f32.
class WordMass {
 public:
  WordMass(const MassChunk& job, const AttendState& state, MassWork& work)
      : job_(job),
        n_vectors_(state.n_vectors),
        work_(work),
        reader_(job.chunk.k, job.chunk.first_pos, false, work.lifting) {
    put_queries(state.queries, state.key_stride, n_vectors_, work.tile.key_words, work.query_rows,
                work.words, work.scales);
    for (int64_t v = 0; v < round_up(n_vectors_, kWordLanes); ++v) {
      const float log_sum = v < n_vectors_ ? log_sum_of(job, v) : -INFINITY;
      work.units[v] = log_sum == -INFINITY ? kNobody : log_sum;
      work.positions[v] = set_seen(job.chunk, v, n_vectors_, work.seen);
      work.slopes[v] = slope_of(job.chunk, v);
    }
  }

  void weigh() {
    for_tiles(job_.chunk, job_.chunk.first_row, job_.chunk.end_row,
              [&](int32_t base, int32_t n) { weigh_rows(base, n); });
  }

 private:
  static constexpr float kNobody = 1e30f;  // the unit of a query that gives nothing

  // The rows [base, base + n), a tile.
  void weigh_rows(int32_t base, int32_t n) {
    const AttendChunk& chunk = job_.chunk;
    read_word_tile(chunk, reader_, base, n, &work_.word_keys, work_.rows, &work_.tile);
    float mass[kTile] = {};
    if (work_.tile.broken_keys != 0) {
      weigh_broken(base, n, mass);
      return add_tile(job_, base, n, mass);
    }
    memset(work_.sums, 0, sizeof(float) * kTile * kLanes);
    for (int64_t first = 0; first < n_vectors_; first += kWordLanes) {
      const int64_t last = least(first + kWordLanes, n_vectors_) - 1;
      const int32_t pos = chunk.query_pos + static_cast<int32_t>(first / chunk.n_group);
      const int32_t last_pos = chunk.query_pos + static_cast<int32_t>(last / chunk.n_group);
      if (none_visible(chunk, pos, last_pos, base, n)) continue;
      weigh_group(first, base, visible_rows(chunk, pos, base, n).first / kWordRows * kWordRows,
                  visible_rows(chunk, last_pos, base, n).end,
                  all_visible(chunk, pos, last_pos, base, n));
    }
    for (int32_t r = 0; r < n; ++r) {
      const F32 own = load(work_.sums + r * kLanes);
      mass[r] = job_.most ? max_of(own) : sum(own);
    }
    add_tile(job_, base, n, mass);
  }

  void weigh_broken(int32_t base, int32_t n, float* mass) const {
    const AttendChunk& chunk = job_.chunk;
    // Readers only go forward.
    SideReader again(chunk.k, chunk.first_pos, false, work_.lifting);
    read_key_tile<F32Tile>(chunk, &work_.word_keys.tiles, work_.rows, work_.keys, again, base, n);
    weigh_tile<F32Tile>(job_, work_, 0, n_vectors_, base, n, mass);
  }

  // The group of queries from `first` on and the rows [row, end) of the tile at `base`. all:
  // whether every query sees all of them.
  void weigh_group(int64_t first, int32_t base, int32_t row, int32_t end, bool all) const {
    score_group(first, row, end);
    limit(first, base, row, end);
    for (int32_t r = row; r < end; r += kWordRows) {
      if (all) {
        add_word_weights(work_.word_scores + r * kWordLanes, work_.units + first, job_.most,
                         work_.sums + r * kLanes);
      } else {
        add_seen_weights(first, base, r, end < r + kWordRows ? end : r + kWordRows);
      }
    }
  }

  void score_group(int64_t first, int32_t row, int32_t end) const {
    const int32_t* queries = work_.words + first * work_.tile.key_words;
#if defined(KVE_BF16_TILES)
    score_bf16(work_.tile, row / kBf16Rows * kBf16Rows, round_up(end, kBf16Rows), queries,
               work_.word_scores);
#else
    static constexpr float kNothing[kTile] = {};
    alignas(64) float top[kWordLanes] = {};  // of no use here
    for (int32_t r = row; r < end; r += kWordRows) {
      score_rows(work_.tile, r, (job_.chunk.k.width + 1) / 2, queries, work_.scales + first,
                 kNothing, work_.word_scores, top);
    }
#endif
  }

  // Softcap and slopes, as in attention.
  void limit(int64_t first, int32_t base, int32_t row, int32_t end) const {
    const AttendChunk& chunk = job_.chunk;
    float* scores = work_.word_scores + row * kWordLanes;
    if (chunk.softcap > 0) softcap(chunk.softcap * kLog2E, scores, (end - row) * kWordLanes);
    if (chunk.alibi == nullptr) return;
    for (int32_t r = row; r < end; ++r, scores += kWordLanes) {
      const F32 position = set(position_of(chunk, base + r));
      for (int64_t v = 0; v < kWordLanes; v += kLanes) {
        const F32 distance = position - load(work_.positions + first + v);
        store(scores + v, fma(load(work_.slopes + first + v), distance, load(scores + v)));
      }
    }
  }

  void add_seen_weights(int64_t first, int32_t base, int32_t row, int32_t end) const {
    for (int32_t r = row; r < end; ++r) {
      if (is_dead(job_.chunk, base + r)) continue;
      F32 p[kWordVectors];
      KVE_UNROLL(3)
      for (int v = 0; v < kWordVectors; ++v) {
        const int64_t lane = first + v * kLanes;
        const F32 score = load(work_.word_scores + r * kWordLanes + v * kLanes);
        p[v] = hide(work_.seen, lane, static_cast<float>(base + r), zero(),
                    exp2_rough(score - load(work_.units + lane)));
      }
      add_lanes(p, job_.most, work_.sums + r * kLanes);
    }
  }

  const MassChunk& job_;
  int64_t n_vectors_;
  MassWork& work_;
  SideReader reader_;
};

}  // namespace
#endif

size_t mass_scratch(int key_dim) { return MassWork(nullptr, key_dim, key_dim).size; }

void attention_mass(const MassChunk& job) {
  const AttendChunk& chunk = job.chunk;
  MassWork work(chunk.scratch, chunk.k.width, row_numbers(chunk.k));
  AttendState state = {};
  state.n_vectors = int64_t{chunk.n_tokens} * chunk.n_group;
  state.key_stride = work.query_stride;
  state.queries = work.queries;
  scale_queries(chunk, state);
  if (chunk.method == AttendMethod::rows) return weigh_few(job, state, work);
#if defined(KVE_BF16_DOT)
  if (chunk.method == AttendMethod::rounded_tiles) {
    round_queries(state, work.query_stride / 2, work.rounded);
    return weigh_tiles<Bf16Tile>(job, state.n_vectors, work);
  }
#elif defined(KVE_WORD_TILES)
  const bool limited = chunk.softcap > 0 || chunk.alibi != nullptr;
  if (chunk.method == AttendMethod::rounded_tiles && (kBf16Tiles || !limited)) {
    const GroupUnit unit;
    return WordMass(job, state, work).weigh();
  }
#endif
  weigh_tiles<F32Tile>(job, state.n_vectors, work);
}

// Vector by vector in the order of weigh_few(), with the same bits.
void weigh_scores(const ScoreWeights& job) {
  for (int64_t i = 0; i < job.n; i += kLanes) {
    const int64_t some = least(job.n - i, kLanes);
    F32 mass = zero();
    for (int64_t v = 0; v < job.n_vectors; ++v) {
      if (job.log_sums[v] == -INFINITY) continue;
      const F32 score = load_n(job.scores + v * job.stride + i, some);
      mass = mass + exp2(score - set(job.log_sums[v]));
    }
    store_n(job.mass + i, load_n(job.mass + i, some) + mass, some);
  }
}

}  // namespace kve::KVE_ISA
