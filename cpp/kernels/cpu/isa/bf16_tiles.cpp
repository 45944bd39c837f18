// Queries and tiles of rows as bf16 numbers, for attention by the tile unit (bf16_group.cpp). In
// the places of int16 numbers, but that pairs of channels are (d, d + 16) of 32, and that values
// lie channel by channel.
#include "kernels/cpu/isa/word_tiles.h"

#if defined(KVE_BF16_TILES)

#include <math.h>
#include <string.h>

namespace kve::KVE_ISA {

// kLanes values, zero from `width` on.
static inline F32 load_part(const float* row, int64_t d, int64_t width) {
  if (d + kLanes <= width) return load(row + d);
  return d < width ? load_n(row + d, width - d) : zero();
}
// 32 of them as words.
static inline I32 round_32(const float* row, int64_t d, int64_t width) {
  return round_bf16_pair(load_part(row, d, width), load_part(row, d + kLanes, width));
}

// Zero if all numbers are finite.
static inline float non_finite(const float* row, int64_t width) {
  F32 sum_of = zero();
  for (int64_t d = 0; d < width; d += kLanes) {
    sum_of = fma(load_n(row + d, least(width - d, kLanes)), zero(), sum_of);
  }
  return sum(sum_of);
}

// Words of a row, zeros where it has infinities or such; false then.
static inline bool round_row(const float* row, int64_t width, int64_t words, int32_t* to) {
  if (non_finite(row, width) != 0) {
    memset(to, 0, static_cast<size_t>(words) * sizeof(int32_t));
    return false;
  }
  for (int64_t w = 0; w < words; w += kLanes) store_i32(to + w, round_32(row, 2 * w, width));
  return true;
}

void round_key_rows(const float* rows, int64_t stride, int width, int32_t n, WordTile* tile) {
  tile->broken_keys = 0;
  for (int32_t r = 0; r < n; ++r) {
    const bool whole =
        round_row(rows + r * stride, width, tile->key_words, tile->keys + r * tile->key_words);
    if (!whole) tile->broken_keys |= uint64_t{1} << r;
  }
}

void round_key_rests(const float* rows, int64_t stride, int width, int32_t n, const WordTile& tile,
                     int32_t* rest) {
  for (int32_t r = 0; r < n; ++r) {
    const float* row = rows + r * stride;
    for (int64_t w = 0; w < tile.key_words; w += kLanes) {
      const int64_t at = r * tile.key_words + w;
      store_i32(rest + at, round_rest(load_i32(tile.keys + at), load_part(row, 2 * w, width),
                                      load_part(row, 2 * w + kLanes, width)));
    }
  }
}

void round_lanes(const float* rows, int64_t words, int32_t* to, int32_t* rest) {
  for (int64_t first = 0; first < words; first += kLanes, rows += kLanes * kWordLanes) {
    for (int64_t i = 0; i < kLanes; ++i, rows += kWordLanes) {
      for (int64_t v = 0; v < kWordLanes; v += kLanes) {
        const F32 low = load(rows + v);
        const F32 high = load(rows + kLanes * kWordLanes + v);
        const I32 pair = round_bf16_pair(low, high);
        const int64_t at = (first + i) * kWordLanes + v;
        store_i32(to + at, pair);
        store_i32(rest + at, round_rest(pair, low, high));
      }
    }
  }
}

// 16 words of 16 rows, whose keys are columns.
static inline void turn_columns(const float* columns, int64_t d, int64_t width, int64_t words,
                                int32_t* to) {
  F32 square[kLanes];
  KVE_UNROLL(16)
  for (int i = 0; i < kLanes; ++i) {
    const F32 low = d + i < width ? load(columns + (d + i) * kTile) : zero();
    const F32 high = d + i + kLanes < width ? load(columns + (d + i + kLanes) * kTile) : zero();
    square[i] = as_f32(round_bf16_pair(low, high));
  }
  transpose(square);
  KVE_UNROLL(16)
  for (int i = 0; i < kLanes; ++i) store_i32(to + i * words, as_i32(square[i]));
}

void round_key_columns(const float* columns, int width, int32_t n, WordTile* tile) {
  tile->broken_keys = 0;
  for (int32_t first = 0; first < n; first += kLanes) {
    F32 bad = zero();
    for (int64_t d = 0; d < width; ++d) bad = fma(load(columns + d * kTile + first), zero(), bad);
    float sums[kLanes];
    store(sums, bad);
    int32_t* to = tile->keys + first * tile->key_words;
    for (int64_t w = 0; w < tile->key_words; w += kLanes) {
      turn_columns(columns + first, 2 * w, width, tile->key_words, to + w);
    }
    for (int64_t r = 0; r < least(kLanes, n - first); ++r) {
      if (sums[r] == 0) continue;
      tile->broken_keys |= uint64_t{1} << (first + r);
      memset(to + r * tile->key_words, 0, static_cast<size_t>(tile->key_words) * sizeof(int32_t));
    }
  }
}

void round_value_rows(const float* rows, int64_t stride, int width, int32_t n, WordTile* tile) {
  tile->broken_values = 0;
  for (int32_t r = 0; r < n; ++r) {
    if (non_finite(rows + r * stride, width) != 0) tile->broken_values |= uint64_t{1} << r;
  }
  const uint64_t broken = tile->broken_values;
  // Those past the last count nothing, but have to be numbers.
  const auto part = [&](int32_t r, int64_t c) {
    if (r >= n || c >= width || (broken >> r & 1) != 0) return zero();
    return load_n(rows + r * stride + c, least(width - c, kLanes));
  };
  for (int32_t first = 0; first < kTile; first += 2 * kLanes) {
    for (int64_t c = 0; c < round_up(width, 2 * kLanes); c += kLanes) {
      F32 square[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const int32_t r = first + 2 * i;
        square[i] = as_f32(round_bf16_pair(part(r, c), part(r + 1, c)));
      }
      transpose(square);
      int32_t* to = tile->values + c * (kTile / 2) + first / 2;
      for (int i = 0; i < kLanes; ++i) store_i32(to + i * (kTile / 2), as_i32(square[i]));
    }
  }
  for (int32_t r = 0; r < kTile; r += kLanes) {
    store(tile->value_log + r, zero());
    store(tile->value_inverse + r, set(1.0f));
  }
}

void round_queries(const float* queries, int64_t stride, int64_t n, int64_t key_words,
                   int32_t* codes, int32_t* words, float* scales) {
  for (int64_t first = 0; first < round_up(n, kWordLanes); first += kLanes) {
    for (int64_t i = 0; i < kLanes; ++i) {
      const int64_t v = first + i;
      int32_t* row = codes + i * key_words;
      if (v >= n) {
        memset(row, 0, static_cast<size_t>(key_words) * sizeof(int32_t));
        scales[v] = 0;
      } else {
        scales[v] = round_row(queries + v * stride, stride, key_words, row) ? 1.0f : NAN;
      }
    }
    int32_t* to = words + first / kWordLanes * key_words * kWordLanes + first % kWordLanes;
    for (int64_t w = 0; w < key_words; w += kLanes) {
      F32 square[kLanes];
      for (int i = 0; i < kLanes; ++i) square[i] = as_f32(load_i32(codes + i * key_words + w));
      transpose(square);
      for (int i = 0; i < kLanes; ++i) store_i32(to + (w + i) * kWordLanes, as_i32(square[i]));
    }
  }
}

}  // namespace kve::KVE_ISA

#endif
