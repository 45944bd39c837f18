#include "kernels/cuda/matmul.h"

#include <math.h>

#include "kernels/cuda/packed_weight.h"
#include "kernels/few_rows.h"

namespace kve::cuda {
namespace {

constexpr int kPlaneRatio = 254;  // units of the first plane in those of the second
constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpThreads;
constexpr int kTileTokens = 64;  // of a block of the tensor cores' product
constexpr int kTokenBlocks = kTileTokens / 8;
constexpr int kTileRows = 16 * kWarps;

struct CodeArgs {
  const float* x;
  int64_t x_stride;
  CodedInputs to;
  int64_t groups;  // of a row
};

// A warp to a group of 32 values, a thread to a value.
__global__ void code_kernel(CodeArgs args) {
  const int64_t n = int64_t{blockIdx.x} * kWarps + warp_id();
  const int64_t all = args.to.rows * args.groups;
  const int64_t group = n < all ? n : all - 1;  // every warp takes part in its shuffles
  const int64_t row = group / args.groups;
  const int64_t at = group * kGroupValues + lane_id();
  const float x = args.x[row * args.x_stride + group % args.groups * kGroupValues + lane_id()];
  const float top = warp_max(fabsf(x));
  const float poison = warp_sum(x - x);  // NaN of a NaN or an infinity
  const bool tiny = top < 1e-35f;        // its inverse would overflow
  const float inverse = tiny ? 0.0f : 127.0f / top;
  const float code = rintf(x * inverse);
  float scale = (tiny ? 0.0f : top / 127.0f) + poison;
  float units = code;
  float rest = 0;
  if (args.to.remainders != nullptr) {
    rest = rintf(fminf(127.0f, fmaxf(-127.0f, (x * inverse - code) * kPlaneRatio)));
    units = code * kPlaneRatio + rest;
    scale /= kPlaneRatio;
  }
  const float sum = warp_sum(units);
  if (n >= all) return;
  args.to.codes[at] = static_cast<int8_t>(code);
  if (args.to.remainders != nullptr) args.to.remainders[at] = static_cast<int8_t>(rest);
  if (lane_id() == 0) {
    args.to.scales[group] = scale;
    args.to.sums[group] = scale * sum;
  }
}

struct ProductArgs {
  CodedInputs x;
  const float* plain;  // inputs that are not coded
  int64_t plain_stride;
  const std::byte* weight;
  int64_t row_bytes;  // of weights that are floats
  WeightType type;
  int64_t rows;  // of the weight
  int64_t cols;
  const float* bias;
  float* y;
  int64_t y_stride;
};

__device__ __forceinline__ void write_output(const ProductArgs& args, int64_t token, int64_t row,
                                             float sum) {
  args.y[token * args.y_stride + row] = args.bias == nullptr ? sum : sum + args.bias[row];
}

__device__ __forceinline__ int dot_words(const uint32_t (&a)[4], Words4 b, int sum) {
  sum = dot4(a[0], b.x, sum);
  sum = dot4(a[1], b.y, sum);
  sum = dot4(a[2], b.z, sum);
  return dot4(a[3], b.w, sum);
}

// Few tokens: a warp to a row of weights, its threads to groups of 32 values in turn.
template <WeightType kType, int kTokens>
__global__ void __launch_bounds__(kThreads) dot_kernel(ProductArgs args) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + warp_id();
  if (row >= args.rows) return;  // a whole warp
  const int64_t groups = args.cols / kGroupValues;
  const PackedRow at = packed_row(packed_layout(kType), groups);
  const std::byte* weights = args.weight + row * at.end;
  float sums[kTokens] = {};
  for (int64_t g = lane_id(); g < groups; g += kWarpThreads) {
    const GroupWords words = load_group<kType>(weights, at, g);
    const GroupScales scales = load_scales<kType>(weights, at, g);
    KVE_UNROLL
    for (int t = 0; t < kTokens; ++t) {
      if (t >= args.x.rows) break;
      const int64_t from = t * args.cols + g * kGroupValues;
      int first = dot_words(words.low, load_words4(args.x.codes + from), 0);
      int second = dot_words(words.high, load_words4(args.x.codes + from + 16), 0);
      if (args.x.remainders != nullptr) {
        first = dot_words(words.low, load_words4(args.x.remainders + from), first * kPlaneRatio);
        second =
            dot_words(words.high, load_words4(args.x.remainders + from + 16), second * kPlaneRatio);
      }
      const float scale = args.x.scales[t * groups + g];
      if (kType == WeightType::q6_k) {
        sums[t] += scale * (scales.first * static_cast<float>(first) +
                            scales.second * static_cast<float>(second));
      } else {
        sums[t] += scale * scales.first * static_cast<float>(first + second) +
                   scales.bias * args.x.sums[t * groups + g];
      }
    }
  }
  KVE_UNROLL
  for (int t = 0; t < kTokens; ++t) {
    const float sum = warp_sum(sums[t]);
    if (lane_id() == 0 && t < args.x.rows) write_output(args, t, row, sum);
  }
}

// Many tokens: a warp multiplies 16 rows of weights with 64 tokens, 32 values at a time.
template <WeightType kType>
__global__ void __launch_bounds__(kThreads) tile_kernel(ProductArgs args) {
  const int g = lane_id() / 4;
  const int i = lane_id() % 4;
  const int64_t first_row = int64_t{blockIdx.x} * kTileRows + warp_id() * 16;
  const int64_t first_token = int64_t{blockIdx.y} * kTileTokens;
  const int64_t groups = args.cols / kGroupValues;
  const PackedRow at = packed_row(packed_layout(kType), groups);
  // Rows and tokens past the ends repeat the last ones, and are not written.
  const std::byte* weights[2];
  KVE_UNROLL
  for (int n = 0; n < 2; ++n) {
    const int64_t row = first_row + g + 8 * n;
    weights[n] = args.weight + (row < args.rows ? row : args.rows - 1) * at.end;
  }
  float sums[kTokenBlocks][4] = {};
  for (int64_t group = 0; group < groups; ++group) {
    uint32_t a[4];
    GroupScales scales[2];
    KVE_UNROLL
    for (int n = 0; n < 2; ++n) {
      load_group_words<kType>(weights[n], at, group, i, &a[n], &a[n + 2]);
      scales[n] = load_scales<kType>(weights[n], at, group);
    }
    KVE_UNROLL
    for (int b = 0; b < kTokenBlocks; ++b) {
      const int64_t column = first_token + 8 * b + g;
      const int64_t token = column < args.x.rows ? column : args.x.rows - 1;
      const int64_t from = token * args.cols + group * kGroupValues + 4 * i;
      const uint32_t b0 = load_word(args.x.codes + from);
      const uint32_t b1 = load_word(args.x.codes + from + 16);
      // Of Q6_K the halves of a group apart, as each has its scale.
      constexpr int kHalves = kType == WeightType::q6_k ? 2 : 1;
      int c[kHalves][4] = {};
      const auto multiply = [&](uint32_t first, uint32_t second) {
        if (kHalves == 1) return mma_s8(c[0], a, first, second);
        const uint32_t low[4] = {a[0], a[1], 0, 0};
        const uint32_t high[4] = {0, 0, a[2], a[3]};
        mma_s8(c[0], low, first, second);
        mma_s8(c[kHalves - 1], high, first, second);
      };
      multiply(b0, b1);
      if (args.x.remainders != nullptr) {
        KVE_UNROLL
        for (int n = 0; n < 4; ++n) {
          c[0][n] *= kPlaneRatio;
          if (kHalves == 2) c[kHalves - 1][n] *= kPlaneRatio;
        }
        multiply(load_word(args.x.remainders + from), load_word(args.x.remainders + from + 16));
      }
      KVE_UNROLL
      for (int n = 0; n < 2; ++n) {
        const int64_t out = first_token + 8 * b + 2 * i + n;
        const int64_t index = (out < args.x.rows ? out : args.x.rows - 1) * groups + group;
        const float scale = args.x.scales[index];
        const float sum = args.x.sums[index];
        KVE_UNROLL
        for (int m = 0; m < 2; ++m) {
          if (kHalves == 2) {
            sums[b][n + 2 * m] +=
                scale * (scales[m].first * static_cast<float>(c[0][n + 2 * m]) +
                         scales[m].second * static_cast<float>(c[kHalves - 1][n + 2 * m]));
          } else {
            sums[b][n + 2 * m] += scale * scales[m].first * static_cast<float>(c[0][n + 2 * m]) +
                                  scales[m].bias * sum;
          }
        }
      }
    }
  }
  KVE_UNROLL
  for (int b = 0; b < kTokenBlocks; ++b) {
    KVE_UNROLL
    for (int n = 0; n < 4; ++n) {
      const int64_t row = first_row + g + n / 2 * 8;
      const int64_t token = first_token + 8 * b + 2 * i + n % 2;
      if (row < args.rows && token < args.x.rows) write_output(args, token, row, sums[b][n]);
    }
  }
}

__device__ __forceinline__ float load_plain(WeightType type, const std::byte* row, int64_t i) {
  if (type == WeightType::f32) return reinterpret_cast<const float*>(row)[i];
  const uint16_t bits = reinterpret_cast<const uint16_t*>(row)[i];
  return type == WeightType::f16 ? low_half(bits) : bf16_to_float(bits);
}

// Weights that are floats: a warp to a row of weights and up to 8 tokens.
__global__ void __launch_bounds__(kThreads) plain_kernel(ProductArgs args) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + warp_id();
  if (row >= args.rows) return;  // a whole warp
  const int64_t first = int64_t{blockIdx.y} * kFewRows;
  const std::byte* weights = args.weight + row * args.row_bytes;
  float sums[kFewRows] = {};
  for (int64_t c = lane_id(); c < args.cols; c += kWarpThreads) {
    const float weight = load_plain(args.type, weights, c);
    KVE_UNROLL
    for (int t = 0; t < kFewRows; ++t) {
      if (first + t >= args.x.rows) break;
      sums[t] += weight * args.plain[(first + t) * args.plain_stride + c];
    }
  }
  KVE_UNROLL
  for (int t = 0; t < kFewRows; ++t) {
    const float sum = warp_sum(sums[t]);
    if (lane_id() == 0 && first + t < args.x.rows) write_output(args, first + t, row, sum);
  }
}

