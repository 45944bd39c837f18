#include "kernels/cpu/isa/word_tiles.h"

#if defined(KVE_WORD_TILES)

#include <math.h>
#include <string.h>

namespace kve::KVE_ISA {

constexpr float kLeastSize = 0x1p-60f;  // of what has a scale other than that of zeros

static inline F32 load_part(const float* row, int64_t d, int64_t width) {
  return d + kLanes <= width ? load(row + d) : load_n(row + d, width - d);
}

// ---- keys and queries ----

// The sums of the squares of kLanes rows.
static inline F32 square_sums(const float* rows, int64_t stride, int64_t width) {
  F32 sums[kLanes];
  KVE_UNROLL(16)
  for (int i = 0; i < kLanes; ++i) {
    sums[i] = zero();
    for (int64_t d = 0; d < width; d += kLanes) {
      const F32 x = load(rows + i * stride + d);
      sums[i] = fma(x, x, sums[i]);
    }
  }
  transpose(sums);
  F32 total = sums[0];
  KVE_UNROLL(16)
  for (int i = 1; i < kLanes; ++i) total = total + sums[i];
  return total;
}

// One over the step of the codes of a row, and the step, from the sum of the squares.
static inline float key_step(float squares, float* scale) {
  const float norm = sqrtf(squares);
  const bool none = !(norm >= kLeastSize && norm <= 1e30f);
  *scale = none ? 0.0f : norm * (1 / kWordKeyNorm);
  return none ? 0.0f : kWordKeyNorm / norm;
}
static inline uint64_t broken_row(float squares, int64_t row) {
  return squares - squares == 0 ? 0 : uint64_t{1} << row;
}

// `width` rounded up to lanes: the rows are zero there.
static inline void put_row(const float* row, float inverse, int64_t width, int32_t* words) {
  auto* to = reinterpret_cast<int16_t*>(words);
  const F32 factor = set(inverse);
  for (int64_t d = 0; d < width; d += kLanes) store_words(to + d, to_i32(load(row + d) * factor));
}

void quantize_key_rows(const float* rows, int64_t stride, int width, int32_t n, WordTile* tile) {
  tile->broken_keys = 0;
  const int64_t padded = 2 * tile->key_words;
  for (int32_t first = 0; first < n; first += kLanes) {
    float squares[kLanes];
    store(squares, square_sums(rows + first * stride, stride, round_up(width, kLanes)));
    for (int32_t r = first; r < least(first + kLanes, n); ++r) {
      const float inverse = key_step(squares[r - first], tile->key_scale + r);
      tile->broken_keys |= broken_row(squares[r - first], r);
      put_row(rows + r * stride, inverse, padded, tile->keys + r * tile->key_words);
    }
  }
}

float row_step(const float* row, int64_t width, float* scale) {
  F32 squares = zero();
  for (int64_t d = 0; d < width; d += kLanes) {
    const F32 x = load_part(row, d, width);
    squares = fma(x, x, squares);
  }
  const float total = sum(squares);
  const float inverse = key_step(total, scale);
  if (total - total != 0) *scale = NAN;
  return inverse;
}

void put_row_words(const float* row, int64_t width, float inverse, int64_t key_words,
                   int32_t* words) {
  auto* to = reinterpret_cast<int16_t*>(words);
  const F32 factor = set(inverse);
  for (int64_t d = 0; d < 2 * key_words; d += kLanes) {
    const F32 x = d < width ? load_part(row, d, width) : zero();
    store_words(to + d, to_i32(x * factor));
  }
}

// kLanes words of kLanes rows, whose keys are columns.
static inline void put_columns(const float* columns, int64_t channel, int64_t width, F32 inverse,
                               int64_t words, int32_t* to) {
  F32 square[kLanes];
  KVE_UNROLL(16)
  for (int i = 0; i < kLanes; ++i) {
    const int64_t d = channel + 2 * i;
    const float* column = columns + d * kTile;
    const F32 low = d < width ? load(column) * inverse : zero();
    const F32 high = d + 1 < width ? load(column + kTile) * inverse : zero();
    square[i] = as_f32(pair_words(to_i32(low), to_i32(high)));
  }
  transpose(square);
  KVE_UNROLL(16)
  for (int i = 0; i < kLanes; ++i) store_i32(to + i * words, as_i32(square[i]));
}

void quantize_key_columns(const float* columns, int width, int32_t n, WordTile* tile) {
  tile->broken_keys = 0;
  for (int32_t first = 0; first < n; first += kLanes) {
    F32 total = zero();
    for (int64_t d = 0; d < width; ++d) {
      const F32 x = load(columns + d * kTile + first);
      total = fma(x, x, total);
    }
    float squares[kLanes];
    float inverse[kLanes];
    store(squares, total);
    for (int i = 0; i < kLanes; ++i) {
      inverse[i] = key_step(squares[i], tile->key_scale + first + i);
      if (first + i < n) tile->broken_keys |= broken_row(squares[i], first + i);
    }
    for (int64_t w = 0; w < tile->key_words; w += kLanes) {
      put_columns(columns + first, 2 * w, width, load(inverse), tile->key_words,
                  tile->keys + first * tile->key_words + w);
    }
  }
}

// One over the step of the codes of numbers of so large a norm and so large a number, and the step.
static inline float word_step(float norm, float largest, float* scale) {
  if (norm - norm != 0) {
    *scale = NAN;
    return 0;
  }
  const float by_norm = kWordQueryNorm / norm;
  const float by_top = 32767 / largest;
  const float inverse = by_norm < by_top ? by_norm : by_top;
  const bool none = norm < kLeastSize;
  *scale = none ? 0.0f : 1 / inverse;
  return none ? 0.0f : inverse;
}

static float query_step(const float* query, int64_t width, float* scale) {
  F32 squares = zero();
  F32 largest = zero();
  for (int64_t d = 0; d < width; d += kLanes) {
    const F32 x = load(query + d);
    squares = fma(x, x, squares);
    largest = max(largest, abs(x));
  }
  return word_step(sqrtf(sum(squares)), max_of(largest), scale);
}

void quantize_queries(const float* queries, int64_t stride, int64_t n, int64_t key_words,
                      int64_t lanes, int32_t* codes, int32_t* words, float* scales) {
  const int64_t padded = round_up(n, lanes);
  for (int64_t first = 0; first < padded; first += kLanes) {
    for (int64_t i = 0; i < kLanes; ++i) {
      const int64_t v = first + i;
      int32_t* row = codes + i * key_words;
      memset(row, 0, sizeof(int32_t) * static_cast<size_t>(key_words));
      scales[v] = 0;
      if (v >= n) continue;
      const float inverse = query_step(queries + v * stride, stride, scales + v);
      put_row(queries + v * stride, inverse, stride, row);
    }
    int32_t* to = words + first / lanes * key_words * lanes + first % lanes;
    for (int64_t w = 0; w < key_words; w += kLanes) {
      F32 square[kLanes];
      for (int i = 0; i < kLanes; ++i) square[i] = as_f32(load_i32(codes + i * key_words + w));
      transpose(square);
      for (int i = 0; i < kLanes; ++i) store_i32(to + (w + i) * lanes, as_i32(square[i]));
    }
  }
}

void quantize_lanes(const float* rows, int64_t words, int32_t* to, float* scale) {
  for (int64_t v = 0; v < kWordLanes; v += kLanes) {
    F32 squares = zero();
    F32 largest = zero();
    for (int64_t c = 0; c < 2 * words; ++c) {
      const F32 x = load(rows + c * kWordLanes + v);
      squares = fma(x, x, squares);
      largest = max(largest, abs(x));
    }
    alignas(64) float inverses[kLanes];
    alignas(64) float norms[kLanes];
    alignas(64) float tops[kLanes];
    store(norms, squares);
    store(tops, largest);
    for (int i = 0; i < kLanes; ++i) {
      inverses[i] = word_step(sqrtf(norms[i]), tops[i], scale + v + i);
    }
    const F32 inverse = load(inverses);
    for (int64_t w = 0; w < words; ++w) {
      const float* from = rows + 2 * w * kWordLanes + v;
      const I32 low = to_i32(load(from) * inverse);
      const I32 high = to_i32(load(from + kWordLanes) * inverse);
      store_i32(to + w * kWordLanes + v, pair_words(low, high));
    }
  }
}

// ---- values ----

// The largest magnitudes of kLanes rows; *broken becomes other than zero where a number is none.
static inline F32 tops(const float* rows, int64_t stride, int64_t width, F32* broken) {
  F32 top[kLanes];
  KVE_UNROLL(16)
  for (int i = 0; i < kLanes; ++i) {
    top[i] = zero();
    for (int64_t d = 0; d < width; d += kLanes) {
      const F32 x = load_part(rows + i * stride, d, width);
      top[i] = max(top[i], abs(x));
      *broken = fma(x, zero(), *broken);
    }
  }
  transpose(top);
  F32 most = top[0];
  KVE_UNROLL(16)
  for (int i = 1; i < kLanes; ++i) most = max(most, top[i]);
  return most;
}

static uint64_t broken_rows(const float* rows, int64_t stride, int64_t width, int32_t n) {
  uint64_t bits = 0;
  for (int32_t r = 0; r < n; ++r) {
    for (int64_t d = 0; d < width; ++d) {
      const float x = rows[r * stride + d];
      if (x - x != 0) bits |= uint64_t{1} << r;
    }
  }
  return bits;
}

void quantize_value_rows(const float* rows, int64_t stride, int width, int32_t n, WordTile* tile) {
  F32 broken = zero();
  for (int32_t first = 0; first < n; first += kLanes) {
    const F32 top = tops(rows + first * stride, stride, width, &broken);
    // The power of two above the largest, so that the logarithm of the scale is known.
    const F32 size = max(set(kLeastSize), min(set(0x1p100f), top));
    const F32 power = to_f32(shift_right(as_i32(size), 23) - set_i32(126));
    constexpr float kLog = 11.9996477f;  // of kWordValue
    store(tile->value_log + first, power - set(kLog));
    store(tile->value_inverse + first,
          scale_pow2(set(static_cast<float>(kWordValue)), zero() - power));
  }
  const float any_broken = sum(broken);
  tile->broken_values = any_broken == 0 ? 0 : broken_rows(rows, stride, width, n);
  for (int32_t r = 0; r < n; r += 2) {
    const F32 low = set(tile->value_inverse[r]);
    const F32 high = set(tile->value_inverse[r + 1]);
    const float* row = rows + r * stride;
    int32_t* to = tile->values + r / 2 * tile->value_words;
    for (int64_t d = 0; d < width; d += kLanes) {
      const I32 a = to_i32(load_part(row, d, width) * low);
      const I32 b = to_i32(load_part(row + stride, d, width) * high);
      store_i32(to + d, pair_words(a, b));
    }
  }
}

}  // namespace kve::KVE_ISA

#endif
