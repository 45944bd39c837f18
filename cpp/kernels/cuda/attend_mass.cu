// The weights that rows get from queries whose sums attention has left: a second pass over the keys
// alone. A warp to a tile; the queries come in blocks of eight vectors.
#include <math.h>

#include "kernels/cuda/attend_queries.h"

namespace kve::cuda {
namespace {

constexpr int kMassTiles = 4 * kAttendWarps;  // of a block

struct MassArgs {
  AttendArgs attend;
  const float* log_sums;  // [n_queries, n_heads]
  float* mass;            // [kv head][most_rows]
  int64_t most_rows;
  bool most;  // the largest weight, else their sum
};

// What the columns of a product give its rows is added up, and to the row's mass.
__device__ __forceinline__ void add_mass(const MassArgs& args, const HeadRows& head, const Run& run,
                                         const VectorView (&views)[2], const float (&units)[2],
                                         float factor, const float (&scores)[4][4], float* mass) {
  const int g = lane_id() / 4;
  const int i = lane_id() % 4;
  KVE_UNROLL
  for (int k = 0; k < 4; ++k) {
    KVE_UNROLL
    for (int m = 0; m < 2; ++m) {
      const int t = g / 2 * 16 + g % 2 * 4 + k + 8 * m;
      float weight = 0;
      KVE_UNROLL
      for (int n = 0; n < 2; ++n) {
        const float score =
            score_of(args.attend, head, run, views[n], t, scores[k][2 * m + n], factor);
        const float own = exp2f(score - units[n]);  // 0 of what is not seen
        weight = args.most ? fmaxf(weight, own) : weight + own;
      }
      KVE_UNROLL
      for (int mask = 1; mask < 4; mask *= 2) {
        const float other = shuffle_xor(weight, mask);
        weight = args.most ? fmaxf(weight, other) : weight + other;
      }
      if (i != 0 || t < run.first || t >= run.end) continue;
      float* to = mass + run.base + t;
      *to = args.most ? fmaxf(*to, weight) : *to + weight;
    }
  }
}

template <bool kBasis>
__global__ void __launch_bounds__(kAttendThreads) mass_kernel(MassArgs args) {
  KVE_SHARED(memory);
  const AttendArgs& attend = args.attend;
  const Shared shared = divide_shared(attend, kColumns, 0, kBasis, memory);
  const HeadRows& head = attend.heads[blockIdx.y];
  const int kv_head = static_cast<int>(blockIdx.y);
  const int n_vectors = attend.n_queries * attend.group;
  float* mass = args.mass + kv_head * args.most_rows;
  fill_tables(head.k, shared.key_tables);
  const int sink_tiles = (head.sink_rows + kTileRows - 1) / kTileRows;
  const int tiles = sink_tiles + (head.n_rows - head.sink_rows + kTileRows - 1) / kTileRows;
  const int first_tile = static_cast<int>(blockIdx.x) * kMassTiles;
  for (int first = 0; first < n_vectors; first += kColumns) {
    __syncthreads();
    fill_queries<1>(attend, kv_head, first, shared.queries);
    __syncthreads();
    VectorView views[2];
    float units[2];
    KVE_UNROLL
    for (int n = 0; n < 2; ++n) {
      const int vector = first + lane_id() % 4 * 2 + n;
      views[n] = {-1, 0};  // sees nothing
      units[n] = 0;
      if (vector >= n_vectors) continue;
      views[n] = view_of(attend, head, kv_head, vector);
      units[n] = args.log_sums[int64_t{vector / attend.group} * attend.n_heads +
                               kv_head * attend.group + vector % attend.group];
    }
    Projected projected;
    for (int tile = first_tile + warp_id(); tile < least(tiles, first_tile + kMassTiles);
         tile += kAttendWarps) {
      const bool sinks = tile < sink_tiles;
      const int base = sinks ? tile * kTileRows : head.sink_rows + (tile - sink_tiles) * kTileRows;
      const int end = least(kTileRows, (sinks ? head.sink_rows : head.n_rows) - base);
      const int key_end = sinks ? 0 : head.sink_rows + head.k.page_rows - base;
      Run run{base, 0, 0};
      while (run.end < end) {
        run.first = run.end;
        run.end = key_end > run.first ? least(end, key_end) : end;
        const RunRows keys =
            rows_of(head.k, head.sink_rows, run, attend.key_dim, shared.key_tables);
        const Words2* queries = shared.queries;
        float factor = 1;
        if (kBasis && keys.kind != nullptr && head.k.in_basis) {
          queries = queries_for<1>(attend, head.k, sink_tiles, kv_head, first, tile, -1,
                                   shared.bases, &projected);
          factor = keys.kind->basis.score_factor;
        }
        float scores[1][4][4] = {};
        find_scores<1>(keys, queries, scores);
        add_mass(args, head, run, views, units, factor, scores[0], mass);
        __syncwarp();
      }
    }
  }
}

}  // namespace

size_t mass_shared(const AttendParams& params, const ReadNeeds& needs) {
  return shared_offsets(args_of(params, needs, 1), kColumns, 0, needs.bases).end;
}

void attention_mass(const AttendParams& params, const MassJob& job) {
  if (job.q.rows == 0 || job.most_rows == 0) return;
  MassArgs args{};
  args.attend = args_of(params, job.needs, job.q.rows);
  args.attend.lifts = 1;
  args.attend.q = job.q.data;
  args.attend.q_stride = job.q.stride;
  args.attend.heads = job.heads;
  args.attend.alibi = job.alibi;
  args.log_sums = job.log_sums;
  args.mass = job.mass;
  args.most_rows = job.most_rows;
  args.most = job.what == MassOf::most;
  // Sinks end a tile of their own.
  const int64_t blocks = divide_up(job.most_rows / kTileRows + 2, kMassTiles);
  const GridSize grid{static_cast<unsigned>(blocks), static_cast<unsigned>(params.n_kv_heads), 1};
  const size_t bytes = mass_shared(params, job.needs);
  if (job.needs.bases) {
    launch("mass", mass_kernel<true>, grid, kAttendThreads, bytes, args);
  } else {
    launch("mass", mass_kernel<false>, grid, kAttendThreads, bytes, args);
  }
}

}  // namespace kve::cuda
