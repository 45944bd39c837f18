// Attention of many queries in int16 that also gives the weights that rows get: a group of queries
// meets all tiles before the next group begins, and what it gave each row is kept until the sums of
// its weights are known. So that tiles are not read anew for each group, they are prepared once for
// all chunks (stage_tiles()).
#include "kernels/cpu/isa/attend.h"

#if defined(KVE_WORD_TILES)

#include <math.h>
#include <string.h>

#include "kernels/cpu/isa/tile_rows.h"
#include "kernels/cpu/isa/word_group.h"

namespace kve::KVE_ISA {

// ---- prepared tiles ----

size_t staged_tile_bytes(int key_dim, int value_dim) {
  Carver carver(nullptr);
  carve_word_tile(carver, key_dim, value_dim);
  return carver.size();
}

static WordTile staged_tile(const AttendChunk& chunk, int64_t number) {
  Carver carver(chunk.tiles +
                number * static_cast<int64_t>(staged_tile_bytes(chunk.k.width, chunk.v.width)));
  WordTile tile = carve_word_tile(carver, chunk.k.width, chunk.v.width);
  tile.bf16 = kBf16Tiles;
  return tile;
}

namespace {

// Where tiles begin: the first may be short.
struct TileGrid {
  explicit TileGrid(const AttendChunk& chunk)
      : before(rows_before_in_tile(chunk.first_pos, chunk.page_offset, 0)), n_rows(chunk.n_rows) {}
  int32_t number(int32_t row) const { return (row + before) / kTile; }
  int32_t base(int32_t tile) const { return tile == 0 ? 0 : tile * kTile - before; }
  int32_t rows(int32_t tile) const {
    return static_cast<int32_t>(least((tile + 1) * kTile - before, n_rows)) - base(tile);
  }

  int32_t before;
  int32_t n_rows;
};

}  // namespace

size_t stage_scratch(int key_dim, int value_dim) {
  Carver carver(nullptr);
  const int width = key_dim > value_dim ? key_dim : value_dim;
  carve_rows(carver, round_up(width, 2 * kLanes));
  return carver.size();
}

bool stage_tiles(const AttendChunk& chunk) {
  const int width = chunk.k.width > chunk.v.width ? chunk.k.width : chunk.v.width;
  Carver carver(chunk.scratch);
  const TileRows rows = carve_rows(carver, round_up(width, 2 * kLanes));
  const TileGrid grid(chunk);
  // Rows are plain: nothing is lifted.
  SideReader keys(chunk.k, chunk.first_pos, false, nullptr);
  SideReader values(chunk.v, chunk.first_pos, false, nullptr);
  for (int32_t t = grid.number(chunk.first_row); t <= grid.number(chunk.end_row - 1); ++t) {
    WordTile tile = staged_tile(chunk, t);
    const int32_t n = grid.rows(t);
    read_rows<F32Tile>(rows, keys, chunk.k.width, grid.base(t), n);
    put_key_rows(rows.rows, rows.stride, chunk.k.width, n, &tile);
    read_rows<F32Tile>(rows, values, chunk.v.width, grid.base(t), n);
    put_value_rows(rows.rows, rows.stride, chunk.v.width, n, &tile);
    if ((tile.broken_keys | tile.broken_values) != 0) return false;
  }
  return true;
}

// ---- a chunk ----

namespace {

struct WeighedWork {
  GroupWork group;
  // Of the group at hand and each tile.
  int32_t* kept;  // [tile][kTile / 2][kWordLanes]
  float* tops;    // [tile][kWordLanes]
  bool* seen;     // [tile]: whether any query sees it
  size_t size;

