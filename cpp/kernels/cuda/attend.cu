#include "kernels/cuda/attend.h"

#include <math.h>

#include "kernels/cuda/attend_tile.h"
#include "kernels/few_rows.h"

namespace kve::cuda {
namespace {

constexpr int kPartTiles = 16;  // of a part of the rows, for few queries

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

// A block: one part of the rows of one kv head, for kBlocks * 8 vectors (a query of one of the
// query heads that read the kv head). Warps take tiles in turn.
template <int kBlocks, int kValueBlocks>
__global__ void __launch_bounds__(kAttendThreads) attend_kernel(AttendArgs args) {
  constexpr int kAll = kBlocks * kColumns;
  KVE_SHARED(memory);
  const Shared shared = divide_shared(args, kAll, memory);
  const int part = static_cast<int>(blockIdx.x);
  const int kv_head = static_cast<int>(blockIdx.y);
  const int first_vector = static_cast<int>(blockIdx.z) * kAll;
  const int n_vectors = args.n_queries * args.group;
  const HeadRows& head = args.heads[kv_head];
  fill_table(head.k.format, shared.key_table);
  fill_table(head.v.format, shared.value_table);
  fill_queries<kBlocks>(args, kv_head, first_vector, shared.queries);
  __syncthreads();

  // What the block's queries see.
  const int last_vector = least(first_vector + kAll, n_vectors) - 1;
  const int end = least(head.n_rows, head.first_row + last_vector / args.group + 1);
  int begin = 0;
  if (args.window > 0) {
    begin = most_of(0, head.first_row + first_vector / args.group - args.window + 1);
  }
  const int sink_tiles = (head.sink_rows + kTileRows - 1) / kTileRows;
  const int tiles = sink_tiles + (head.n_rows - head.sink_rows + kTileRows - 1) / kTileRows;
  const int first_tile = part * args.part_tiles;
  const int end_tile = least(tiles, first_tile + args.part_tiles);

  WarpState<kBlocks, kValueBlocks> state;
  KVE_UNROLL
  for (int b = 0; b < kBlocks; ++b) {
    KVE_UNROLL
    for (int n = 0; n < 2; ++n) {
      const int vector = first_vector + b * kColumns + lane_id() % 4 * 2 + n;
      state.last[b][n] = head.first_row + vector / args.group;
      state.most[b][n] = -INFINITY;
      state.sum[b][n] = 0;
    }
    KVE_UNROLL
    for (int c = 0; c < kValueBlocks; ++c) {
      KVE_UNROLL
      for (int k = 0; k < 4; ++k) {
        KVE_UNROLL
        for (int n = 0; n < 4; ++n) state.out[b][c][k][n] = 0;
      }
    }
  }
  uint16_t* weights = shared.weights + warp_id() * kAll * kWeightStride;
  for (int tile = first_tile + warp_id(); tile < end_tile; tile += kAttendWarps) {
    const bool sinks = tile < sink_tiles;
    const int base = sinks ? tile * kTileRows : head.sink_rows + (tile - sink_tiles) * kTileRows;
    const int tile_end = least(kTileRows, (sinks ? head.sink_rows : head.n_rows) - base);
    if (base >= end || base + tile_end <= begin) continue;
    Run run{base, 0, 0};
    while (run.end < tile_end) {
      // Up to where one of the sides goes from its pages to its tail.
      run.first = run.end;
      run.end = tile_end;
      const int key_end = head.sink_rows + head.k.page_rows - base;
      const int value_end = head.sink_rows + head.v.page_rows - base;
      if (!sinks && key_end > run.first) run.end = least(run.end, key_end);
      if (!sinks && value_end > run.first) run.end = least(run.end, value_end);
      float scores[kBlocks][4][4] = {};
      find_scores<kBlocks>(args, head.k, rows_of(head.k, head.sink_rows, run), shared, scores);
      weigh(args, head, run, scores, weights, &state);
      __syncwarp();
      add_values(args, head.v, rows_of(head.v, head.sink_rows, run), run, shared, weights, &state);
      __syncwarp();
    }
  }
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

int64_t divide_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

int32_t parts_of(int64_t n_queries, int64_t most_rows) {
  if (n_queries > kFewRows) return 1;
  // Sinks end a tile of their own.
  return static_cast<int32_t>(divide_up(most_rows / kTileRows + 2, kPartTiles));
}

template <int kBlocks, int kValueBlocks>
void launch_attend(const AttendArgs& args, int32_t n_kv_heads) {
  constexpr int kAll = kBlocks * kColumns;
  const size_t bytes = shared_offsets(args, kAll).end;
  const GridSize grid{static_cast<unsigned>(args.n_parts), static_cast<unsigned>(n_kv_heads),
                      static_cast<unsigned>(divide_up(args.n_queries * args.group, kAll))};
  launch("attend", attend_kernel<kBlocks, kValueBlocks>, grid, kAttendThreads, bytes, args);
}

// Twice as many vectors to a block read rows half as often, as far as there are registers.
void launch_attend(const AttendArgs& args, int32_t n_kv_heads) {
  const bool few = args.n_queries * args.group <= kColumns;
  if (args.value_dim <= 64) {
    return few ? launch_attend<1, 1>(args, n_kv_heads) : launch_attend<2, 1>(args, n_kv_heads);
  }
  if (args.value_dim <= 128) {
    return few ? launch_attend<1, 2>(args, n_kv_heads) : launch_attend<2, 2>(args, n_kv_heads);
  }
  return launch_attend<1, 4>(args, n_kv_heads);
}

}  // namespace

size_t attend_scratch(const AttendParams& params, int64_t n_queries, int64_t most_rows) {
  const int32_t parts = parts_of(n_queries, most_rows);
  if (parts == 1) return 0;
  return static_cast<size_t>(n_queries * params.n_heads * parts) *
         static_cast<size_t>(params.value_dim + 2) * sizeof(float);
}

void attend(const AttendParams& params, const AttendJob& job, std::byte* scratch) {
  if (job.q.rows == 0) return;
  AttendArgs args{};
  args.q = job.q.data;
  args.q_stride = job.q.stride;
  args.heads = job.heads;
  args.out = job.out.data;
  args.out_stride = job.out.stride;
  args.log_sums = job.log_sums;
  args.n_queries = static_cast<int32_t>(job.q.rows);
  args.n_heads = params.n_heads;
  args.group = params.n_heads / params.n_kv_heads;
  args.key_dim = params.key_dim;
  args.value_dim = params.value_dim;
  args.n_parts = parts_of(job.q.rows, job.most_rows);
  args.part_tiles = args.n_parts == 1 ? INT32_MAX / 2 : kPartTiles;
  args.partials = args.n_parts == 1 ? nullptr : reinterpret_cast<float*>(scratch);
  args.window = params.window;
  args.scale = params.scale * kLog2E;
  args.softcap = params.softcap * kLog2E;
  args.inverse_softcap = params.softcap > 0 ? params.scale / params.softcap : 0;
  launch_attend(args, params.n_kv_heads);
  if (args.n_parts == 1) return;
  const GridSize grid{static_cast<unsigned>(args.n_queries * args.group),
                      static_cast<unsigned>(params.n_kv_heads), 1};
  launch("merge_parts", merge_parts_kernel, grid, kAttendThreads, 0, args);
}

}  // namespace kve::cuda
