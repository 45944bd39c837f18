// What one warp does with one tile of rows in attention: scores, weights, weighted values.
#pragma once

#include "kernels/cuda/attend_rows.h"

namespace kve::cuda {

// State of a warp: scores and sums of kBlocks blocks of columns, as fragments of C.
template <int kBlocks, int kValueBlocks>
struct WarpState {
  VectorView view[kBlocks][2];  // of columns 2i, 2i + 1
  float most[kBlocks][2];       // of columns 2i, 2i + 1
  float sum[kBlocks][2];        // of this thread's rows
  float out[kBlocks][kValueBlocks][4][4];
};

// kBits: as with_bits() gave it.
template <int kBits, int kBlocks>
__device__ __forceinline__ void find_scores_of(const RunRows& rows, const Words2* queries,
                                               float (&scores)[kBlocks][4][4]) {
  const int g = lane_id() / 4;
  const int i = lane_id() % 4;
  for (int j = 0; j < rows.n_channels / 16; ++j) {
    const FragmentPlace place{g / 2, g % 2, g / 2 * 16 + g % 2 * 4, 16 * j + 4 * i};
    Fragments a;
    if (kBits > 0 || rows.coded.page != nullptr) {
      decode_cell<kBits>(rows.coded, rows.coded.first_channel / 4 + 4 * j + i, place, &a);
    } else {
      key_fragments(rows.floats, place, &a);
    }
    KVE_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      const Words2 q = queries[(j * kBlocks + b) * kWarpThreads + lane_id()];
      KVE_UNROLL
      for (int k = 0; k < 4; ++k) mma_f16(scores[b][k], a[k], q.x, q.y);
    }
  }
}

// scores = keys * queries: [product][word of C], rows being tokens. queries: as Shared::queries.
template <int kBlocks>
__device__ __forceinline__ void find_scores(const RunRows& rows, const Words2* queries,
                                            float (&scores)[kBlocks][4][4]) {
  with_bits(rows.coded, [&](auto bits) {
    find_scores_of<decltype(bits)::value, kBlocks>(rows, queries, scores);
  });
}

template <int kBits, int kBlocks, int kValueBlocks>
__device__ __forceinline__ void add_values_of(const RunRows& rows, const Run& run,
                                              const uint16_t* weights,
                                              WarpState<kBlocks, kValueBlocks>* state) {
  const int g = lane_id() / 4;
  const int i = lane_id() % 4;
  const bool ragged = run.first > 0 || run.end < kTileRows;
  for (int t = 0; t < kTileRows / 16; ++t) {
    if (16 * t + 16 <= run.first || 16 * t >= run.end) continue;
    const int token = 16 * t + 4 * i;
    Words2 weight[kBlocks];
    KVE_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      weight[b] = load_words2(weights + (b * kColumns + g) * kWeightStride + token);
    }
    KVE_UNROLL
    for (int c = 0; c < kValueBlocks; ++c) {
      const int block = 4 * c + g / 2;
      const FragmentPlace place{i, g % 2, 16 * block + g % 2 * 4, token};
      Fragments a{};
      if (16 * block < rows.n_channels) {
        if (kBits > 0 || rows.coded.page != nullptr) {
          decode_cell<kBits>(rows.coded, 4 * (rows.coded.first_channel / 16 + block) + t, place,
                             &a);
        } else {
          value_fragments(rows.floats, place, &a);
        }
      }
      if (ragged && (kBits > 0 || rows.coded.page != nullptr)) {
        // What lies in unused rows may be anything, and NaN times 0 is NaN.
        uint32_t keep[2];
        KVE_UNROLL
        for (int n = 0; n < 2; ++n) {
          const int low = token + n;
          const int high = token + n + 2;
          keep[n] = (low >= run.first && low < run.end ? 0xffffu : 0u) |
                    (high >= run.first && high < run.end ? 0xffff0000u : 0u);
        }
        KVE_UNROLL
        for (int k = 0; k < 4; ++k) {
          KVE_UNROLL
          for (int w = 0; w < 4; ++w) a[k][w] &= keep[w / 2];
        }
      }
      KVE_UNROLL
      for (int b = 0; b < kBlocks; ++b) {
        KVE_UNROLL
        for (int k = 0; k < 4; ++k) mma_f16(state->out[b][c][k], a[k], weight[b].x, weight[b].y);
      }
    }
  }
}

// out += values^T * weights, rows being channels.
template <int kBlocks, int kValueBlocks>
__device__ __forceinline__ void add_values(const RunRows& rows, const Run& run,
                                           const uint16_t* weights,
                                           WarpState<kBlocks, kValueBlocks>* state) {
  with_bits(rows.coded, [&](auto bits) {
    add_values_of<decltype(bits)::value, kBlocks, kValueBlocks>(rows, run, weights, state);
  });
}

// Scores to weights: updates the maxima and sums, scales `out` to the new maxima and writes the
// weights, the tokens of a step of four in the order 0, 2, 1, 3. `factor` belongs to the scores.
template <int kBlocks, int kValueBlocks>
__device__ __forceinline__ void weigh(const AttendArgs& args, const HeadRows& head, const Run& run,
                                      float factor, float (&scores)[kBlocks][4][4],
                                      uint16_t* weights, WarpState<kBlocks, kValueBlocks>* state) {
  const int g = lane_id() / 4;
  const int i = lane_id() % 4;
  const int token = g / 2 * 16 + g % 2 * 4;
  KVE_UNROLL
  for (int b = 0; b < kBlocks; ++b) {
    float most[2] = {state->most[b][0], state->most[b][1]};
    KVE_UNROLL
    for (int k = 0; k < 4; ++k) {
      KVE_UNROLL
      for (int n = 0; n < 4; ++n) {
        scores[b][k][n] = score_of(args, head, run, state->view[b][n % 2], token + k + n / 2 * 8,
                                   scores[b][k][n], factor);
        most[n % 2] = fmaxf(most[n % 2], scores[b][k][n]);
      }
    }
    KVE_UNROLL
    for (int n = 0; n < 2; ++n) {
      KVE_UNROLL
      for (int mask = 4; mask < kWarpThreads; mask *= 2) {
        most[n] = fmaxf(most[n], shuffle_xor(most[n], mask));
      }
      const float base = most[n] == -INFINITY ? 0.0f : most[n];
      const float change = exp2f(state->most[b][n] - base);
      state->most[b][n] = most[n];
      float sum = 0;
      float weight[2][4];  // of the first and the second row of products
      KVE_UNROLL
      for (int k = 0; k < 4; ++k) {
        KVE_UNROLL
        for (int m = 0; m < 2; ++m) {
          weight[m][k] = exp2f(scores[b][k][2 * m + n] - base + kLift);
          sum += weight[m][k];
        }
      }
      state->sum[b][n] = state->sum[b][n] * change + sum;
      KVE_UNROLL
      for (int c = 0; c < kValueBlocks; ++c) {
        KVE_UNROLL
        for (int k = 0; k < 4; ++k) {
          state->out[b][c][k][n] *= change;
          state->out[b][c][k][n + 2] *= change;
        }
      }
      uint16_t* to = weights + (b * kColumns + 2 * i + n) * kWeightStride + token;
      KVE_UNROLL
      for (int m = 0; m < 2; ++m) {
        *reinterpret_cast<Words2*>(to + 8 * m) = {pack_halves(weight[m][0], weight[m][2]),
                                                  pack_halves(weight[m][1], weight[m][3])};
      }
    }
  }
}

}  // namespace kve::cuda
