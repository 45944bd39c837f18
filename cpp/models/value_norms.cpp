#include "models/value_norms.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "formats/weight_formats.h"

namespace kve {
namespace {

constexpr int64_t kRows = 16;  // of a thread

}  // namespace

HeadNorms::HeadNorms(const ModelSpec& spec, const ModelWeights& weights, ThreadPool& pool)
    : spec_(spec), weights_(weights), pool_(pool) {}

// Rows of the weights are decoded once, and added up head by head.
void HeadNorms::square(int layer) {
  const AttentionSpec& spec = spec_.layers[static_cast<size_t>(layer)].attention;
  const Weight& o = weights_.layers[static_cast<size_t>(layer)].attention.o;
  const auto dim = static_cast<int64_t>(spec.value_dim);
  squares_.assign(static_cast<size_t>(spec.n_heads * dim * dim), 0);
  KVE_ASSERT(o.cols == spec.n_heads * dim);
  std::vector<float> rows(static_cast<size_t>(o.rows * o.cols));
  pool_.parallel(o.rows, [&](int64_t r) {
    format(o.type).decode(o.data + static_cast<size_t>(r) * o.row_bytes, rows.data() + r * o.cols,
                          o.cols);
  });
  pool_.parallel(spec.n_heads, [&](int64_t h) {
    float* to = squares_.data() + h * dim * dim;
    for (int64_t r = 0; r < o.rows; ++r) {
      const float* row = rows.data() + r * o.cols + h * dim;
      for (int64_t i = 0; i < dim; ++i) {
        for (int64_t j = 0; j < dim; ++j) to[i * dim + j] += row[i] * row[j];
      }
    }
  });
  layer_ = layer;
}

void HeadNorms::operator()(int layer, int query_head, ConstMat values, std::span<float> norms) {
  if (layer != layer_) square(layer);
  const int64_t dim = values.cols;
  const float* matrix = squares_.data() + query_head * dim * dim;
  pool_.parallel((values.rows + kRows - 1) / kRows, [&](int64_t chunk) {
    std::vector<float> product(static_cast<size_t>(dim));
    for (int64_t r = chunk * kRows; r < std::min(values.rows, (chunk + 1) * kRows); ++r) {
      const float* value = values.row(r);
      std::ranges::fill(product, 0.0f);
      for (int64_t i = 0; i < dim; ++i) {
        for (int64_t j = 0; j < dim; ++j) {
          product[static_cast<size_t>(j)] += value[i] * matrix[i * dim + j];
        }
      }
      double sum = 0;
      for (int64_t j = 0; j < dim; ++j) {
        sum += double{value[j]} * double{product[static_cast<size_t>(j)]};
      }
      norms[static_cast<size_t>(r)] = static_cast<float>(std::sqrt(std::max(0.0, sum)));
    }
  });
}

}  // namespace kve