__device__ __forceinline__ float code_at(const uint32_t (&words)[4], int i) {
  return static_cast<float>(static_cast<int8_t>(words[i / 4] >> (i % 4 * 8) & 255u));
}

// The same with quantized weights, whose values are those of the file.
template <WeightType kType>
__global__ void __launch_bounds__(kThreads) exact_kernel(ProductArgs args) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + warp_id();
  if (row >= args.rows) return;  // a whole warp
  const int64_t first = int64_t{blockIdx.y} * kFewRows;
  const int64_t groups = args.cols / kGroupValues;
  const PackedRow at = packed_row(packed_layout(kType), groups);
  const std::byte* weights = args.weight + row * at.end;
  float sums[kFewRows] = {};
  for (int64_t g = lane_id(); g < groups; g += kWarpThreads) {
    const GroupWords words = load_group<kType>(weights, at, g);
    const GroupScales scales = load_scales<kType>(weights, at, g);
    KVE_UNROLL
    for (int i = 0; i < kGroupValues / 2; ++i) {
      const float low = scales.first * code_at(words.low, i) + scales.bias;
      const float high = scales.second * code_at(words.high, i) + scales.bias;
      KVE_UNROLL
      for (int t = 0; t < kFewRows; ++t) {
        if (first + t >= args.x.rows) break;
        const float* x = args.plain + (first + t) * args.plain_stride + g * kGroupValues + i;
        sums[t] += low * x[0] + high * x[kGroupValues / 2];
      }
    }
  }
  KVE_UNROLL
  for (int t = 0; t < kFewRows; ++t) {
    const float sum = warp_sum(sums[t]);
    if (lane_id() == 0 && first + t < args.x.rows) write_output(args, first + t, row, sum);
  }
}

