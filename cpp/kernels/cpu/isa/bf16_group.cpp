// The inner loops of attention by the tile unit (simd/amx.h): products of a group of queries with a
// tile of rows, both of bf16 numbers (bf16_tiles.cpp), whose sums are floats. Weights are relative
// to the unit of their query, so that sums of values need no factor.
#include "kernels/cpu/isa/word_tiles.h"

#if defined(KVE_BF16_TILES)

#include <math.h>

#include "simd/amx.h"

namespace kve::KVE_ISA {

constexpr int64_t kLineStride = kWordLanes * static_cast<int64_t>(sizeof(float));
static_assert(kWordVectors == 3 && kLanes == kTileUnitRows);

// kBlocks times 16 rows with the 16 lanes at `lanes`: the products of n_steps times 16 pairs, where
// a row has row_words of them, become sums [row][kWordLanes], or are added there.
template <int kBlocks, bool kAdd>
static inline void multiply_lanes(const int32_t* rows, int64_t row_words, const int32_t* lanes,
                                  int64_t n_steps, float* sums) {
  static_assert(kBlocks == 2 || kBlocks == 4);
  constexpr int64_t kNext = kTileUnitRows * kWordLanes;
  if constexpr (kAdd) {
    load_tile<0>(sums, kLineStride);
    load_tile<1>(sums + kNext, kLineStride);
    if constexpr (kBlocks == 4) {
      load_tile<2>(sums + 2 * kNext, kLineStride);
      load_tile<3>(sums + 3 * kNext, kLineStride);
    }
  } else {
    zero_tile<0>();
    zero_tile<1>();
    if constexpr (kBlocks == 4) {
      zero_tile<2>();
      zero_tile<3>();
    }
  }
  const int64_t stride = row_words * static_cast<int64_t>(sizeof(int32_t));
  const int64_t block = kTileUnitRows * row_words;
  for (int64_t i = 0; i < n_steps; ++i, rows += kLanes, lanes += kLanes * kWordLanes) {
    load_tile<7>(lanes, kLineStride);
    load_tile<4>(rows, stride);
    dot_bf16<0, 4, 7>();
    load_tile<5>(rows + block, stride);
    dot_bf16<1, 5, 7>();
    if constexpr (kBlocks == 4) {
      load_tile<6>(rows + 2 * block, stride);
      dot_bf16<2, 6, 7>();
      load_tile<4>(rows + 3 * block, stride);
      dot_bf16<3, 4, 7>();
    }
  }
  store_tile<0>(sums, kLineStride);
  store_tile<1>(sums + kNext, kLineStride);
  if constexpr (kBlocks == 4) {
    store_tile<2>(sums + 2 * kNext, kLineStride);
    store_tile<3>(sums + 3 * kNext, kLineStride);
  }
}

// The same for any multiple of 32 rows and all vectors of the lanes.
template <bool kAdd>
static inline void multiply_group(const int32_t* rows, int64_t row_words, int64_t n_rows,
                                  const int32_t* lanes, int64_t n_steps, float* sums) {
  constexpr int64_t kMost = 4 * kTileUnitRows;
  for (int64_t v = 0; v < kWordLanes; v += kLanes) {
    for (int64_t r = 0; r < n_rows; r += kMost) {
      const int32_t* from = rows + r * row_words;
      float* to = sums + r * kWordLanes + v;
      if (n_rows - r >= kMost) {
        multiply_lanes<4, kAdd>(from, row_words, lanes + v, n_steps, to);
      } else {
        multiply_lanes<2, kAdd>(from, row_words, lanes + v, n_steps, to);
      }
    }
  }
}

void score_bf16(const WordTile& tile, int64_t first, int64_t end, const int32_t* queries,
                float* scores) {
  multiply_group<false>(tile.keys + first * tile.key_words, tile.key_words, end - first, queries,
                        tile.key_words / kLanes, scores + first * kWordLanes);
}

void add_bf16_values(const WordTile& tile, int64_t first, int64_t end, int64_t width,
                     const int32_t* weights, float* sums) {
  multiply_group<true>(tile.values + first / 2, kTile / 2, round_up(width, kBf16Rows),
                       weights + first / 2 * kWordLanes, (end - first) / kBf16Rows, sums);
}

// ---- lifts ----

constexpr int64_t kLiftBlock = kTileUnitRows * kLanes;  // words of 16 rows of a lift, of one step
constexpr int64_t kWordStride = kLanes * static_cast<int64_t>(sizeof(int32_t));

void put_lift(const WordTile& tile, int64_t n, int32_t* lift) {
  const int64_t words = tile.key_words;
  for (int64_t first = 0; first < round_up(n, kBf16Rows); first += kLanes) {
    for (int64_t w = 0; w < words; w += kLanes, lift += kLiftBlock) {
      F32 square[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        square[i] = first + i < n ? as_f32(load_i32(tile.keys + (first + i) * words + w)) : zero();
      }
      transpose(square);
      for (int i = 0; i < kLanes; ++i) store_i32(lift + i * kLanes, as_i32(square[i]));
    }
  }
}

namespace {

// 32 rows of coefficients in two planes, and 32 rows of a lift, whose second 16 are `next` words
// on.
struct LiftSquare {
  const int32_t* planes[2];
  int64_t row_words;
  const int32_t* lift;
  int64_t next;
  int64_t n_steps;
};

}  // namespace

static inline void lift_square(const LiftSquare& job, float* to, int64_t stride) {
  const int64_t row_bytes = job.row_words * static_cast<int64_t>(sizeof(int32_t));
  const int64_t to_bytes = stride * static_cast<int64_t>(sizeof(float));
  zero_tile<0>();
  zero_tile<1>();
  zero_tile<2>();
  zero_tile<3>();
  for (int64_t i = 0; i < job.n_steps; ++i) {
    load_tile<6>(job.lift + i * kLiftBlock, kWordStride);
    load_tile<7>(job.lift + i * kLiftBlock + job.next, kWordStride);
    for (const int32_t* plane : job.planes) {
      const int32_t* rows = plane + i * kLanes;
      load_tile<4>(rows, row_bytes);
      dot_bf16<0, 4, 6>();
      dot_bf16<1, 4, 7>();
      load_tile<5>(rows + kTileUnitRows * job.row_words, row_bytes);
      dot_bf16<2, 5, 6>();
      dot_bf16<3, 5, 7>();
    }
  }
  store_tile<0>(to, to_bytes);
  store_tile<1>(to + kLanes, to_bytes);
  store_tile<2>(to + kTileUnitRows * stride, to_bytes);
  store_tile<3>(to + kTileUnitRows * stride + kLanes, to_bytes);
}

void lift_bf16(const WordTile& tile, const int32_t* rest, int64_t width, const int32_t* lift,
               int64_t stride, float* rows) {
  const int64_t words = tile.key_words;
  const int64_t n_steps = round_up(width, 2 * kLanes) / (2 * kLanes);
  for (int64_t j = 0; j < stride; j += kBf16Rows) {
    for (int64_t r = 0; r < kTile; r += kBf16Rows) {
      lift_square({{tile.keys + r * words, rest + r * words},
                   words,
                   lift + j * words,
                   kLanes * words,
                   n_steps},
                  rows + r * stride + j, stride);
    }
  }
}

void add_lifted_bf16(const WordTile& tile, const int32_t* rest, int64_t n, int64_t width,
                     const int32_t* lanes, const int32_t* lane_rest, float* sums) {
  const int64_t words = tile.key_words;
  const int64_t rows = round_up(n, kBf16Rows);
  const int64_t n_steps = round_up(width, 2 * kLanes) / (2 * kLanes);
  multiply_group<true>(rest, words, rows, lanes, n_steps, sums);
  multiply_group<true>(tile.keys, words, rows, lane_rest, n_steps, sums);
  multiply_group<true>(tile.keys, words, rows, lanes, n_steps, sums);
}

// ---- weights ----

template <bool kHidden>
static inline void weigh(const float* scores, const float* units, int64_t first, int64_t end,
                         int32_t* weights, float* totals, float* top) {
  constexpr float kOne = 0x1p23f;
  F32 bias[kWordVectors];
  F32 total[kWordVectors];
  F32 most[kWordVectors];
  KVE_UNROLL(3)
  for (int v = 0; v < kWordVectors; ++v) {
    bias[v] = fma(load(units + v * kLanes), set(-kOne), set(127 * kOne));
    total[v] = zero();
    most[v] = set(-INFINITY);
  }
  for (int64_t r = first; r < end; r += 2) {
    KVE_UNROLL(3)
    for (int v = 0; v < kWordVectors; ++v) {
      const auto weight = [&](const float* at) {
        const F32 score = load(at);
        if constexpr (!kHidden) most[v] = max(most[v], score);
        const F32 x = fma(score, set(kOne), bias[v]);
        const F32 power = exp2_bits(x);
        return kHidden ? select(less(x, set(kOne)), zero(), power) : power;
      };
      const float* from = scores + r * kWordLanes + v * kLanes;
      const F32 low = weight(from);
      const F32 high = weight(from + kWordLanes);
      total[v] = total[v] + (low + high);
      store_i32(weights + r / 2 * kWordLanes + v * kLanes, round_bf16_pair(low, high));
    }
  }
  KVE_UNROLL(3)
  for (int v = 0; v < kWordVectors; ++v) {
    store(totals + v * kLanes, total[v]);
    if constexpr (!kHidden) store(top + v * kLanes, most[v]);
  }
}

void weigh_bf16(const float* scores, const float* units, int64_t first, int64_t end,
                int32_t* weights, float* totals, float* top) {
  weigh<false>(scores, units, first, end, weights, totals, top);
}

void weigh_seen_bf16(const float* scores, const float* units, int64_t first, int64_t end,
                     int32_t* weights, float* totals) {
  weigh<true>(scores, units, first, end, weights, totals, nullptr);
}

}  // namespace kve::KVE_ISA

#endif
