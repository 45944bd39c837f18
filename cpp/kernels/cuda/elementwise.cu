#include "kernels/cuda/elementwise.h"

#include <math.h>

#include "kernels/cuda/warp.h"

namespace kve::cuda {
namespace {

constexpr int kNormThreads = 256;
constexpr int kValueThreads = 256;
constexpr int64_t kMostBlocks = 16384;  // of loops over values

struct NormArgs {
  const float* x;
  const float* weight;
  const float* bias;  // or null
  float* out;
  int64_t x_stride;
  int64_t out_stride;
  int64_t cols;
  float eps;
  bool centred;  // the mean is taken out first
};

// Of all threads of a block; `sums` has a place for every warp, and is free again after the next
// barrier.
__device__ float block_sum(float value, float* sums) {
  value = warp_sum(value);
  if (lane_id() == 0) sums[warp_id()] = value;
  __syncthreads();
  float total = 0;
  for (int w = 0; w < kNormThreads / kWarpThreads; ++w) total += sums[w];
  return total;
}

// A block to a row.
__global__ void norm_kernel(NormArgs args) {
  KVE_SHARED(shared);
  auto* sums = reinterpret_cast<float*>(shared);  // [2][warps]
  const float* x = args.x + blockIdx.x * args.x_stride;
  float* out = args.out + blockIdx.x * args.out_stride;
  float mean = 0;
  if (args.centred) {
    float sum = 0;
    for (int64_t i = threadIdx.x; i < args.cols; i += kNormThreads) sum += x[i];
    mean = block_sum(sum, sums) / static_cast<float>(args.cols);
    sums += kNormThreads / kWarpThreads;
  }
  float squares = 0;
  for (int64_t i = threadIdx.x; i < args.cols; i += kNormThreads) {
    squares += (x[i] - mean) * (x[i] - mean);
  }
  const float total = block_sum(squares, sums);
  const float factor = 1.0f / sqrtf(total / static_cast<float>(args.cols) + args.eps);
  for (int64_t i = threadIdx.x; i < args.cols; i += kNormThreads) {
    const float bias = args.bias == nullptr ? 0.0f : args.bias[i];
    out[i] = (x[i] - mean) * factor * args.weight[i] + bias;
  }
}

void normalise(const char* name, const NormArgs& args, int64_t rows) {
  if (rows == 0) return;
  launch(name, norm_kernel, {static_cast<unsigned>(rows), 1, 1}, kNormThreads,
         2 * kNormThreads / kWarpThreads * sizeof(float), args);
}

struct RopeArgs {
  float* x;
  const float* cos;
  const float* sin;
  int64_t stride;
  int64_t cos_stride;
  int64_t sin_stride;
  int64_t rows;
  int32_t heads;
  int32_t head_dim;
  int32_t half;
  bool interleaved;
};

// A thread to a pair.
__global__ void rope_kernel(RopeArgs args) {
  const int64_t pairs = int64_t{args.heads} * args.half;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t n = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; n < args.rows * pairs;
       n += step) {
    const int64_t row = n / pairs;
    const int64_t head = n % pairs / args.half;
    const int64_t i = n % args.half;
    float* x = args.x + row * args.stride + head * args.head_dim;
    float* first = x + (args.interleaved ? 2 * i : i);
    float* second = args.interleaved ? first + 1 : first + args.half;
    const float c = args.cos[row * args.cos_stride + i];
    const float s = args.sin[row * args.sin_stride + i];
    const float a = *first;
    const float b = *second;
    *first = a * c - b * s;
    *second = a * s + b * c;
  }
}

// The activations come first, in the order of Activation.
enum class Pointwise : uint8_t { silu, gelu_tanh, gelu_erf, relu, add, softcap, clamp };

struct PointwiseArgs {
  Pointwise what;
  float* x;
  const float* y;
  int64_t rows;
  int64_t cols;
  int64_t x_stride;
  int64_t y_stride;
  float cap;  // or limit
};

__device__ float pointwise(const PointwiseArgs& args, float x, float y) {
  switch (args.what) {
    case Pointwise::silu:
      return x / (1.0f + expf(-x)) * y;
    case Pointwise::gelu_tanh: {
      // sqrt(2 / pi) (x + 0.044715 x^3)
      const float inner = 0.7978845608f * (x + 0.044715f * x * x * x);
      return 0.5f * x * (1.0f + tanhf(inner)) * y;
    }
    case Pointwise::gelu_erf:
      return 0.5f * x * (1.0f + erff(x * 0.7071067812f)) * y;
    case Pointwise::relu:
      // NaN must not vanish.
      return (x < 0 ? 0.0f : x) * y;
    case Pointwise::add:
      return x + y;
    case Pointwise::softcap:
      return args.cap * tanhf(x / args.cap);
    case Pointwise::clamp:
      break;
  }
  // NaN must not vanish.
  const float low = x < -args.cap ? -args.cap : x;
  return low > args.cap ? args.cap : low;
}

__global__ void pointwise_kernel(PointwiseArgs args) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t n = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; n < args.rows * args.cols;
       n += step) {
    const int64_t row = n / args.cols;
    const int64_t col = n % args.cols;
    float* x = args.x + row * args.x_stride + col;
    *x = pointwise(args, *x, args.y == nullptr ? 1.0f : args.y[row * args.y_stride + col]);
  }
}

GridSize blocks_for(int64_t values) {
  const int64_t blocks = (values + kValueThreads - 1) / kValueThreads;
  return {static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks), 1, 1};
}

void run(const char* name, Pointwise what, Mat x, ConstMat y, float cap) {
  if (x.rows * x.cols == 0) return;
  const PointwiseArgs args{what, x.data, y.data, x.rows, x.cols, x.stride, y.stride, cap};
  launch(name, pointwise_kernel, blocks_for(x.rows * x.cols), kValueThreads, 0, args);
}

}  // namespace

void rms_norm(ConstMat x, const float* weight, float eps, Mat out) {
  normalise("rms_norm",
            {x.data, weight, nullptr, out.data, x.stride, out.stride, x.cols, eps, false}, x.rows);
}

void layer_norm(ConstMat x, const float* weight, const float* bias, float eps, Mat out) {
  normalise("layer_norm", {x.data, weight, bias, out.data, x.stride, out.stride, x.cols, eps, true},
            x.rows);
}

void rope(Mat x, int head_dim, RopeLayout layout, ConstMat cos, ConstMat sin) {
  const auto heads = static_cast<int32_t>(x.cols / head_dim);
  const int64_t pairs = x.rows * heads * cos.cols;
  if (pairs == 0) return;
  const RopeArgs args{x.data,
                      cos.data,
                      sin.data,
                      x.stride,
                      cos.stride,
                      sin.stride,
                      x.rows,
                      heads,
                      head_dim,
                      static_cast<int32_t>(cos.cols),
                      layout == RopeLayout::interleaved};
  launch("rope", rope_kernel, blocks_for(pairs), kValueThreads, 0, args);
}

void gated(Activation activation, Mat gate, ConstMat up) {
  run("gated", static_cast<Pointwise>(activation), gate, up, 0);
}

void add(Mat x, ConstMat y) { run("add", Pointwise::add, x, y, 0); }

void softcap(float cap, Mat x) { run("softcap", Pointwise::softcap, x, {}, cap); }

void clamp(float limit, Mat x) { run("clamp", Pointwise::clamp, x, {}, limit); }

}  // namespace kve::cuda
