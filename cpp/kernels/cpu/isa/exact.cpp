// f32 inputs against weights of any type, decoded to the f32 values that the type defines.
#include <string.h>

#include "kernels/cpu/isa/isa.h"
#include "kernels/cpu/isa/unpack.h"
#include "kernels/few_rows.h"

namespace kve::KVE_ISA {

constexpr int kDepth = 256;  // columns decoded at a time; a multiple of every type's block
constexpr int kFewTokens = kFewRows;

// scale * code is exact in binary32 for the types of unpack.h (at most 11 + 8 + 5 bits), so a fused
// multiply-add gives the value their format defines.
template <class Block>
static void decode_blocks(const std::byte* row, int64_t first, int64_t n, float* dst) {
  CodeGroup groups[kDepth / 32];
  unpack_blocks<Block>(row, first / 32, n / 32, groups);
  for (int64_t h = 0; h < n / 16; ++h) {
    const CodeGroup& group = groups[h / 2];
    const F32 scale = set(group.scale[h % 2]);
    const F32 min = set(group.min[h % 2]);
    for (int64_t i = 0; i < 16; i += kLanes) {
      const F32 code = load_i8(group.codes + h % 2 * 16 + i);
      store(dst + 16 * h + i, Block::kHasMin ? fma(code, scale, min) : code * scale);
    }
  }
}

// Values [first, first + n) of a row; `first` is a multiple of kDepth.
static void decode(const WeightFormat& format, const std::byte* row, int64_t first, int64_t n,
                   float* dst) {
  switch (format.type) {
    case WeightType::f32:
      memcpy(dst, row + 4 * first, static_cast<size_t>(n) * 4);
      return;
    case WeightType::q4_0:
      return decode_blocks<BlockQ4_0>(row, first, n, dst);
    case WeightType::q4_1:
      return decode_blocks<BlockQ4_1>(row, first, n, dst);
    case WeightType::q5_0:
      return decode_blocks<BlockQ5_0>(row, first, n, dst);
    case WeightType::q5_1:
      return decode_blocks<BlockQ5_1>(row, first, n, dst);
    case WeightType::q8_0:
      return decode_blocks<BlockQ8_0>(row, first, n, dst);
    case WeightType::q4_k:
      return decode_blocks<BlockQ4_K>(row, first, n, dst);
    case WeightType::q5_k:
      return decode_blocks<BlockQ5_K>(row, first, n, dst);
    case WeightType::q6_k:
      return decode_blocks<BlockQ6_K>(row, first, n, dst);
    default:
      break;
  }
  uint16_t halves[kDepth];
  const std::byte* from = row + first / format.block_values * format.block_bytes;
  if (format.type == WeightType::f16) {
    memcpy(halves, from, static_cast<size_t>(n) * 2);
    half_to_f32(halves, dst, n);
  } else if (format.type == WeightType::bf16) {
    memcpy(halves, from, static_cast<size_t>(n) * 2);
    for (int64_t i = 0; i < n; ++i) dst[i] = bf16_to_float(halves[i]);
  } else {
    format.decode(from, dst, n);
  }
}

static float dot(const float* a, const float* b, int64_t n) {
  F32 acc[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      acc[j] = fma(load(a + i + j * kLanes), load(b + i + j * kLanes), acc[j]);
    }
  }
  for (; i < n; i += kLanes) {
    const int64_t width = least(n - i, kLanes);
    acc[0] = fma(load_n(a + i, width), load_n(b + i, width), acc[0]);
  }
  return sum((acc[0] + acc[1]) + (acc[2] + acc[3]));
}

static void few_tokens(const MatmulChunk& chunk, const float* x, int64_t x_stride) {
  alignas(64) float values[kDepth];
  for (int64_t r = chunk.first_row; r < chunk.first_row + chunk.n_rows; ++r) {
    const std::byte* row = chunk.weight + static_cast<size_t>(r) * chunk.row_bytes;
    float total[kFewTokens] = {};
    for (int64_t k = 0; k < chunk.cols; k += kDepth) {
      const int64_t depth = least(chunk.cols - k, kDepth);
      decode(*chunk.format, row, k, depth, values);
      for (int64_t t = 0; t < chunk.n_tokens; ++t) {
        total[t] += dot(x + t * x_stride + k, values, depth);
      }
    }
    for (int64_t t = 0; t < chunk.n_tokens; ++t) {
      const float bias = chunk.bias == nullptr ? 0.0f : chunk.bias[r];
      chunk.y[t * chunk.y_stride + r] = total[t] + bias;
    }
  }
}

size_t exact_scratch(int64_t /*cols*/) {
  return static_cast<size_t>(kDepth * (kGemmCols + kLanes)) * sizeof(float);
}

// Columns [k, k + depth) of kGemmCols rows, transposed to block [depth][kGemmCols].
static void decode_tile(const MatmulChunk& chunk, int64_t first_row, int64_t n_rows, int64_t k,
                        int64_t depth, float* rows, float* block) {
  for (int64_t v = 0; v < kGemmCols; v += kLanes) {
    memset(rows, 0, sizeof(float) * kLanes * kDepth);
    for (int64_t r = v; r < least(v + kLanes, n_rows); ++r) {
      const size_t row = static_cast<size_t>(first_row + r);
      decode(*chunk.format, chunk.weight + row * chunk.row_bytes, k, depth,
             rows + (r - v) * kDepth);
    }
    for (int64_t c = 0; c < depth; c += kLanes) {
      F32 square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) square[i] = load(rows + i * kDepth + c);
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(block + (c + i) * kGemmCols + v, square[i]);
    }
  }
}

static void add_bias(const MatmulChunk& chunk, int64_t first_row, int64_t n_rows) {
  if (chunk.bias == nullptr) return;
  for (int64_t t = 0; t < chunk.n_tokens; ++t) {
    add(chunk.y + t * chunk.y_stride + first_row, chunk.bias + first_row, n_rows);
  }
}

void exact(const MatmulChunk& chunk, const float* x, int64_t x_stride) {
  if (chunk.n_tokens <= kFewTokens) return few_tokens(chunk, x, x_stride);
  Carver carver(chunk.scratch);
  float* block = carver.take<float>(kDepth * kGemmCols);
  float* rows = carver.take<float>(kDepth * kLanes);
  const int64_t end = chunk.first_row + chunk.n_rows;
  for (int64_t r = chunk.first_row; r < end; r += kGemmCols) {
    const int64_t n = least(end - r, kGemmCols);
    for (int64_t k = 0; k < chunk.cols; k += kDepth) {
      const int64_t depth = least(chunk.cols - k, kDepth);
      decode_tile(chunk, r, n, k, depth, rows, block);
      gemm(chunk.n_tokens, n, depth, x + k, x_stride, block, kGemmCols, chunk.y + r, chunk.y_stride,
           k > 0);
    }
    add_bias(chunk, r, n);
  }
}

}  // namespace kve::KVE_ISA
