#include "kernels/cuda/project.h"

#include "kernels/cuda/warp.h"

namespace kve::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = 16;  // of a job, to a block of threads

struct ProjectArgs {
  const ProjectJob* jobs;
  int32_t most_block;
};

__device__ __forceinline__ float source_value(const ProjectJob& job, int row, int channel) {
  const int64_t at = row * job.stride + channel;
  return job.f32 != nullptr ? job.f32[at] : half_to_float(job.f16[at]);
}

// A value of a row, turned back.
__device__ __forceinline__ float turned_value(const ProjectJob& job, int row, int channel) {
  const float own = source_value(job, row, channel);
  const int n = job.n_pairs;
  if (job.angles == nullptr || channel >= 2 * n) return own;
  const int pair = job.interleaved ? channel / 2 : channel % n;
  const bool first = job.interleaved ? channel % 2 == 0 : channel < n;
  const int distance = job.interleaved ? 1 : n;
  const float other = source_value(job, row, first ? channel + distance : channel - distance);
  const float across = other * job.angles[n + pair];
  return own * job.angles[pair] + (first ? across : -across);
}

__device__ __forceinline__ float lift_number(const ProjectJob& job, int row, int column) {
  const int64_t at = int64_t{row} * job.block_width + column;
  return job.lift8 == nullptr ? half_to_float(job.lift[at])
                              : job.lift8_scale[row] * static_cast<float>(job.lift8[at]);
}

// to[r][c] (+)= column * lift^T rows[r]; rows [kRows][most_block], weighted.
__device__ __forceinline__ void multiply(const ProjectJob& job, const float* rows, int stride,
                                         bool adds, float* to) {
  for (int c = static_cast<int>(threadIdx.x); c < job.block_width; c += kThreads) {
    float sums[kRows] = {};
    for (int j = 0; j < job.block; ++j) {
      const float number = lift_number(job, j, c);
      KVE_UNROLL
      for (int r = 0; r < kRows; ++r) sums[r] += rows[r * stride + j] * number;
    }
    const float factor = job.column != nullptr ? job.column[c] : 1.0f;
    KVE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const float value = sums[r] * factor;
      to[r * stride + c] = adds ? to[r * stride + c] + value : value;
    }
  }
}

// rows[r][j] -= weight * lift coefficients[r].
__device__ __forceinline__ void subtract_lifted(const ProjectJob& job, const float* coefficients,
                                                int stride, float* rows) {
  for (int j = static_cast<int>(threadIdx.x); j < job.block; j += kThreads) {
    float sums[kRows] = {};
    for (int c = 0; c < job.block_width; ++c) {
      const float number = lift_number(job, j, c);
      KVE_UNROLL
      for (int r = 0; r < kRows; ++r) sums[r] += coefficients[r * stride + c] * number;
    }
    const float weight = job.row != nullptr ? job.row[j] : 1.0f;
    KVE_UNROLL
    for (int r = 0; r < kRows; ++r) rows[r * stride + j] -= weight * sums[r];
  }
}

// Blocks in x: jobs; in y: kRows of their rows.
__global__ void __launch_bounds__(kThreads) project_kernel(ProjectArgs args) {
  KVE_SHARED(memory);
  const ProjectJob& job = args.jobs[blockIdx.x];
  const int first = static_cast<int>(blockIdx.y) * kRows;
  if (first >= job.n_rows) return;
  const int n = job.n_rows - first < kRows ? job.n_rows - first : kRows;
  const int stride = args.most_block;
  auto* rows = reinterpret_cast<float*>(memory);
  float* coefficients = rows + kRows * stride;
  const int n_blocks = job.width / job.block;
  for (int b = 0; b < n_blocks; ++b) {
    __syncthreads();
    for (int at = static_cast<int>(threadIdx.x); at < kRows * job.block; at += kThreads) {
      const int r = at / job.block;
      const int j = at % job.block;
      const float weight = job.row != nullptr ? job.row[j] : 1.0f;
      rows[r * stride + j] =
          r < n ? weight * turned_value(job, first + r, b * job.block + j) : 0.0f;
    }
    __syncthreads();
    multiply(job, rows, stride, false, coefficients);
    __syncthreads();
    if (job.twice) {
      subtract_lifted(job, coefficients, stride, rows);
      __syncthreads();
      multiply(job, rows, stride, true, coefficients);
      __syncthreads();
    }
    for (int at = static_cast<int>(threadIdx.x); at < n * job.block_width; at += kThreads) {
      const int r = at / job.block_width;
      const int c = at % job.block_width;
      job.coefficients[int64_t{first + r} * n_blocks * job.block_width + b * job.block_width + c] =
          coefficients[r * stride + c];
    }
  }
}

}  // namespace

size_t project_shared(int most_block) {
  return 2 * sizeof(float) * kRows * static_cast<size_t>(most_block);
}

void project(const ProjectJob* jobs, int n_jobs, int most_rows, int most_block) {
  if (n_jobs == 0) return;
  const auto parts = static_cast<unsigned>((most_rows + kRows - 1) / kRows);
  launch("project", project_kernel, {static_cast<unsigned>(n_jobs), parts, 1}, kThreads,
         project_shared(most_block), ProjectArgs{jobs, most_block});
}

}  // namespace kve::cuda
