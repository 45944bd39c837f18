#include "kernels/cuda/attend.h"

#include <math.h>

#include <algorithm>
#include <type_traits>

#include "kernels/cuda/attend_lift.h"
#include "kernels/few_rows.h"

namespace kve::cuda {
namespace {

constexpr int kPartTiles = 16;     // of a part of the rows, for few queries
constexpr int kStateNumbers = 16;  // of a block of columns and one of values, in each thread

template <int kValue>
using Number = std::integral_constant<int, kValue>;

// Adds up the warps' sums in order, each scaled to the common maximum; columns' totals are in
// partial[0 * columns + column] afterwards.
template <int kBlocks, int kValueBlocks>
__device__ void merge_warps(const AttendArgs& args, const Shared& shared,
                            WarpState<kBlocks, kValueBlocks>* state) {
  constexpr int kAll = kBlocks * kColumns;
  const int g = lane_id() / 4;
  const int i = lane_id() % 4;
  KVE_UNROLL
  for (int b = 0; b < kBlocks; ++b) {
    KVE_UNROLL
    for (int n = 0; n < 2; ++n) {
      float sum = state->sum[b][n];
      KVE_UNROLL
      for (int mask = 4; mask < kWarpThreads; mask *= 2) sum += shuffle_xor(sum, mask);
      const int column = b * kColumns + 2 * i + n;
      if (g == 0) shared.partial[warp_id() * kAll + column] = {state->most[b][n], sum};
    }
  }
  __syncthreads();
  float factor[kBlocks][2];
  KVE_UNROLL
  for (int b = 0; b < kBlocks; ++b) {
    KVE_UNROLL
    for (int n = 0; n < 2; ++n) {
      const int column = b * kColumns + 2 * i + n;
      float most = -INFINITY;
      for (int w = 0; w < kAttendWarps; ++w) {
        most = fmaxf(most, shared.partial[w * kAll + column].most);
      }
      factor[b][n] = most == -INFINITY ? 0.0f : exp2f(state->most[b][n] - most);
    }
  }
  for (int w = 0; w < kAttendWarps; ++w) {
    __syncthreads();
    if (warp_id() != w) continue;
    KVE_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      KVE_UNROLL
      for (int c = 0; c < kValueBlocks; ++c) {
        KVE_UNROLL
        for (int k = 0; k < 4; ++k) {
          KVE_UNROLL
          for (int n = 0; n < 4; ++n) {
            const int channel = 64 * c + g / 2 * 16 + g % 2 * 4 + k + n / 2 * 8;
            if (channel >= args.value_dim) continue;
            float* to = shared.sums + (b * kColumns + 2 * i + n % 2) * args.value_dim + channel;
            const float value = state->out[b][c][k][n] * factor[b][n % 2];
            *to = w == 0 ? value : *to + value;
          }
        }
      }
    }
  }
  __syncthreads();
  for (int column = static_cast<int>(threadIdx.x); column < kAll; column += kAttendThreads) {
    PartialSums total{-INFINITY, 0};
    for (int w = 0; w < kAttendWarps; ++w) {
      total.most = fmaxf(total.most, shared.partial[w * kAll + column].most);
    }
    for (int w = 0; w < kAttendWarps && total.most > -INFINITY; ++w) {
      const PartialSums part = shared.partial[w * kAll + column];
      total.sum += part.sum * exp2f(part.most - total.most);
    }
    shared.partial[column] = total;
  }
  __syncthreads();
}

__device__ __forceinline__ void write_log_sum(const AttendArgs& args, int vector, int kv_head,
                                              PartialSums total) {
  if (args.log_sums == nullptr) return;
  const int64_t at =
      int64_t{vector / args.group} * args.n_heads + kv_head * args.group + vector % args.group;
  args.log_sums[at] = total.most + log2f(total.sum) - kLift;
}

template <int kBlocks, int kValueBlocks>
__device__ __forceinline__ void begin_state(const AttendArgs& args, const HeadRows& head,
                                            const Walk& walk,
                                            WarpState<kBlocks, kValueBlocks>* state) {
  KVE_UNROLL
  for (int b = 0; b < kBlocks; ++b) {
    KVE_UNROLL
    for (int n = 0; n < 2; ++n) {
      const int vector = walk.first_vector + b * kColumns + lane_id() % 4 * 2 + n;
      state->view[b][n] = view_of(args, head, walk.kv_head, vector);
      state->most[b][n] = -INFINITY;
      state->sum[b][n] = 0;
    }
    KVE_UNROLL
    for (int c = 0; c < kValueBlocks; ++c) {
      KVE_UNROLL
      for (int k = 0; k < 4; ++k) {
        KVE_UNROLL
        for (int n = 0; n < 4; ++n) state->out[b][c][k][n] = 0;
      }
    }
  }
}

// What a warp has of bases, beside its state.
template <int kBlocks>
struct WarpBases {
  Projected projected;
  const SideBasis* open = nullptr;  // that the sums are coefficients in
  Lifted<kBlocks> lifted;
};

// Makes the sums those of values. `ends`: no coefficients follow.
template <int kBlocks, int kValueBlocks>
__device__ __forceinline__ void close_basis(const AttendArgs& args, const HeadRows& head,
                                            const Shared& shared, bool ends,
                                            WarpBases<kBlocks>* bases,
                                            WarpState<kBlocks, kValueBlocks>* state) {
  if (bases->open == nullptr) return;
  lift_sums(args, *bases->open, head.v.n_channels, shared.bases, state);
  add_lifted(shared.lifted, bases->lifted, state);
  if (!ends) keep_lifted(shared.lifted, &bases->lifted, state);
  bases->projected = {};  // which lay there
  bases->open = nullptr;
}

// One run. `in_basis`: its values are coefficients.
template <int kBlocks, int kValueBlocks, bool kBasis>
__device__ __forceinline__ void attend_run(const AttendArgs& args, const HeadRows& head,
                                           const Walk& walk, const Shared& shared, int tile,
                                           const Run& run, bool in_basis, WarpBases<kBlocks>* bases,
                                           WarpState<kBlocks, kValueBlocks>* state) {
  const RunRows keys = rows_of(head.k, head.sink_rows, run, args.key_dim, shared.key_tables);
  const RunRows values = rows_of(head.v, head.sink_rows, run, args.value_dim, shared.value_tables);
  const Words2* queries = shared.queries;
  float factor = 1;
  if constexpr (kBasis) {
    if (in_basis) {
      const SideBasis& basis = values.kind->basis;
      const SideBasis* open = bases->open;
      if (open != nullptr && (open->lift != basis.lift || open->lift8 != basis.lift8)) {
        close_basis(args, head, shared, false, bases, state);
      }
      bases->open = &basis;
    }
    if (keys.kind != nullptr && head.k.in_basis) {
      const int next = tile + kAttendWarps;
      const bool paged =
          next < walk.end_tile && (next - walk.sink_tiles) * kTileRows < head.k.page_rows;
      queries = queries_for<kBlocks>(args, head.k, walk.sink_tiles, walk.kv_head, walk.first_vector,
                                     tile, paged ? next : -1, shared.bases, &bases->projected);
      factor = keys.kind->basis.score_factor;
    }
  }
  uint16_t* weights = shared.weights + warp_id() * kBlocks * kColumns * kWeightStride;
  float scores[kBlocks][4][4] = {};
  find_scores<kBlocks>(keys, queries, scores);
  weigh(args, head, run, factor, scores, weights, state);
  __syncwarp();
  add_values(values, run, weights, state);
  __syncwarp();
}

// Warps take tiles in turn. `in_basis`: only runs whose values are coefficients, else only others.
template <int kBlocks, int kValueBlocks, bool kBasis>
__device__ __forceinline__ void attend_tiles(const AttendArgs& args, const HeadRows& head,
                                             const Walk& walk, const Shared& shared, bool in_basis,
                                             WarpBases<kBlocks>* bases,
                                             WarpState<kBlocks, kValueBlocks>* state) {
  for (int tile = walk.first_tile + warp_id(); tile < walk.end_tile; tile += kAttendWarps) {
    const bool sinks = tile < walk.sink_tiles;
    const int base =
        sinks ? tile * kTileRows : head.sink_rows + (tile - walk.sink_tiles) * kTileRows;
    const int tile_end = least(kTileRows, (sinks ? head.sink_rows : head.n_rows) - base);
    if (base >= walk.end || base + tile_end <= walk.begin) continue;
    Run run{base, 0, 0};
    while (run.end < tile_end) {
      // Up to where one of the sides goes from its pages to its tail.
      run.first = run.end;
      run.end = tile_end;
      const int key_end = sinks ? 0 : head.sink_rows + head.k.page_rows - base;
      const int value_end = sinks ? 0 : head.sink_rows + head.v.page_rows - base;
      if (key_end > run.first) run.end = least(run.end, key_end);
      if (value_end > run.first) run.end = least(run.end, value_end);
      const bool coefficients = kBasis && head.v.in_basis && value_end > run.first;
      if (coefficients != in_basis) continue;
      attend_run<kBlocks, kValueBlocks, kBasis>(args, head, walk, shared, tile, run, in_basis,
                                                bases, state);
    }
  }
}

// A block: one part of the rows of one kv head, for kBlocks * 8 vectors. kBasis: pages may be in
// one; coefficients of values come first, and are lifted before values are added to them.
template <int kBlocks, int kValueBlocks, bool kBasis>
__global__ void __launch_bounds__(kAttendThreads) attend_kernel(AttendArgs args) {
  constexpr int kAll = kBlocks * kColumns;
  KVE_SHARED(memory);
  const Shared shared =
      divide_shared(args, kAll, kBlocks * kValueBlocks * kStateNumbers, kBasis, memory);
  const int part = static_cast<int>(blockIdx.x);
  const HeadRows& head = args.heads[blockIdx.y];
  const Walk walk = plan_walk(args, head, kAll);
  const int kv_head = walk.kv_head;
  const int first_vector = walk.first_vector;
  const int n_vectors = args.n_queries * args.group;
  fill_tables(head.k, shared.key_tables);
  fill_tables(head.v, shared.value_tables);
  fill_queries<kBlocks>(args, kv_head, first_vector, shared.queries);
  __syncthreads();

  WarpState<kBlocks, kValueBlocks> state;
  begin_state(args, head, walk, &state);
  WarpBases<kBlocks> bases;
  if constexpr (kBasis) {
    if (head.v.in_basis) {
      attend_tiles<kBlocks, kValueBlocks, kBasis>(args, head, walk, shared, true, &bases, &state);
      close_basis(args, head, shared, true, &bases, &state);
    }
  }
  attend_tiles<kBlocks, kValueBlocks, kBasis>(args, head, walk, shared, false, &bases, &state);
  merge_warps(args, shared, &state);

  for (int n = static_cast<int>(threadIdx.x); n < kAll * args.value_dim; n += kAttendThreads) {
    const int column = n / args.value_dim;
    const int channel = n % args.value_dim;
    const int vector = first_vector + column;
    if (vector >= n_vectors) break;
    const PartialSums total = shared.partial[column];
    if (args.partials != nullptr) {
      const int64_t at = (int64_t{kv_head} * n_vectors + vector) * args.n_parts + part;
      float* to = args.partials + at * (args.value_dim + 2);
      to[2 + channel] = shared.sums[n];
      if (channel == 0) {
        to[0] = total.most;
        to[1] = total.sum;
      }
      continue;
    }
    float* to = args.out + int64_t{vector / args.group} * args.out_stride +
                int64_t{kv_head * args.group + vector % args.group} * args.value_dim;
    to[channel] = shared.sums[n] / total.sum;
    if (channel == 0) write_log_sum(args, vector, kv_head, total);
  }
}

// Merges the parts of one vector, in order: a block to a vector.
__global__ void merge_parts_kernel(AttendArgs args) {
  const int vector = static_cast<int>(blockIdx.x);
  const int kv_head = static_cast<int>(blockIdx.y);
  const int64_t stride = args.value_dim + 2;
  const int64_t n_vectors = int64_t{args.n_queries} * args.group;
  const float* parts = args.partials + (kv_head * n_vectors + vector) * args.n_parts * stride;
  PartialSums total{-INFINITY, 0};
  for (int p = 0; p < args.n_parts; ++p) total.most = fmaxf(total.most, parts[p * stride]);
  for (int p = 0; p < args.n_parts && total.most > -INFINITY; ++p) {
    total.sum += parts[p * stride + 1] * exp2f(parts[p * stride] - total.most);
  }
  float* out = args.out + int64_t{vector / args.group} * args.out_stride +
               int64_t{kv_head * args.group + vector % args.group} * args.value_dim;
  for (int c = static_cast<int>(threadIdx.x); c < args.value_dim; c += kAttendThreads) {
    float sum = 0;
    for (int p = 0; p < args.n_parts && total.most > -INFINITY; ++p) {
      sum += parts[p * stride + 2 + c] * exp2f(parts[p * stride] - total.most);
    }
    out[c] = sum / total.sum;
  }
  if (threadIdx.x == 0) write_log_sum(args, vector, kv_head, total);
}

int32_t parts_of(int64_t n_queries, int64_t most_rows) {
  if (n_queries > kFewRows) return 1;
  // Sinks end a tile of their own.
  return static_cast<int32_t>(divide_up(most_rows / kTileRows + 2, kPartTiles));
}

// Twice as many vectors to a block read rows half as often, as far as there are registers.
template <class Visit>
void choose_blocks(const AttendArgs& args, const Visit& run) {
  const bool few = args.n_queries * args.group <= kColumns;
  const int dim = std::max(args.value_dim, args.value_numbers);
  if (dim <= 64) return few ? run(Number<1>(), Number<1>()) : run(Number<2>(), Number<1>());
  if (dim <= 128) return few ? run(Number<1>(), Number<2>()) : run(Number<2>(), Number<2>());
  return run(Number<1>(), Number<4>());
}

size_t shared_bytes(const AttendArgs& args, bool in_basis) {
  size_t bytes = 0;
  choose_blocks(args, [&](auto blocks, auto value_blocks) {
    bytes = shared_offsets(args, blocks * kColumns, blocks * value_blocks * kStateNumbers, in_basis)
                .end;
  });
  return bytes;
}

template <bool kBasis>
void launch_attend(const AttendArgs& args, int32_t n_kv_heads) {
  const size_t bytes = shared_bytes(args, kBasis);
  choose_blocks(args, [&](auto blocks, auto value_blocks) {
    const auto columns = divide_up(args.n_queries * args.group, blocks * kColumns);
    const GridSize grid{static_cast<unsigned>(args.n_parts), static_cast<unsigned>(n_kv_heads),
                        static_cast<unsigned>(columns)};
    launch("attend", attend_kernel<blocks(), value_blocks(), kBasis>, grid, kAttendThreads, bytes,
           args);
  });
}

}  // namespace

