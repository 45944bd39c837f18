// Queries and tiles of rows in int16, for attention of many queries (attend_words.cpp). Lanes are
// queries, so that nothing is ever added up across lanes.
//
// A row has a scale of its own, and its codes depend on nothing else: what a query gets does not
// depend on later rows. Scales keep all sums within 31 bits: the norms of the codes of a key and of
// a query multiply to less than 2^31 (Cauchy and Schwarz), and kTile products of weights up to
// kWordWeight with values up to kWordValue add up to less.
#pragma once

#include "kernels/cpu/isa/attend.h"

#if defined(KVE_WORD_TILES)

#include "simd/words.h"

// Where the tile unit is there, attention of many queries multiplies bf16 numbers, which lie in the
// places of int16 ones, and so do its lifts.
#if defined(KVE_ISA_AMX)
#define KVE_BF16_TILES 1
#endif

namespace kve::KVE_ISA {

#if defined(KVE_BF16_TILES)
constexpr bool kBf16Tiles = true;
#else
constexpr bool kBf16Tiles = false;
#endif
constexpr int kBf16Rows = 32;  // of one product

constexpr int kWordVectors = 3;                    // registers of queries in a group
constexpr int kWordLanes = kWordVectors * kLanes;  // queries of a group
constexpr int kWordRows = 8;                       // rows, or channels, of one product
constexpr int kLiftVectors = 4;                    // registers of rows of a lift
constexpr int kWordLiftRows = 4;                   // at a time
constexpr int kLiftLanes = kLiftVectors * kLanes;
constexpr float kWordKeyNorm = 32767;
constexpr float kWordQueryNorm = 65000;
constexpr int64_t kWordValue = 4095;
constexpr int kWordWeightBits = 13;
static_assert((kTile * kWordValue) << kWordWeightBits < int64_t{1} << 31);

struct WordTile {
  int64_t key_words;     // between rows of keys
  int64_t value_words;   // between pairs of rows of values
  int32_t* keys;         // [kTile][key_words]: pairs of channels
  float* key_scale;      // [kTile]
  int32_t* values;       // [kTile / 2][value_words]: pairs of rows
  float* value_log;      // [kTile]: the base 2 logarithm of the scale of the row
  float* value_inverse;  // [kTile]: one over the scale
  bool bf16;             // instead of int16: values are [value_words][kTile / 2], scales are one
  // Rows with infinities or numbers that are none in a key or a value; their codes mean nothing.
  uint64_t broken_keys;
  uint64_t broken_values;
};
static inline WordTile carve_word_tile(Carver& carver, int key_dim, int value_dim) {
  WordTile tile = {};
  tile.key_words = round_up(key_dim, 2 * kLanes) / 2;
  tile.value_words = round_up(value_dim, 2 * kLanes);
  tile.keys = carver.take<int32_t>(kTile * tile.key_words);
  tile.key_scale = carver.take<float>(kTile);
  tile.values = carver.take<int32_t>(kTile / 2 * tile.value_words);
  tile.value_log = carver.take<float>(kTile);
  tile.value_inverse = carver.take<float>(kTile);
  return tile;
}

// The rows that queries see, one query to a lane, [n_vectors rounded up to groups]: from row
// `first` of the cache to row `last`.
struct SeenRows {
  float* first;
  float* last;
};
// Those of query vector v, or, past the last of them, none. Returns the row of the query itself.
static inline float set_seen(const AttendChunk& chunk, int64_t v, int64_t n_vectors,
                             const SeenRows& seen) {
  const auto token = static_cast<int32_t>(v / chunk.n_group);
  const int32_t own = v < n_vectors ? chunk.query_pos + token - chunk.first_pos : -1;
  seen.first[v] = chunk.window > 0 ? static_cast<float>(own - chunk.window + 1) : 0.0f;
  seen.last[v] = static_cast<float>(own);
  return seen.last[v];
}
// What linear biases go by: of a query vector, and the place of a row, counted as queries are
// there.
static inline float slope_of(const AttendChunk& chunk, int64_t v) {
  return chunk.alibi == nullptr ? 0.0f : chunk.alibi[v % chunk.n_group] * kLog2E;
}
static inline float position_of(const AttendChunk& chunk, int32_t row) {
  const int32_t* positions = chunk.k.positions;
  return static_cast<float>(
      positions == nullptr ? row : positions[row] - chunk.dropped - chunk.first_pos);
}
// `shown` in the lanes from `lane` on that see the row, `hidden` in the others.
static inline F32 hide(const SeenRows& seen, int64_t lane, float row, F32 hidden, F32 shown) {
  const F32 out = select(less(load(seen.last + lane), set(row)), hidden, shown);
  return select(less(set(row), load(seen.first + lane)), hidden, out);
}
static inline bool is_dead(const AttendChunk& chunk, int32_t row) {
  return chunk.dead != nullptr && (chunk.dead[row / 64] >> (row % 64) & 1) != 0;
}

// The keys of the tile, from rows [n][stride] or columns [width][kTile]; rows past the n-th mean
// nothing.
void quantize_key_rows(const float* rows, int64_t stride, int width, int32_t n, WordTile* tile);
void quantize_key_columns(const float* columns, int width, int32_t n, WordTile* tile);
// The values, from rows [n][stride].
void quantize_value_rows(const float* rows, int64_t stride, int width, int32_t n, WordTile* tile);

#if defined(KVE_BF16_TILES)
// The same of tiles of bf16 (bf16_tiles.cpp). Broken rows are zeros, values past the n-th as well.
void round_key_rows(const float* rows, int64_t stride, int width, int32_t n, WordTile* tile);
void round_key_columns(const float* columns, int width, int32_t n, WordTile* tile);
void round_value_rows(const float* rows, int64_t stride, int width, int32_t n, WordTile* tile);
// As quantize_queries(), in groups of kWordLanes; scales are one, or none of a broken query.
void round_queries(const float* queries, int64_t stride, int64_t n, int64_t key_words,
                   int32_t* codes, int32_t* words, float* scales);

// bf16_group.cpp. Scores [row][kWordLanes] of the rows [first, end), multiples of kBf16Rows.
void score_bf16(const WordTile& tile, int64_t first, int64_t end, const int32_t* queries,
                float* scores);
// Their weights 2^(score - unit) as pairs of rows, the sums of these, and the largest scores, with
// which weights mean nothing that exceed their unit by more than kUnitSlack.
void weigh_bf16(const float* scores, const float* units, int64_t first, int64_t end,
                int32_t* weights, float* totals, float* top);
// The same where some scores are minus infinity and the units are large enough.
void weigh_seen_bf16(const float* scores, const float* units, int64_t first, int64_t end,
                     int32_t* weights, float* totals);
// Adds the rows' values, `width` channels, times their weights to sums [channel][kWordLanes].
void add_bf16_values(const WordTile& tile, int64_t first, int64_t end, int64_t width,
                     const int32_t* weights, float* sums);
// What numbers have beyond a pair of bf16 numbers that they were rounded to, as such a pair.
static inline I32 round_rest(I32 pair, F32 low, F32 high) {
  const I32 upper = set_i32(static_cast<int32_t>(0xffff0000));
  return round_bf16_pair(low - as_f32(shift_left(pair, 16)), high - as_f32(pair & upper));
}
// What rows [n][stride] have beyond the keys of `tile` that they were rounded to, in their places.
void round_key_rests(const float* rows, int64_t stride, int width, int32_t n, const WordTile& tile,
                     int32_t* rest);
// The numbers of a group, rows [2 * words][kWordLanes], to pairs of rows as weights are in products
// of keys, [words][kWordLanes], and what they have beyond.
void round_lanes(const float* rows, int64_t words, int32_t* to, int32_t* rest);
// Adds the keys of `tile` and their rests, n rows of `width` numbers, times such numbers to sums
// [row][kWordLanes], all in floats but for the product of the rests.
void add_lifted_bf16(const WordTile& tile, const int32_t* rest, int64_t n, int64_t width,
                     const int32_t* lanes, const int32_t* lane_rest, float* sums);
// Rows of a lift, n <= kTile keys of `tile`, as lift_bf16() wants them; the rest of the last
// kBf16Rows is zero.
void put_lift(const WordTile& tile, int64_t n, int32_t* lift);
// rows[r][j] = the `width` coefficients r of the tile, and what they have beyond, . row j of a
// lift, for kTile rows and `stride` rows of the lift, a multiple of kBf16Rows.
void lift_bf16(const WordTile& tile, const int32_t* rest, int64_t width, const int32_t* lift,
               int64_t stride, float* rows);
#endif

// What a tile is: either of the above.
static inline void put_key_rows(const float* rows, int64_t stride, int width, int32_t n,
                                WordTile* tile) {
#if defined(KVE_BF16_TILES)
  if (tile->bf16) return round_key_rows(rows, stride, width, n, tile);
#endif
  quantize_key_rows(rows, stride, width, n, tile);
}
static inline void put_key_columns(const float* columns, int width, int32_t n, WordTile* tile) {
#if defined(KVE_BF16_TILES)
  if (tile->bf16) return round_key_columns(columns, width, n, tile);
#endif
  quantize_key_columns(columns, width, n, tile);
}
static inline void put_value_rows(const float* rows, int64_t stride, int width, int32_t n,
                                  WordTile* tile) {
#if defined(KVE_BF16_TILES)
  if (tile->bf16) return round_value_rows(rows, stride, width, n, tile);
#endif
  quantize_value_rows(rows, stride, width, n, tile);
}

// Queries [n][stride] to words [group][key_words][lanes], a group being `lanes` of them, and a
// scale each, which is not a number where the query has infinities or such; the rest of the last
// group becomes zero. The memory at `codes` holds kLanes * key_words words.
void quantize_queries(const float* queries, int64_t stride, int64_t n, int64_t key_words,
                      int64_t lanes, int32_t* codes, int32_t* words, float* scales);

// 2^(x / 2^23 - 127) to 1.1e-4, at least 2^-126, which is what no number gives; x < 2^31. The
// mantissa of the result is a polynomial of x's, which stays within [1, 2).
static inline F32 exp2_bits(F32 x) {
  const I32 mantissa = set_i32(0x7fffff);
  const I32 bits = to_i32(max(x, set(0x1p23f)));
  const F32 g = as_f32(blend_bits(mantissa, bits, set_i32(0x3f800000)));
  F32 p = set(7.823818177e-2f);
  p = fma(p, g, set(-8.362265304e-3f));
  p = fma(p, g, set(4.774165452e-1f));
  p = fma(p, g, set(4.527090490e-1f));
  return as_f32(blend_bits(mantissa, as_i32(p), bits));
}

// word_products.cpp. Scores [row][kWordLanes] of kWordRows rows of the tile, from `row` on, with a
// group of queries of `words` words and their scales; `raise` [row] is added. `top` becomes the
// largest of each query.
void score_rows(const WordTile& tile, int64_t row, int64_t words, const int32_t* queries,
                const float* scale, const float* raise, float* scores, float* top);
// Scores of the rows [first, end), both even, to weights of pairs of rows, [row / 2][kWordLanes],
// of which the largest of a query is 2^kWordWeightBits; `totals` are the sums of weights times
// `inverse`, of their row.
void weigh_rows(const float* scores, const float* top, const float* inverse, int64_t first,
                int64_t end, int32_t* weights, float* totals);
// The same; `kept` receives the weights as pairs of bf16 numbers.
void weigh_and_keep_rows(const float* scores, const float* top, const float* inverse, int64_t first,
                         int64_t end, int32_t* weights, int32_t* kept, float* totals);
// Adds what was kept of a tile, times the factor of its query, to a sum for each of kTile rows.
void add_kept(const int32_t* kept, const float* factors, float* sums);
// One over the scale of a single row as the keys' are, which rotations leave as it is, and the
// scale: none where the row has infinities or such. Its words, zero past the width.
float row_step(const float* row, int64_t width, float* scale);
void put_row_words(const float* row, int64_t width, float inverse, int64_t key_words,
                   int32_t* words);
// n rows from their coefficients in `tile`, which holds a multiple of kWordLiftRows: rows[r][j] =
// coefficients r . row j of a lift, for j < width, a multiple of kLanes. The lift is quantized as
// queries are, in groups of kLiftLanes.
void lift_rows(const WordTile& tile, int64_t n, int64_t words, const int32_t* lift,
               const float* scale, int64_t width, float* rows, int64_t stride);
// The numbers of a group as words, from rows [2 * words][kWordLanes], with a scale each; as
// quantize_queries(), but that a number is a lane.
void quantize_lanes(const float* rows, int64_t words, int32_t* to, float* scale);
// Adds kWordRows rows of a lift in `tile`, from `row` on, times the numbers of a group, to sums
// [row][kWordLanes].
void add_lifted(const WordTile& tile, int64_t row, int64_t words, const int32_t* lanes,
                const float* scale, float* sums);
// Adds kWordRows channels of values, times the weights of `pairs` pairs of rows, times `factor`, to
// sums [channel][kWordLanes].
void add_channels(const int32_t* values, int64_t value_words, const int32_t* weights, int64_t pairs,
                  const float* factor, float* sums);

// Queries in groups of kWordLanes as such a tile's products want them, and what they have for
// scales.
static inline void put_queries(const float* queries, int64_t stride, int64_t n, int64_t key_words,
                               int32_t* codes, int32_t* words, float* scales) {
#if defined(KVE_BF16_TILES)
  round_queries(queries, stride, n, key_words, codes, words, scales);
#else
  quantize_queries(queries, stride, n, key_words, kWordLanes, codes, words, scales);
#endif
}

}  // namespace kve::KVE_ISA

#endif
