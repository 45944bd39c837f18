// Compiled without floating-point contraction, as all encoders are (formats/cache/codec_math.h).
#include "kernels/cuda/encode.h"

#include <math.h>

#include "formats/cache/page_codes.h"
#include "formats/cache/page_params.h"
#include "formats/cache/plain_floats.h"
#include "formats/cache/two_axis.h"
#include "kernels/cuda/warp.h"

namespace kve::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kFloatBlocks = 16;  // of a job of floats

struct EncodeArgs {
  const EncodeJob* jobs;
  int32_t* failed;
  int64_t step;  // from the mark of one job to that of the next
};

__device__ __forceinline__ float source_value(const EncodeJob& job, int row, int channel) {
  const int64_t at = row * job.stride + channel;
  return job.f32 != nullptr ? job.f32[at] : half_to_float(job.f16[at]);
}

// Blocks in x: jobs; in y: parts of their values.
__global__ void floats_kernel(EncodeArgs args) {
  const EncodeJob& job = args.jobs[blockIdx.x];
  const CodecId id = job.format.id;
  if (id == CodecId::coded) return;
  const int64_t width = job.format.width;
  const int64_t first = job.first_row * width;
  const int64_t step = int64_t{gridDim.y} * kThreads;
  bool finite = true;
  for (int64_t n = int64_t{blockIdx.y} * kThreads + threadIdx.x; n < job.n_rows * width;
       n += step) {
    const float value = source_value(job, static_cast<int>(n / width), static_cast<int>(n % width));
    finite = finite && is_finite(value);
    if (id == CodecId::f32) {
      reinterpret_cast<float*>(job.page)[first + n] = value;
    } else {
      reinterpret_cast<uint16_t*>(job.page)[first + n] =
          id == CodecId::f16 ? saturate_to_half(value) : saturate_to_bf16(value);
    }
  }
  if (!finite) args.failed[blockIdx.x * args.step] = 1;
}

// Groups in turn: values, a code to each in `codes`, and the parameters in the page.
__device__ void code_groups(const EncodeJob& job, const float* rows, uint8_t* codes, int stride) {
  const CodedPage& page = job.format.coded;
  const bool by_token = page.per == Per::token;
  const int coded_channels = coded_width(page);
  const int along = by_token ? page.width / page.group : page.width;  // groups of a row (of rows)
  const int n_groups = by_token ? job.n_rows * along : job.n_rows / page.group * along;
  for (int n = static_cast<int>(threadIdx.x); n < n_groups; n += kThreads) {
    const int row = by_token ? n / along : n / along * page.group;
    const int channel = by_token ? n % along * page.group : n % along;
    const int64_t at = int64_t{row} * stride + channel;
    const int64_t step = by_token ? 1 : stride;
    GroupParams params{};
    GroupCoding coding = page.coding;
    if (page.strip_bits != nullptr) {
      if (channel >= coded_channels) continue;
      coding.bits = page.strip_bits[channel / 4];
    }
    encode_lanes<float>(coding, {rows + at, step, page.group, codes + at, step}, &params);
    put_params(page, &params, 1, scale_index(page, job.first_row + row, channel),
               zero_index(page, job.first_row + row, channel), job.page);
  }
}

// Zeros of channels without bits: the means of their groups, which are of tokens.
__device__ void put_means(const EncodeJob& job, const float* rows, int stride) {
  const CodedPage& page = job.format.coded;
  const int first = coded_width(page);
  const int along = page.width - first;
  std::byte* zeros = job.page + page_offsets(page).zeros;
  for (int n = static_cast<int>(threadIdx.x); n < job.n_rows / page.group * along; n += kThreads) {
    const int row = n / along * page.group;
    const int channel = first + n % along;
    double sum = 0;
    for (int i = row; i < row + page.group; ++i) {
      sum += static_cast<double>(rows[int64_t{i} * stride + channel]);
    }
    write_u16(zeros + 2 * zero_index(page, job.first_row + row, channel),
              saturate_to_half(static_cast<float>(sum / page.group)));
  }
}

// Takes the mean of every channel out of the rows of a page.
__device__ void take_means_out(const EncodeJob& job, float* rows, int stride) {
  const CodedPage& page = job.format.coded;
  std::byte* factors = job.page + page_offsets(page).factors;
  for (int c = static_cast<int>(threadIdx.x); c < page.width; c += kThreads) {
    float* column = rows + c;
    double sum = 0;
    for (int r = 0; r < kPageTokens; ++r) sum += static_cast<double>(column[r * stride]);
    const uint16_t stored = saturate_to_half(static_cast<float>(sum / kPageTokens));
    write_u16(factors + 2 * c, stored);
    for (int r = 0; r < kPageTokens; ++r) column[r * stride] -= half_to_float(stored);
  }
  __syncthreads();
}

// Lines of an axis in turns, each as an axis of its own.
template <class Run>
__device__ __forceinline__ void each_line(const AxisState& axis, const Run& run) {
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < axis.n; i += kThreads) {
    AxisState line = axis;
    line.n = 1;
    line.lines += i;
    line.factor += i;
    line.inverse += i;
    line.deviation += i;
    line.best += i;
    run(&line);
  }
  __syncthreads();
}

