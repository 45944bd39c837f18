// Values in a basis, in attention: what their coefficients add up to is lifted, once for each basis
// that a warp meets, by products of the tensor cores.
#pragma once

#include "kernels/cuda/attend_queries.h"

namespace kve::cuda {

// Sums of coefficients, as numbers of binary16 and what these miss: fragments of B.
struct SumPairs {
  Words2 most;
  Words2 rest;
};
__device__ __forceinline__ SumPairs split_sums(const float* from) {
  const Quad sums = load_quad(from);
  SumPairs out;
  out.most = {pack_halves(sums.value[0], sums.value[1]), pack_halves(sums.value[2], sums.value[3])};
  out.rest = {
      pack_halves(sums.value[0] - low_half(out.most.x), sums.value[1] - high_half(out.most.x)),
      pack_halves(sums.value[2] - low_half(out.most.y), sums.value[3] - high_half(out.most.y))};
  return out;
}

// Copies the sums, divided by those of the weights (which are returned), to [column][n].
template <int kBlocks, int kValueBlocks>
__device__ __forceinline__ void copy_sums(const WarpState<kBlocks, kValueBlocks>& state, int n,
                                          float (&totals)[kBlocks][2], float* to) {
  const int g = lane_id() / 4;
  const int i = lane_id() % 4;
  KVE_UNROLL
  for (int b = 0; b < kBlocks; ++b) {
    KVE_UNROLL
    for (int m = 0; m < 2; ++m) {
      float total = state.sum[b][m];
      KVE_UNROLL
      for (int mask = 4; mask < kWarpThreads; mask *= 2) total += shuffle_xor(total, mask);
      totals[b][m] = total;
      const float inverse = total > 0 ? 1 / total : 0.0f;
      float* column = to + (b * kColumns + 2 * i + m) * n;
      KVE_UNROLL
      for (int c = 0; c < kValueBlocks; ++c) {
        const int channel = 64 * c + g / 2 * 16 + g % 2 * 4;
        if (64 * c + g / 2 * 16 >= n) continue;
        KVE_UNROLL
        for (int k = 0; k < 4; ++k) {
          column[channel + k] = state.out[b][c][k][m] * inverse;
          column[channel + k + 8] = state.out[b][c][k][m + 2] * inverse;
        }
      }
    }
  }
}

// A row of the lift, all blocks side by side, from coefficient `c` on: zeros outside the block of
// value `d`.
__device__ __forceinline__ Words2 read_lift_block(const SideBasis& basis, int dim, int d, int c) {
  if (d >= dim || d / basis.block != c / basis.block_width) return {0, 0};
  return read_lift(basis, d % basis.block, c % basis.block_width);
}

// Turns sums of n coefficients into sums of values. memory: of the warp.
template <int kBlocks, int kValueBlocks>
__device__ __forceinline__ void lift_sums(const AttendArgs& args, const SideBasis& basis, int n,
                                          unsigned char* memory,
                                          WarpState<kBlocks, kValueBlocks>* state) {
  const int g = lane_id() / 4;
  const int i = lane_id() % 4;
  auto* coefficients = reinterpret_cast<float*>(memory);
  float totals[kBlocks][2];
  __syncwarp();  // others may still read what this writes over
  copy_sums(*state, n, totals, coefficients);
  __syncwarp();
  KVE_UNROLL
  for (int c = 0; c < kValueBlocks; ++c) {
    KVE_UNROLL
    for (int k = 0; k < 4; ++k) {
      const int d = 64 * c + g / 2 * 16 + g % 2 * 4 + k;
      float sums[kBlocks][4] = {};
      for (int j = 0; j < n / 16; ++j) {
        const Words2 first = read_lift_block(basis, args.value_dim, d, 16 * j + 4 * i);
        const Words2 second = read_lift_block(basis, args.value_dim, d + 8, 16 * j + 4 * i);
        const uint32_t a[4] = {first.x, second.x, first.y, second.y};
        KVE_UNROLL
        for (int b = 0; b < kBlocks; ++b) {
          const SumPairs from = split_sums(coefficients + (b * kColumns + g) * n + 16 * j + 4 * i);
          mma_f16(sums[b], a, from.most.x, from.most.y);
          mma_f16(sums[b], a, from.rest.x, from.rest.y);
        }
      }
      float factor[2] = {1, 1};
      if (basis.lift8 != nullptr) {
        factor[0] = d < args.value_dim ? basis.lift8_scale[d % basis.block] : 0.0f;
        factor[1] = d + 8 < args.value_dim ? basis.lift8_scale[(d + 8) % basis.block] : 0.0f;
      }
      KVE_UNROLL
      for (int b = 0; b < kBlocks; ++b) {
        KVE_UNROLL
        for (int m = 0; m < 4; ++m) {
          state->out[b][c][k][m] = sums[b][m] * totals[b][m % 2] * factor[m / 2];
        }
      }
    }
  }
  __syncwarp();
}

// Values that were lifted while coefficients in another basis are added up: each thread keeps its
// own.
template <int kBlocks>
struct Lifted {
  bool some = false;
  float most[kBlocks][2];  // that they are scaled to
};

template <int kBlocks, int kValueBlocks>
__device__ __forceinline__ void add_lifted(const float* memory, const Lifted<kBlocks>& lifted,
                                           WarpState<kBlocks, kValueBlocks>* state) {
  if (!lifted.some) return;
  int at = lane_id();
  KVE_UNROLL
  for (int b = 0; b < kBlocks; ++b) {
    float factor[2];
    KVE_UNROLL
    for (int m = 0; m < 2; ++m) {
      const float most = lifted.most[b][m];
      factor[m] = most == -INFINITY ? 0.0f : exp2f(most - state->most[b][m]);
    }
    KVE_UNROLL
    for (int c = 0; c < kValueBlocks; ++c) {
      KVE_UNROLL
      for (int k = 0; k < 4; ++k) {
        KVE_UNROLL
        for (int m = 0; m < 4; ++m, at += kWarpThreads) {
          state->out[b][c][k][m] += memory[at] * factor[m % 2];
        }
      }
    }
  }
}

// Puts the sums, which are of values, aside.
template <int kBlocks, int kValueBlocks>
__device__ __forceinline__ void keep_lifted(float* memory, Lifted<kBlocks>* lifted,
                                            WarpState<kBlocks, kValueBlocks>* state) {
  int at = lane_id();
  KVE_UNROLL
  for (int b = 0; b < kBlocks; ++b) {
    KVE_UNROLL
    for (int m = 0; m < 2; ++m) lifted->most[b][m] = state->most[b][m];
    KVE_UNROLL
    for (int c = 0; c < kValueBlocks; ++c) {
      KVE_UNROLL
      for (int k = 0; k < 4; ++k) {
        KVE_UNROLL
        for (int m = 0; m < 4; ++m, at += kWarpThreads) {
          memory[at] = state->out[b][c][k][m];
          state->out[b][c][k][m] = 0;
        }
      }
    }
  }
  lifted->some = true;
}

}  // namespace kve::cuda
