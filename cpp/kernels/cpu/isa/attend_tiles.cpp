// Attention of many queries: tiles of kTile rows are decoded once for all vectors of the chunk and
// laid out for the products of gemm.cpp, in f32 or in pairs of bf16. For a few vectors at a time,
// scores, weights and sums of a tile follow each other while the scores are in the nearest cache.
#include <string.h>

#include "kernels/cpu/isa/next_tile.h"
#include "kernels/cpu/isa/tile_rows.h"

namespace kve::KVE_ISA {

namespace {

// Elements have 32 bits, whatever they hold.
struct TileWork {
  TileRows rows;
  int64_t query_stride;  // elements
  float* keys;           // [query_stride][kTile]: columns of the keys
  float* values;         // [kTile / 2][rows.stride]: pairs of rows of the values, for bf16
  float* queries;        // [n_vectors][query_stride], for bf16
  float* scores;         // [kGemmTokens][kTile], then weights
  float* coded_sums;     // [n_vectors][sum_stride]: of values, in their basis
  int64_t sum_stride;
  std::byte* coded_tiles;
  std::byte* lifting;
  size_t size;

  // lifted: numbers of the rows that are rebuilt.
  TileWork(std::byte* data, int key_dim, int value_dim, int lifted) {
    // Of blocks of 16 channels, which coded values are, and of pairs of vectors.
    const int64_t key_stride = round_up(key_dim, 32);
    const int64_t value_stride = round_up(value_dim, 32);
    query_stride = key_stride / 2;
    Carver carver(data);
    rows = carve_rows(carver, key_stride > value_stride ? key_stride : value_stride);
    keys = carver.take<float>(key_stride * kTile);
    values = carver.take<float>(kTile / 2 * rows.stride);
    queries = carver.take<float>(kMaxTileVectors * query_stride);
    scores = carver.take<float>(kGemmTokens * kTile);
    sum_stride = value_stride;
    coded_sums = carver.take<float>(kMaxTileVectors * sum_stride);
    coded_tiles =
        carver.take<std::byte>(static_cast<int64_t>(coded_tiles_bytes(key_dim, value_dim)));
    lifting = carver.take<std::byte>(static_cast<int64_t>(lift_scratch(lifted)));
    size = carver.size();
  }
};

}  // namespace

// The values' rows, in bf16 two to an element. A row past the n-th is zero if it is in an element
// with the n-th.
template <class Tile>
static void load_value_tile(const TileWork& work, SideReader& reader, int width, int32_t base,
                            int32_t n) {
  read_rows<Tile>(work.rows, reader, width, base, n);
#if defined(KVE_BF16_DOT)
  if constexpr (Tile::kRounded) {
    auto* rows = reinterpret_cast<uint16_t*>(work.rows.rows);
    if (n % 2 != 0)
      memset(rows + n * work.rows.stride, 0, static_cast<size_t>(work.rows.stride) * 2);
    for (int32_t r = 0; r < n; r += 2) {
      for (int64_t d = 0; d < width; d += kLanes) {
        const uint16_t* row = rows + r * work.rows.stride + d;
        store(work.values + r / 2 * work.rows.stride + d,
              interleave16(row, row + work.rows.stride));
      }
    }
  }
#endif
}

#if defined(KVE_BF16_DOT)
// Scores of one vector, which sees the whole tile, to weights in bf16, packed in place. Whether the
// unit has to be raised shows in the weights.
static bool weigh_whole(const AttendState& state, int64_t vector, float* scores) {
  constexpr int kVectors = kTile / kLanes;
  static_assert(kVectors == 4);
  if (state.unit[vector] == -INFINITY) return false;
  const F32 unit = set(state.unit[vector]);
  F32 p[kVectors];
  KVE_UNROLL(4)
  for (int i = 0; i < kVectors; ++i) p[i] = exp2_rough(load(scores + i * kLanes) - unit);
  const F32 total = (p[0] + p[1]) + (p[2] + p[3]);
  if (any(less(set(kMostWeight), total))) return false;
  auto* packed = reinterpret_cast<uint16_t*>(scores);
  store_bf16(packed, p[0], p[1]);
  store_bf16(packed + 2 * kLanes, p[2], p[3]);
  float* weight = state.weight + vector * kLanes;
  store(weight, load(weight) + total);
  return true;
}
#endif

// Scores of one vector to weights, of which those from n on are zero; in bf16 they are packed in
// place.
template <class Tile>
static void weigh(const AttendState& state, int64_t vector, float* scores, int32_t n) {
  const F32 unit = update_unit(state, vector, scores, n);
  F32 total = load(state.weight + vector * kLanes);
  for (int32_t i = 0; i < n; i += kLanes) {
#if defined(KVE_BF16_DOT)
    if constexpr (Tile::kRounded) {
      const F32 p = exp2_rough(load(scores + i) - unit);
      store_bf16(reinterpret_cast<uint16_t*>(scores) + i, p);
      total = total + p;
      continue;
    }
#endif
    const F32 p = exp2(load(scores + i) - unit);
    store(scores + i, p);
    total = total + p;
  }
  store(state.weight + vector * kLanes, total);
}

namespace {

// The query vectors that meet the tile in `work`: rows [base, base + n) of the cache.
struct TileTask {
  const AttendChunk& chunk;
  const AttendState& state;
  const TileWork& work;
  const float* queries;  // [n_vectors][query_stride] elements
  int64_t query_stride;
  int32_t base;
  int32_t n;
  float* sums;  // [n_vectors][sum_stride] of value_width, which the tile's values are added to
  int64_t sum_stride;
  int value_width;
};

}  // namespace

// A few vectors, from `first` on.
template <class Tile>
static void attend_vectors(const TileTask& task, int64_t first) {
  const AttendChunk& chunk = task.chunk;
  const AttendState& state = task.state;
  const TileWork& work = task.work;
  const int32_t n = task.n;
  const int64_t count = least(state.n_vectors - first, kGemmTokens);
  const int32_t pos = chunk.query_pos + static_cast<int32_t>(first / chunk.n_group);
  const int32_t last_pos =
      chunk.query_pos + static_cast<int32_t>((first + count - 1) / chunk.n_group);
  if (none_visible(chunk, pos, last_pos, task.base, n)) return;
  const bool limited = chunk.softcap > 0 || chunk.alibi != nullptr ||
                       !all_visible(chunk, pos, last_pos, task.base, n);
  const int64_t depth = (chunk.k.width + Tile::kPerElement - 1) / Tile::kPerElement;
  Tile::kProduct(count, round_up(n, kLanes), depth, task.queries + first * task.query_stride,
                 task.query_stride, work.keys, kTile, work.scores, kTile, false);
  for (int64_t i = 0; i < count; ++i) {
    float* scores = work.scores + i * kTile;
#if defined(KVE_BF16_DOT)
    if constexpr (Tile::kRounded) {
      if (!limited && n == kTile && weigh_whole(state, first + i, scores)) continue;
    }
#endif
    if (limited && !limit_scores(chunk, first + i, task.base, n, scores)) {
      memset(scores, 0, sizeof(float) * kTile);
    } else {
      weigh<Tile>(state, first + i, scores, n);
    }
  }
  Tile::kProduct(count, task.value_width, (n + Tile::kPerElement - 1) / Tile::kPerElement,
                 work.scores, kTile, Tile::kRounded ? work.values : work.rows.rows,
                 work.rows.stride, task.sums + first * task.sum_stride, task.sum_stride, true);
}

namespace {

// The tiles of a chunk, one after the other.
template <class Tile>
class TileLoop {
 public:
  TileLoop(const AttendChunk& chunk, const AttendState& state, const TileWork& work)
      : chunk_(chunk),
        state_(state),
        work_(work),
        keys_(chunk.k, chunk.first_pos, Tile::kRounded, work.lifting),
        values_(chunk.v, chunk.first_pos, Tile::kRounded, work.lifting),
        tiles_(carve_coded_tiles(chunk.k.width, chunk.v.width, work.coded_tiles)) {
    if (chunk.v.bases == nullptr) return;
    state_.coded = work.coded_sums;
    state_.coded_stride = work.sum_stride;
    clear_coded();
  }

