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

// Registers 0 to 5 are sums: of 16 rows with three vectors of queries, then of the next 16.
static inline void zero_sums() {
  zero_tile<0>();
  zero_tile<1>();
  zero_tile<2>();
  zero_tile<3>();
  zero_tile<4>();
  zero_tile<5>();
}
static inline void load_sums(const float* sums) {
  const float* next = sums + kTileUnitRows * kWordLanes;
  load_tile<0>(sums, kLineStride);
  load_tile<1>(sums + kLanes, kLineStride);
  load_tile<2>(sums + 2 * kLanes, kLineStride);
  load_tile<3>(next, kLineStride);
  load_tile<4>(next + kLanes, kLineStride);
  load_tile<5>(next + 2 * kLanes, kLineStride);
}
static inline void store_sums(float* sums) {
  float* next = sums + kTileUnitRows * kWordLanes;
  store_tile<0>(sums, kLineStride);
  store_tile<1>(sums + kLanes, kLineStride);
  store_tile<2>(sums + 2 * kLanes, kLineStride);
  store_tile<3>(next, kLineStride);
  store_tile<4>(next + kLanes, kLineStride);
  store_tile<5>(next + 2 * kLanes, kLineStride);
}
// 16 pairs of 32 rows, `row_words` words apart, times those of the lanes.
static inline void add_products(const int32_t* rows, int64_t row_words, const int32_t* lanes) {
  const int64_t stride = row_words * static_cast<int64_t>(sizeof(int32_t));
  load_tile<6>(rows, stride);
  load_tile<7>(lanes, kLineStride);
  dot_bf16<0, 6, 7>();
  load_tile<7>(lanes + kLanes, kLineStride);
  dot_bf16<1, 6, 7>();
  load_tile<7>(lanes + 2 * kLanes, kLineStride);
  dot_bf16<2, 6, 7>();
  load_tile<6>(rows + kTileUnitRows * row_words, stride);
  dot_bf16<5, 6, 7>();
  load_tile<7>(lanes + kLanes, kLineStride);
  dot_bf16<4, 6, 7>();
  load_tile<7>(lanes, kLineStride);
  dot_bf16<3, 6, 7>();
}

void score_bf16(const WordTile& tile, int64_t first, int64_t end, const int32_t* queries,
                float* scores, float* top) {
  for (int64_t r = first; r < end; r += kBf16Rows) {
    zero_sums();
    for (int64_t w = 0; w < tile.key_words; w += kLanes) {
      add_products(tile.keys + r * tile.key_words + w, tile.key_words, queries + w * kWordLanes);
    }
    store_sums(scores + r * kWordLanes);
  }
  for (int64_t v = 0; v < kWordLanes; v += kLanes) {
    F32 most[2] = {set(-INFINITY), set(-INFINITY)};
    for (int64_t r = first; r < end; r += 2) {
      most[0] = max(most[0], load(scores + r * kWordLanes + v));
      most[1] = max(most[1], load(scores + (r + 1) * kWordLanes + v));
    }
    store(top + v, max(most[0], most[1]));
  }
}

template <bool kHidden>
static inline void weigh(const float* scores, const float* units, int64_t first, int64_t end,
                         int32_t* weights, float* totals) {
  constexpr float kOne = 0x1p23f;
  F32 bias[kWordVectors];
  F32 total[kWordVectors];
  KVE_UNROLL(3)
  for (int v = 0; v < kWordVectors; ++v) {
    bias[v] = fma(load(units + v * kLanes), set(-kOne), set(127 * kOne));
    total[v] = zero();
  }
  for (int64_t r = first; r < end; r += 2) {
    KVE_UNROLL(3)
    for (int v = 0; v < kWordVectors; ++v) {
      const auto weight = [&](const float* score) {
        const F32 x = fma(load(score), set(kOne), bias[v]);
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
  for (int v = 0; v < kWordVectors; ++v) store(totals + v * kLanes, total[v]);
}

void weigh_bf16(const float* scores, const float* units, int64_t first, int64_t end, bool hidden,
                int32_t* weights, float* totals) {
  hidden ? weigh<true>(scores, units, first, end, weights, totals)
         : weigh<false>(scores, units, first, end, weights, totals);
}

void add_bf16_values(const WordTile& tile, int64_t first, int64_t end, int64_t width,
                     const int32_t* weights, float* sums) {
  constexpr int64_t kPairs = kTile / 2;
  for (int64_t c = 0; c < width; c += 2 * kTileUnitRows) {
    load_sums(sums + c * kWordLanes);
    for (int64_t pair = first / 2; pair < end / 2; pair += kLanes) {
      add_products(tile.values + c * kPairs + pair, kPairs, weights + pair * kWordLanes);
    }
    store_sums(sums + c * kWordLanes);
  }
}

}  // namespace kve::KVE_ISA

#endif