  WeighedWork(std::byte* data, int key_dim, int value_dim, int64_t n_tiles) {
    Carver carver(data);
    group = carve_group_work(carver, key_dim, value_dim);
    kept = carver.take<int32_t>(n_tiles * (kTile / 2) * kWordLanes);
    tops = carver.take<float>(n_tiles * kWordLanes);
    seen = carver.take<bool>(n_tiles);
    size = carver.size();
  }
  KeptTile kept_tile(int64_t number) const {
    return {kept + number * (kTile / 2) * kWordLanes, tops + number * kWordLanes};
  }
};

class WeighedLoop {
 public:
  WeighedLoop(const AttendChunk& chunk, const AttendState& state, int32_t first, int32_t end,
              const WeighedWork& work)
      : chunk_(chunk),
        state_(state),
        work_(work),
        grid_(chunk),
        first_(grid_.number(first)),
        end_(grid_.number(end - 1) + 1) {}

  void attend() const {
    memset(chunk_.mass, 0, sizeof(float) * static_cast<size_t>(chunk_.n_rows));
    start_groups(chunk_, state_, work_.group);
    for (int64_t lane = 0; lane < state_.n_vectors; lane += kWordLanes) {
      for (int32_t t = first_; t < end_; ++t) attend_tile(t, lane);
      add_weights(lane);
    }
    finish_groups(state_, work_.group);
  }

 private:
  // What is added up stays clear of numbers so small that processors are slow with them.
  static constexpr float kLift = 0x1p64f;

  void attend_tile(int32_t t, int64_t lane) const {
    const WordTile tile = staged_tile(chunk_, t);
    KeptTile kept = work_.kept_tile(t);
    const bool seen = attend_group({.chunk = chunk_,
                                    .work = work_.group,
                                    .tile = tile,
                                    .n_vectors = state_.n_vectors,
                                    .base = grid_.base(t),
                                    .n = grid_.rows(t),
                                    .value_width = chunk_.v.width,
                                    .sums = work_.group.sums,
                                    .has_coded = false,
                                    .kept = &kept},
                                   lane);
    work_.seen[t] = seen;
  }

  void add_weights(int64_t lane) const {
    alignas(64) float log_sums[kWordLanes];
    for (int64_t v = 0; v < kWordLanes; ++v) {
      const float weight = work_.group.lanes.weight[lane + v];
      // Past the last query, or of one that has seen nothing: no weight at all.
      log_sums[v] = lane + v < state_.n_vectors && weight != 0
                        ? work_.group.lanes.unit[lane + v] + log2f(weight)
                        : INFINITY;
    }
    for (int32_t t = first_; t < end_; ++t) {
      if (work_.seen[t]) add_tile(t, log_sums);
    }
  }

  void add_tile(int32_t t, const float* log_sums) const {
    const KeptTile kept = work_.kept_tile(t);
    alignas(64) float factors[kWordLanes];
    for (int64_t v = 0; v < kWordLanes; v += kLanes) {
      const F32 log = load(kept.top + v) - load(log_sums + v);
      store(factors + v, exp2(log) * set(kLift));
    }
    alignas(64) float sums[kTile] = {};
    add_kept(kept.weights, factors, sums);
    const float* inverse = staged_tile(chunk_, t).value_inverse;
    const F32 unit = set(1 / kLift / kKeptUnit);
    float* mass = chunk_.mass + grid_.base(t);
    const int64_t n = grid_.rows(t);
    for (int64_t r = 0; r < n; r += kLanes) {
      const int64_t some = least(n - r, kLanes);
      const F32 more = load_n(sums + r, some) * unit * load_n(inverse + r, some);
      store_n(mass + r, load_n(mass + r, some) + more, some);
    }
  }

  const AttendChunk& chunk_;
  const AttendState& state_;
  const WeighedWork& work_;
  TileGrid grid_;
  int32_t first_;  // tiles
  int32_t end_;
};

}  // namespace

size_t attend_weighed_scratch(int key_dim, int value_dim, int64_t n_rows) {
  return WeighedWork(nullptr, key_dim, value_dim, most_tiles(n_rows)).size;
}

void attend_weighed(const AttendChunk& chunk, const AttendState& state, int32_t first, int32_t end,
                    std::byte* scratch) {
  const GroupUnit unit;
  const WeighedWork work(scratch, chunk.k.width, chunk.v.width, most_tiles(chunk.n_rows));
  WeighedLoop(chunk, state, first, end, work).attend();
}

}  // namespace kve::KVE_ISA

#endif