  void attend(int32_t first, int32_t end) {
    TileTask task = {chunk_, state_, work_, state_.queries, state_.key_stride, 0, 0, nullptr, 0, 0};
#if defined(KVE_BF16_DOT)
    if constexpr (Tile::kRounded) {
      round_queries(state_, work_.query_stride, work_.queries);
      task.queries = work_.queries;
      task.query_stride = work_.query_stride;
    }
#endif
    const int64_t shares = (state_.n_vectors + kGemmTokens - 1) / kGemmTokens;
    for_tiles(chunk_, first, end, [&](int32_t base, int32_t n) {
      task.base = base;
      task.n = n;
      read_key_tile<Tile>(chunk_, &tiles_, work_.rows, work_.keys, keys_, base, n);
      read_values(&task);
      NextTile ahead(chunk_, keys_, values_, base + n, end, shares);
      for (int64_t v = 0; v < state_.n_vectors; v += kGemmTokens) {
        ahead.prefetch();
        attend_vectors<Tile>(task, v);
      }
    });
    lift_coded();
  }

 private:
  void read_values(TileTask* task) {
    const PageView* page = values_.coded_page(task->base, task->n);
    const bool in_basis = page != nullptr && chunk_.v.bases != nullptr;
    task->sums = in_basis ? work_.coded_sums : state_.sums;
    task->sum_stride = in_basis ? work_.sum_stride : state_.value_stride;
    task->value_width = in_basis ? chunk_.v.n_channels : chunk_.v.width;
    if (page == nullptr) {
      return load_value_tile<Tile>(work_, values_, chunk_.v.width, task->base, task->n);
    }
    if (in_basis && page->basis != basis_) {
      lift_coded();
      basis_ = page->basis;
    }
    value_elements(chunk_.v.strips[page->basis], *page, Tile::kRounded,
                   Tile::kRounded ? work_.values : work_.rows.rows, work_.rows.stride,
                   tiles_.params);
  }