unsigned divide_up(int64_t n, int64_t unit) { return static_cast<unsigned>((n + unit - 1) / unit); }

template <WeightType kType>
void launch_product(const ProductArgs& args) {
  if (args.plain != nullptr) {
    const GridSize grid{divide_up(args.rows, kWarps), divide_up(args.x.rows, kFewRows), 1};
    return launch("exact", exact_kernel<kType>, grid, kThreads, 0, args);
  }
  const GridSize rows{divide_up(args.rows, kWarps), 1, 1};
  if (args.x.rows == 1) return launch("dot", dot_kernel<kType, 1>, rows, kThreads, 0, args);
  if (args.x.rows <= 4) return launch("dot", dot_kernel<kType, 4>, rows, kThreads, 0, args);
  if (args.x.rows <= kFewRows) {
    return launch("dot", dot_kernel<kType, kFewRows>, rows, kThreads, 0, args);
  }
  const GridSize tiles{divide_up(args.rows, kTileRows), divide_up(args.x.rows, kTileTokens), 1};
  launch("tile", tile_kernel<kType>, tiles, kThreads, 0, args);
}

ProductArgs product_args(const DeviceWeight& weight, const float* bias, Mat y) {
  ProductArgs args{};
  args.weight = weight.data;
  args.type = weight.type;
  args.rows = weight.rows;
  args.cols = weight.cols;
  args.bias = bias;
  args.y = y.data;
  args.y_stride = y.stride;
  return args;
}

