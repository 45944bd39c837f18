// Attention over pages of strips, a few pages at a time: scores of their keys, sums of their
// values. Scales and zeros never touch a code. What belongs to the dimension that a dot product
// adds up is multiplied into the query or the weight before that is rounded to int8; what belongs
// to a lane is multiplied into the integer result. Zeros are sums of their own, in f32.
//
// A code enters the integer product as a raw number, scale * (raw - bias) + (zero + scale * lift),
// where the bias is the middle of the raw numbers, so that the rounding of a query counts little.
//
// Several pages go through each step together, because the steps before the dot products are chains
// of dependent operations, which overlap only within a step.
#pragma once

#include "kernels/cpu/isa/strip_dots.h"

namespace kve::KVE_ISA {

constexpr int kRunPages = 4;
constexpr int64_t kStripTokens = 64;  // of a page
constexpr int64_t kRunTokens = kRunPages * kStripTokens;
// Between the scores, or weights, of two vectors: 16 may be written past the end of a run.
constexpr int64_t kRunStride = kRunTokens + 16;

struct StripRun {
  int32_t n_pages;  // at most kRunPages
  const std::byte* pages[kRunPages];
  int32_t rows[kRunPages];  // those past them mean nothing
  // What to prefetch meanwhile. While the codes of each page are read: as many codes of later pages
  // of either side. With each page the parameters of one of the next run, or null.
  CodesAhead codes_ahead[kRunPages];
  const std::byte* params_ahead[kRunPages];
  const StripSide* params_side[kRunPages];
};

// Adds a page with as many rows, and what a run prefetches while it reads its page number `from`.
static inline void put_page(StripRun* run, const std::byte* page, int32_t rows,
                            const StripRun& ahead, int32_t from) {
  const int32_t p = run->n_pages++;
  run->pages[p] = page;
  run->rows[p] = rows;
  run->codes_ahead[p] = ahead.codes_ahead[from];
  run->params_ahead[p] = ahead.params_ahead[from];
  run->params_side[p] = ahead.params_side[from];
}

// Constants of a side.
struct StripPlan {
  StripSide side;
  int64_t padded;     // the width rounded up to 16
  int64_t n_groups;   // of parameters: of tokens when they are per channel, else of channels
  int64_t n_params;   // of a page and, when they are per channel, of a group of tokens
  float level_unit;   // of the table's entries
  int8_t table[16];   // with dot4's bias
  float* bias;        // [padded]; all alike for values
  float* strip_bias;  // of every four columns
  float* lift;        // [padded]
  float* scale;       // [kRunPages][n_params]: of the current pages
  float* zero;        // [kRunPages][n_params]
  bool has_rest;      // whether zeros can be anything but 0
};

struct KeyStrips {
  StripPlan plan;
  int64_t n_vectors;
  // Parameters per channel: codes of some vectors and the pages of a run,
  // [kRunPages][kStripVectors] of code_stride; per token: of all vectors for all pages, [n_vectors
  // * planes][padded].
  int8_t* codes;
  int64_t code_stride;
  float* unit;       // of the codes: [kRunPages][kStripVectors] or [n_vectors][n_groups]
  float* rest;       // per channel: the same, what the integer product leaves out
  float* per_scale;  // [n_vectors][n_groups]: what a token's scale multiplies beside the codes
  float* per_zero;   // [n_vectors][n_groups]: what its zero multiplies
  int32_t* dots;     // [kStripVectors][64]
};
struct ValueStrips {
  StripPlan plan;
  // Codes of some vectors and the pages of a run, [kRunPages][n_groups][kStripVectors]; without
  // n_groups where parameters are per channel.
  int8_t* codes;  // [64] each
  float* unit;    // their units
  // Parameters per channel:
  float* total;   // [kRunPages][kStripVectors][n_groups], of the weights
  float* beside;  // the same: what a channel's scale multiplies beside the codes
  int32_t* dots;  // [padded / 16][kStripVectors][16]
};

// With constants filled in, in `memory` of so many bytes, 64-byte aligned.
size_t key_strips_bytes(const StripSide& side, int64_t n_vectors);
KeyStrips plan_keys(const StripSide& side, int64_t n_vectors, std::byte* memory);
size_t value_strips_bytes(const StripSide& side);
ValueStrips plan_values(const StripSide& side, std::byte* memory);
// The most bytes, and floats of sums, that a side of at most `width` coefficients needs.
size_t most_key_strips_bytes(int64_t width, int64_t n_vectors);
size_t most_value_strips_bytes(int64_t width);
int64_t most_strip_sum_floats(int64_t width);

// Rows of at least `padded` values, zero past the width; those of the p-th page of a run begin at
// vectors + p * page_stride.
struct StripQueries {
  const float* vectors;
  int64_t stride;
  int64_t page_stride;
};
// Before the first score_run with queries that are the same for all pages (page_stride 0).
void set_queries(const KeyStrips& keys, const StripQueries& queries);
// scores[v * kRunStride + p * 64 + t]
void score_run(const KeyStrips& keys, const StripQueries& queries, const StripRun& run,
               float* scores);

// Sums of values have parts that are the same for a whole group of channels, kept as lanes.
// sums: [padded] floats and then, when parameters are per token, [n_groups][kLanes].
int64_t strip_sum_floats(const StripSide& side);
// weights[v * kRunStride + p * 64 + t], zero past the rows of a page.
void add_run(const ValueStrips& values, const StripRun& run, int64_t n_vectors,
             const float* weights, float* sums, int64_t sum_stride);
// Adds the lanes of the groups to the first `width` sums of a vector.
void close_sums(const StripSide& side, float* sums);

}  // namespace kve::KVE_ISA