  void clear_coded() {
    memset(work_.coded_sums, 0,
           sizeof(float) * static_cast<size_t>(state_.n_vectors * work_.sum_stride));
  }
  // Sums in a basis become sums of values.
  void lift_coded() {
    if (basis_ < 0) return;
    lift_values({chunk_.v.bases + basis_, work_.coded_sums, work_.sum_stride,
                 static_cast<int32_t>(state_.n_vectors), state_.sums, state_.value_stride});
    clear_coded();
    basis_ = -1;
  }

  const AttendChunk& chunk_;
  AttendState state_;
  const TileWork& work_;
  SideReader keys_;
  SideReader values_;
  CodedTiles tiles_;
  int32_t basis_ = -1;  // of the coded sums; -1: there are none
};

}  // namespace

size_t attend_tiles_scratch(int key_dim, int value_dim) {
  return TileWork(nullptr, key_dim, value_dim, key_dim > value_dim ? key_dim : value_dim).size;
}

void attend_tiles(const AttendChunk& chunk, const AttendState& state, int32_t first, int32_t end,
                  std::byte* scratch) {
  const TileWork work(scratch, chunk.k.width, chunk.v.width, row_numbers(chunk));
#if defined(KVE_BF16_DOT)
  if (chunk.method == AttendMethod::rounded_tiles) {
    return TileLoop<Bf16Tile>(chunk, state, work).attend(first, end);
  }
#endif
  TileLoop<F32Tile>(chunk, state, work).attend(first, end);
}

}  // namespace kve::KVE_ISA
