// The inner loops of attention in int16. Each is a function of its own: GCC 12 spills the sums of a
// product that shares a function with other vector code.
#include "kernels/cpu/isa/word_tiles.h"

#if defined(KVE_WORD_TILES)

namespace kve::KVE_ISA {

// ---- products ----

// kRows rows of `a` (words apart) times the vectors of a group at `b`.
template <int kRows, int kVectors>
struct WordSums {
  I32 at[kRows][kVectors];
};
template <int kRows, int kVectors>
__attribute__((always_inline)) static inline void multiply_words(const int32_t* a, int64_t a_row,
                                                                 int64_t a_step, const int32_t* b,
                                                                 int64_t n,
                                                                 WordSums<kRows, kVectors>* sums) {
  KVE_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    KVE_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) sums->at[r][v] = set_i32(0);
  }
  for (int64_t i = 0; i < n; ++i, a += a_step, b += kVectors * kLanes) {
    I32 x[kVectors];
    KVE_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) x[v] = load_i32(b + v * kLanes);
    KVE_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      const I32 y = broadcast_i32(a + r * a_row);
      KVE_UNROLL(4)
      for (int v = 0; v < kVectors; ++v) {
        sums->at[r][v] = dot2_words(sums->at[r][v], y, x[v]);
      }
    }
  }
}

void score_rows(const WordTile& tile, int64_t row, int64_t words, const int32_t* queries,
                const float* scale, const float* raise, float* scores, float* top) {
  WordSums<kWordRows, kWordVectors> sums;
  multiply_words(tile.keys + row * tile.key_words, tile.key_words, 1, queries, words, &sums);
  F32 most[kWordVectors];
  F32 factor[kWordVectors];
  KVE_UNROLL(3)
  for (int v = 0; v < kWordVectors; ++v) {
    most[v] = load(top + v * kLanes);
    factor[v] = load(scale + v * kLanes);
  }
  KVE_UNROLL(8)
  for (int r = 0; r < kWordRows; ++r) {
    const F32 step = set(tile.key_scale[row + r]);
    const F32 more = set(raise[row + r]);
    KVE_UNROLL(3)
    for (int v = 0; v < kWordVectors; ++v) {
      const F32 score = fma(to_f32(sums.at[r][v]) * step, factor[v], more);
      store(scores + (row + r) * kWordLanes + v * kLanes, score);
      most[v] = max(most[v], score);
    }
  }
  KVE_UNROLL(3)
  for (int v = 0; v < kWordVectors; ++v) store(top + v * kLanes, most[v]);
}

void add_channels(const int32_t* values, int64_t value_words, const int32_t* weights, int64_t pairs,
                  const float* factor, float* sums) {
  WordSums<kWordRows, kWordVectors> dots;
  multiply_words(values, 1, value_words, weights, pairs, &dots);
  KVE_UNROLL(3)
  for (int v = 0; v < kWordVectors; ++v) {
    const F32 f = load(factor + v * kLanes);
    KVE_UNROLL(8)
    for (int c = 0; c < kWordRows; ++c) {
      float* sum = sums + c * kWordLanes + v * kLanes;
      store(sum, fma(to_f32(dots.at[c][v]), f, load(sum)));
    }
  }
}

// Rows [row, row + rows) of a tile with one group of rows of a lift; `vectors` of the registers of
// each are stored.
__attribute__((noinline)) static void lift_group(const WordTile& tile, int64_t row, int64_t rows,
                                                 int64_t words, const int32_t* lift,
                                                 const float* scale, int64_t vectors, float* to,
                                                 int64_t stride) {
  WordSums<kWordLiftRows, kLiftVectors> sums;
  multiply_words(tile.keys + row * tile.key_words, tile.key_words, 1, lift, words, &sums);
  F32 factor[kLiftVectors];
  KVE_UNROLL(4)
  for (int v = 0; v < kLiftVectors; ++v) factor[v] = load(scale + v * kLanes);
  KVE_UNROLL(4)
  for (int r = 0; r < kWordLiftRows; ++r) {
    if (r >= rows) break;
    const F32 step = set(tile.key_scale[row + r]);
    KVE_UNROLL(4)
    for (int v = 0; v < kLiftVectors; ++v) {
      if (v < vectors)
        store(to + r * stride + v * kLanes, to_f32(sums.at[r][v]) * step * factor[v]);
    }
  }
}