int64_t align16(int64_t bytes) { return (bytes + 15) / 16 * 16; }

}  // namespace

size_t coded_inputs_bytes(int64_t rows, int64_t cols) {
  const int64_t params = align16(rows * (cols / kGroupValues) * 4);
  return static_cast<size_t>(2 * align16(rows * cols) + 2 * params);
}

CodedInputs code_inputs(ConstMat x, Precision precision, std::byte* memory) {
  const int64_t groups = x.cols / kGroupValues;
  const int64_t plane = align16(x.rows * x.cols);
  const int64_t params = align16(x.rows * groups * 4);
  CodedInputs coded;
  coded.rows = x.rows;
  coded.cols = x.cols;
  coded.codes = reinterpret_cast<int8_t*>(memory);
  if (precision != Precision::fast) coded.remainders = coded.codes + plane;
  coded.scales = reinterpret_cast<float*>(memory + 2 * plane);
  coded.sums = reinterpret_cast<float*>(memory + 2 * plane + params);
  if (x.rows == 0) return coded;
  const CodeArgs args{x.data, x.stride, coded, groups};
  launch("code_inputs", code_kernel, {divide_up(x.rows * groups, kWarps), 1, 1}, kThreads, 0, args);
  return coded;
}

namespace {

void launch_product(const ProductArgs& args) {
  switch (args.type) {
    case WeightType::q4_0:
      return launch_product<WeightType::q4_0>(args);
    case WeightType::q4_1:
      return launch_product<WeightType::q4_1>(args);
    case WeightType::q5_0:
      return launch_product<WeightType::q5_0>(args);
    case WeightType::q5_1:
      return launch_product<WeightType::q5_1>(args);
    case WeightType::q8_0:
      return launch_product<WeightType::q8_0>(args);
    case WeightType::q4_k:
      return launch_product<WeightType::q4_k>(args);
    case WeightType::q5_k:
      return launch_product<WeightType::q5_k>(args);
    default:
      return launch_product<WeightType::q6_k>(args);
  }
}

}  // namespace

void matmul(const CodedInputs& x, const DeviceWeight& weight, const float* bias, Mat y) {
  if (x.rows == 0) return;
  ProductArgs args = product_args(weight, bias, y);
  args.x = x;
  launch_product(args);
}

void matmul(ConstMat x, const DeviceWeight& weight, const float* bias, Mat y) {
  if (x.rows == 0) return;
  ProductArgs args = product_args(weight, bias, y);
  args.x.rows = x.rows;
  args.plain = x.data;
  args.plain_stride = x.stride;
  if (!weight.is_float()) return launch_product(args);
  args.row_bytes = weight.row_bytes;
  if (args.row_bytes == 0) args.row_bytes = weight.cols * (weight.type == WeightType::f32 ? 4 : 2);
  const GridSize grid{divide_up(args.rows, kWarps), divide_up(x.rows, kFewRows), 1};
  launch("plain", plain_kernel, grid, kThreads, 0, args);
}

}  // namespace kve::cuda
