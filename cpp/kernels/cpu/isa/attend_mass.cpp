// The weights that rows get from queries whose sums attention has left (AttendTask::log_sums): a
// second pass over the keys alone, tile by tile, so that no matrix of all weights is ever there.
#include <math.h>

#include "kernels/cpu/isa/tile_rows.h"

namespace kve::KVE_ISA {

namespace {

struct MassWork {
  TileRows rows;
  float* keys;     // elements [key_dim][kTile]
  float* queries;  // [n_vectors][query_stride], f32
  float* rounded;  // elements [n_vectors][query_stride / 2], for bf16
  int64_t query_stride;
  float* scores;  // [kGemmTokens][kTile]
  std::byte* coded_tiles;
  std::byte* lifting;
  size_t size;

  MassWork(std::byte* data, int key_dim, int lifted) {
    Carver carver(data);
    query_stride = round_up(key_dim, 32);
    rows = carve_rows(carver, query_stride);
    keys = carver.take<float>(query_stride * kTile);
    queries = carver.take<float>(kMaxAttendVectors * query_stride);
    rounded = carver.take<float>(kMaxAttendVectors * query_stride / 2);
    scores = carver.take<float>(kGemmTokens * kTile);
    coded_tiles = carver.take<std::byte>(static_cast<int64_t>(coded_tiles_bytes(key_dim, key_dim)));
    lifting = carver.take<std::byte>(static_cast<int64_t>(lift_scratch(lifted)));
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

// The vectors of the chunk against the tile of n rows from `base` on.
template <class Tile>
static void weigh_tile(const MassChunk& job, const AttendState& state, const MassWork& work,
                       int32_t base, int32_t n, float* mass) {
  const AttendChunk& chunk = job.chunk;
  const int64_t depth = (chunk.k.width + Tile::kPerElement - 1) / Tile::kPerElement;
  const int64_t stride = work.query_stride / Tile::kPerElement;
  const float* queries = Tile::kRounded ? work.rounded : work.queries;
  for (int64_t first = 0; first < state.n_vectors; first += kGemmTokens) {
    const int64_t count = least(state.n_vectors - first, kGemmTokens);
    const int32_t pos = chunk.query_pos + static_cast<int32_t>(first / chunk.n_group);
    const int32_t last_pos =
        chunk.query_pos + static_cast<int32_t>((first + count - 1) / chunk.n_group);
    if (none_visible(chunk, pos, last_pos, base, n)) continue;
    Tile::kProduct(count, round_up(n, kLanes), depth, queries + first * stride, stride, work.keys,
                   kTile, work.scores, kTile, false);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t vector = first + i;
      const float log_sum =
          job.log_sums[vector / chunk.n_group * job.log_sum_stride + vector % chunk.n_group];
      float* scores = work.scores + i * kTile;
      if (log_sum == -INFINITY || !limit_scores(chunk, vector, base, n, scores)) continue;
      add_weights(scores, log_sum, n, job.most, mass);
    }
  }
}

template <class Tile>
static void weigh_tiles(const MassChunk& job, const AttendState& state, const MassWork& work) {
  const AttendChunk& chunk = job.chunk;
  SideReader reader(chunk.k, chunk.first_pos, Tile::kRounded, work.lifting);
  CodedTiles tiles = carve_coded_tiles(chunk.k.width, chunk.k.width, work.coded_tiles);
  int32_t n = 0;
  for (int32_t base = chunk.first_row; base < chunk.end_row; base += n) {
    n = tile_rows(chunk, base, chunk.end_row);
    if (all_dead(chunk, base, n)) continue;
    read_key_tile<Tile>(chunk, &tiles, work.rows, work.keys, reader, base, n);
    float mass[kTile];
    for (int32_t r = 0; r < kTile; r += kLanes) store(mass + r, zero());
    weigh_tile<Tile>(job, state, work, base, n, mass);
    for (int32_t r = 0; r < n; ++r) {
      float& sum = job.mass[base + r];
      sum = job.most ? (mass[r] > sum ? mass[r] : sum) : sum + mass[r];
    }
  }
}

size_t mass_scratch(int key_dim) { return MassWork(nullptr, key_dim, key_dim).size; }

void attention_mass(const MassChunk& job) {
  const AttendChunk& chunk = job.chunk;
  const MassWork work(chunk.scratch, chunk.k.width, row_numbers(chunk.k));
  AttendState state = {};
  state.n_vectors = int64_t{chunk.n_tokens} * chunk.n_group;
  state.key_stride = work.query_stride;
  state.queries = work.queries;
  scale_queries(chunk, state);
#if defined(KVE_BF16_DOT)
  if (chunk.method == AttendMethod::rounded_tiles) {
    round_queries(state, work.query_stride / 2, work.rounded);
    return weigh_tiles<Bf16Tile>(job, state, work);
  }
#endif
  weigh_tiles<F32Tile>(job, state, work);
}

}  // namespace kve::KVE_ISA