void lift_rows(const WordTile& tile, int64_t n, int64_t words, const int32_t* lift,
               const float* scale, int64_t width, float* rows, int64_t stride) {
  for (int64_t j = 0; j < width; j += kLiftLanes) {
    const int64_t vectors = least(kLiftVectors, (width - j) / kLanes);
    for (int64_t r = 0; r < n; r += kWordLiftRows) {
      lift_group(tile, r, n - r, words, lift + j * tile.key_words, scale + j, vectors,
                 rows + r * stride + j, stride);
    }
  }
}

void add_lifted(const WordTile& tile, int64_t row, int64_t words, const int32_t* lanes,
                const float* scale, float* sums) {
  WordSums<kWordRows, kWordVectors> dots;
  multiply_words(tile.keys + row * tile.key_words, tile.key_words, 1, lanes, words, &dots);
  KVE_UNROLL(3)
  for (int v = 0; v < kWordVectors; ++v) {
    const F32 f = load(scale + v * kLanes);
    KVE_UNROLL(8)
    for (int r = 0; r < kWordRows; ++r) {
      float* sum = sums + r * kWordLanes + v * kLanes;
      store(sum, fma(to_f32(dots.at[r][v]) * set(tile.key_scale[row + r]), f, load(sum)));
    }
  }
}

// ---- weights ----

template <bool kKeep>
static inline void weigh(const float* scores, const float* top, const float* inverse, int64_t first,
                         int64_t end, int32_t* weights, int32_t* kept, float* totals) {
  constexpr float kOne = 0x1p23f;
  F32 bias[kWordVectors];
  F32 total[kWordVectors];
  KVE_UNROLL(3)
  for (int v = 0; v < kWordVectors; ++v) {
    bias[v] = fma(load(top + v * kLanes), set(-kOne), set((127 + kWordWeightBits) * kOne));
    // Rounded towards less, so that no weight exceeds the largest.
    bias[v] = bias[v] - abs(bias[v]) * set(0x1p-22f);
    total[v] = zero();
  }
  for (int64_t r = first; r < end; r += 2) {
    const F32 low_inverse = set(inverse[r]);
    const F32 high_inverse = set(inverse[r + 1]);
    KVE_UNROLL(3)
    for (int v = 0; v < kWordVectors; ++v) {
      const int64_t at = r / 2 * kWordLanes + v * kLanes;
      const float* from = scores + r * kWordLanes + v * kLanes;
      const F32 low = exp2_bits(fma(load(from), set(kOne), bias[v]));
      const F32 high = exp2_bits(fma(load(from + kWordLanes), set(kOne), bias[v]));
      total[v] = fma(low, low_inverse, total[v]);
      total[v] = fma(high, high_inverse, total[v]);
      store_i32(weights + at, pair_words(to_i32(low), to_i32(high)));
      if constexpr (kKeep) store_i32(kept + at, round_bf16_pair(low, high));
    }
  }
  KVE_UNROLL(3)
  for (int v = 0; v < kWordVectors; ++v) store(totals + v * kLanes, total[v]);
}

void weigh_rows(const float* scores, const float* top, const float* inverse, int64_t first,
                int64_t end, int32_t* weights, float* totals) {
  weigh<false>(scores, top, inverse, first, end, weights, nullptr, totals);
}

void weigh_and_keep_rows(const float* scores, const float* top, const float* inverse, int64_t first,
                         int64_t end, int32_t* weights, int32_t* kept, float* totals) {
  weigh<true>(scores, top, inverse, first, end, weights, kept, totals);
}

void add_kept(const int32_t* kept, const float* factors, float* sums) {
  F32 factor[kWordVectors];
  KVE_UNROLL(3)
  for (int v = 0; v < kWordVectors; ++v) factor[v] = load(factors + v * kLanes);
  const I32 upper = set_i32(static_cast<int32_t>(0xffff0000));
  for (int64_t first = 0; first < kTile; first += kLanes) {
    F32 square[kLanes];
    KVE_UNROLL(8)
    for (int i = 0; i < kLanes; i += 2, kept += kWordLanes) {
      F32 low = zero();
      F32 high = zero();
      KVE_UNROLL(3)
      for (int v = 0; v < kWordVectors; ++v) {
        const I32 pair = load_i32(kept + v * kLanes);
        low = fma(as_f32(shift_left(pair, 16)), factor[v], low);
        high = fma(as_f32(pair & upper), factor[v], high);
      }
      square[i] = low;
      square[i + 1] = high;
    }
    transpose(square);
    F32 total = load(sums + first);
    KVE_UNROLL(16)
    for (int i = 0; i < kLanes; ++i) total = total + square[i];
    store(sums + first, total);
  }
}

}  // namespace kve::KVE_ISA

#endif