size_t attend_scratch(const AttendParams& params, int64_t n_queries, int64_t most_rows) {
  const int32_t parts = parts_of(n_queries, most_rows);
  if (parts == 1) return 0;
  return static_cast<size_t>(n_queries * params.n_heads * parts) *
         static_cast<size_t>(params.value_dim + 2) * sizeof(float);
}

size_t attend_shared(const AttendParams& params, const ReadNeeds& needs, int64_t n_queries) {
  return shared_bytes(args_of(params, needs, n_queries), needs.bases);
}

void attend(const AttendParams& params, const AttendJob& job, std::byte* scratch) {
  if (job.q.rows == 0) return;
  AttendArgs args = args_of(params, job.needs, job.q.rows);
  args.q = job.q.data;
  args.q_stride = job.q.stride;
  args.heads = job.heads;
  args.alibi = job.alibi;
  args.out = job.out.data;
  args.out_stride = job.out.stride;
  args.log_sums = job.log_sums;
  args.n_parts = parts_of(job.q.rows, job.most_rows);
  args.part_tiles = args.n_parts == 1 ? INT32_MAX / 2 : kPartTiles;
  args.partials = args.n_parts == 1 ? nullptr : reinterpret_cast<float*>(scratch);
  if (job.needs.bases) {
    launch_attend<true>(args, params.n_kv_heads);
  } else {
    launch_attend<false>(args, params.n_kv_heads);
  }
  if (args.n_parts == 1) return;
  const GridSize grid{static_cast<unsigned>(args.n_queries * args.group),
                      static_cast<unsigned>(params.n_kv_heads), 1};
  launch("merge_parts", merge_parts_kernel, grid, kAttendThreads, 0, args);
}

}  // namespace kve::cuda
