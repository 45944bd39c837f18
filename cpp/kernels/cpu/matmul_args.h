// What the kernels of matrix products get (kernels.h).
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "formats/weight_formats.h"

namespace kve {

// Rows [first_row, first_row + n_rows) of a weight times activations:
// y[t * y_stride + r] = sum_k w[r, k] x[t, k] + bias[r], for whole-matrix row numbers r.
struct MatmulChunk {
  const WeightFormat* format;
  const std::byte* weight;  // row 0
  size_t row_bytes;
  const std::byte* tiles;  // the same weights interleaved, or null
  int64_t cols;
  int64_t first_row;
  int64_t n_rows;
  const float* bias;  // or null
  float* y;
  int64_t y_stride;
  int64_t n_tokens;
  std::byte* scratch;  // of the size that the table states
  int64_t y_row = 0;   // whose results are column 0 of y: matmat only
};

// kGatedRows rows of two weights, gate and up, times activations: what they become is a group of
// columns of the packs, of `cols` columns, that the next product reads. Both chunks have the same
// rows (some groups of them where PackedProducts::most_rows allows) and input; y is not theirs to
// state.
inline constexpr int64_t kGatedRows = 32;
struct GatedChunk {
  MatmulChunk gate;
  MatmulChunk up;
  int activation;
  int64_t cols;
  std::byte* packs;
  std::byte* scratch;
};

// Tiles [first_tile, first_tile + n_tiles) of weights to be interleaved (isa/interleaved.h).
struct InterleaveChunk {
  WeightType type;
  const std::byte* weight;  // row 0
  size_t row_bytes;
  int64_t rows;
  int64_t cols;
  int64_t first_tile;
  int64_t n_tiles;
  std::byte* tiles;  // tile 0
};

// Activations of the integer kernels, as quantize_rows wrote them.
struct QuantizedInput {
  const std::byte* data;
  int planes;  // 1: int8; 2: int8 and its int8 remainder
};

}  // namespace kve