// balance_axes() by the threads of a block.
__device__ void balance_together(const AxisState& first, const AxisState& second) {
  const auto start = [](AxisState* line) { start_axis(line); };
  const auto even = [](AxisState* line) { even_out(line); };
  const auto keep = [](AxisState* line) { keep_factors(*line); };
  const auto beside_first = [&](AxisState* line) { measure_axis(line, first); };
  const auto beside_second = [&](AxisState* line) { measure_axis(line, second); };
  each_line(first, start);
  each_line(second, start);
  each_line(first, beside_second);
  each_line(second, beside_first);
  float least = unevenness(first) + unevenness(second);
  for (int round = 0; round < kNormalisingRounds; ++round) {
    each_line(first, even);
    each_line(second, beside_first);
    each_line(second, even);
    each_line(first, beside_second);
    const float now = unevenness(first) + unevenness(second);
    if (!(now <= least)) continue;
    least = now;
    each_line(first, keep);
    each_line(second, keep);
  }
}

// Floats of factors, and of what finds them.
KVE_HD size_t factor_floats(const CodedPage& page) {
  if (page.channels != Channels::scaled) return 0;
  return static_cast<size_t>(kPageTokens + page.width) + two_axes_scratch(kPageTokens, page.width);
}

// Divides the rows of a page by the factors of the axis that groups do not run along.
__device__ void take_factors_out(const EncodeJob& job, float* rows, int stride, float* work) {
  const CodedPage& page = job.format.coded;
  const int width = page.width;
  const bool of_tokens = page.per == Per::channel;
  float* token = work;
  float* channel = token + kPageTokens;
  const TwoAxes axes =
      two_axes_of(rows, kPageTokens, width, stride, channel, token, channel + width);
  for (int n = static_cast<int>(threadIdx.x); n < kPageTokens * width; n += kThreads) {
    axes.turned[n % width * kPageTokens + n / width] = rows[n / width * stride + n % width];
  }
  if (of_tokens) {
    balance_together(axes.tokens, axes.channels);
  } else {
    balance_together(axes.channels, axes.tokens);
  }
  float* factor = of_tokens ? token : channel;
  std::byte* to = job.page + page_offsets(page).factors;
  for (int i = static_cast<int>(threadIdx.x); i < (of_tokens ? kPageTokens : width);
       i += kThreads) {
    const uint16_t stored = saturate_to_half(factor[i]);
    write_u16(to + 2 * i, stored);
    factor[i] = half_to_float(stored);
  }
  __syncthreads();
  for (int n = static_cast<int>(threadIdx.x); n < kPageTokens * width; n += kThreads) {
    rows[n / width * stride + n % width] /= of_tokens ? token[n / width] : channel[n % width];
  }
  __syncthreads();
}

// A block to a job.
__global__ void __launch_bounds__(kThreads) codes_kernel(EncodeArgs args) {
  const EncodeJob& job = args.jobs[blockIdx.x];
  if (job.format.id != CodecId::coded) return;
  const CodedPage& page = job.format.coded;
  const int stride = padded_width(page.width);
  const int count = job.n_rows * stride;
  auto* rows = reinterpret_cast<float*>(job.work);  // [n_rows][stride]
  float* factors = rows + count;
  auto* codes = reinterpret_cast<uint8_t*>(factors + factor_floats(page));
  bool finite = true;
  for (int n = static_cast<int>(threadIdx.x); n < count; n += kThreads) {
    const int channel = n % stride;
    const float value = channel < page.width ? source_value(job, n / stride, channel) : 0.0f;
    finite = finite && is_finite(value);
    rows[n] = value;
    codes[n] = 0;
  }
  if (!finite) args.failed[blockIdx.x * args.step] = 1;
  __syncthreads();
  if (page.channels == Channels::centred) take_means_out(job, rows, stride);
  if (page.channels == Channels::scaled) take_factors_out(job, rows, stride, factors);
  code_groups(job, rows, codes, stride);
  if (page.strip_bits != nullptr) put_means(job, rows, stride);
  __syncthreads();
  // Tokens share bytes, strips do not.
  for (int s = static_cast<int>(threadIdx.x); s < n_strips(page); s += kThreads) {
    if (bits_of_strip(page, s) == 0) break;  // bits fall
    int before = s * page.coding.bits;
    if (page.strip_bits != nullptr) {
      before = 0;
      for (int i = 0; i < s; ++i) before += page.strip_bits[i];
    }
    write_strip(page, s, {codes, stride, 1}, job.first_row, job.n_rows,
                job.page + strip_bytes(before));
  }
  if (threadIdx.x == 0) clear_gaps(page, job.page);
}

}  // namespace

bool encodes(const PageFormat& format) {
  if (format.id != CodecId::coded) return true;
  const CodedPage& page = format.coded;
  const bool lines = !page.values && page.per == Per::channel &&
                     page.coding.coding == Coding::asym && page.channels == Channels::plain;
  return page.outliers == 0 && (page.strip_bits == nullptr || lines);
}

size_t encode_work_bytes(const EncodeJob& job) {
  if (job.format.id != CodecId::coded) return 0;
  const auto values = static_cast<size_t>(job.n_rows * padded_width(job.format.width));
  const size_t floats = values + factor_floats(job.format.coded);
  return (floats * sizeof(float) + values + 15) / 16 * 16;
}

void encode(const EncodeJob* jobs, int n_jobs, bool together, int32_t* failed) {
  if (n_jobs == 0) return;
  const EncodeArgs args{jobs, failed, together ? 0 : 1};
  const auto n = static_cast<unsigned>(n_jobs);
  launch("encode_floats", floats_kernel, {n, kFloatBlocks, 1}, kThreads, 0, args);
  launch("encode_codes", codes_kernel, {n, 1, 1}, kThreads, 0, args);
}

}  // namespace kve::cuda
