// How matrix products are split into chunks. A chunk is some rows of one weight for all tokens.
#include <algorithm>

#include "kernels/cpu/cpu_backend.h"

namespace kve {
namespace {

// Weight bytes of one chunk when each byte is read once (decode): large enough to hide the hand-out
// of work, small enough to balance it.
constexpr int64_t kLeastChunkBytes = 16 << 10;
constexpr int64_t kMostChunkBytes = 128 << 10;
constexpr int64_t kChunksPerWeight = 64;

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

int64_t streaming_rows(const Weight& weight) {
  const auto row_bytes = static_cast<int64_t>(weight.row_bytes);
  const int64_t bytes =
      std::clamp(weight.rows * row_bytes / kChunksPerWeight, kLeastChunkBytes, kMostChunkBytes);
  return round_up(std::max<int64_t>(bytes / std::max<int64_t>(row_bytes, 1), 1), 4);
}

}  // namespace

const std::byte* CpuBackend::quantize_input(ConstMat x, int planes, Path path) {
  if (path == Path::vector) {
    const size_t bytes = kernels_.vector_bytes(x.cols) * static_cast<size_t>(x.rows * planes);
    std::byte* vectors = input_.get<std::byte>(bytes);
    kernels_.quantize_rows(x.data, x.stride, x.rows, x.cols, planes, vectors);
    return vectors;
  }
  const int64_t step = kernels_.pack_group / planes;
  const int64_t n_packs = (x.rows + step - 1) / step;
  const size_t bytes = kernels_.pack_bytes(x.cols);
  std::byte* packs = input_.get<std::byte>(bytes * static_cast<size_t>(n_packs));
  pool_.parallel(n_packs, [&](int64_t i) {
    kernels_.pack(x.row(i * step), x.stride, std::min(x.rows - i * step, step), x.cols, planes,
                  packs + static_cast<size_t>(i) * bytes);
  });
  return packs;
}

void CpuBackend::run(const MatmulJob& job, ConstMat x, const QuantizedInput& input,
                     std::byte* scratch) const {
  const Weight& weight = *job.product->weight;
  const MatmulChunk chunk = {
      .format = &format(weight.type),
      .weight = weight.data,
      .row_bytes = weight.row_bytes,
      .cols = weight.cols,
      .first_row = job.first_row,
      .n_rows = job.n_rows,
      .bias = job.product->bias,
      .y = job.product->y.data,
      .y_stride = job.product->y.stride,
      .n_tokens = x.rows,
      .scratch = scratch,
  };
  switch (job.path) {
    case Path::exact:
      return kernels_.exact(chunk, x.data, x.stride);
    case Path::vector:
      return kernels_.matvec(chunk, input);
    case Path::matrix:
      return kernels_.matmat(chunk, input);
  }
}

void CpuBackend::matmul(ConstMat x, std::span<const Product> products, Precision precision) {
  if (x.rows == 0) return;
  const int planes = precision == Precision::fine ? 2 : 1;
  const Path integer = x.rows * planes <= kMaxVectorInputs ? Path::vector : Path::matrix;
  matmul_jobs_.clear();
  bool any_integer = false;
  for (const Product& product : products) {
    const Weight& weight = *product.weight;
    const bool plain = precision == Precision::exact || format(weight.type).unpack == nullptr;
    const Path path = plain ? Path::exact : integer;
    any_integer |= !plain;
    int64_t rows = streaming_rows(weight);
    if (path == Path::exact) rows = round_up(std::min<int64_t>(rows, 64), kernels_.exact_rows);
    if (path == Path::matrix) rows = kernels_.matmat_rows;
    for (int64_t r = 0; r < weight.rows; r += rows) {
      matmul_jobs_.push_back({&product, path, r, std::min(weight.rows - r, rows)});
    }
  }
  const QuantizedInput input = {any_integer ? quantize_input(x, planes, integer) : nullptr, planes};
  reserve_thread_scratch(std::max({kernels_.exact_scratch(x.cols), kernels_.matvec_scratch(x.cols),
                                   kernels_.matmat_scratch(x.cols)}));
  pool_.parallel(static_cast<int64_t>(matmul_jobs_.size()), [&](int64_t i, int thread) {
    run(matmul_jobs_[static_cast<size_t>(i)], x, input, thread_scratch(thread));
  });
}

}  // namespace kve
