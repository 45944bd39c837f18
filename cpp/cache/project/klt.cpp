#include "cache/project/klt.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"

namespace kve {
namespace {

constexpr double kLeastShare = 1e-3;  // of the mean channel
constexpr double kLargestMetric = 1e30;

// The metric as it is used: positive.
std::vector<double> weights(std::span<const double> metric) {
  double mean = 0;
  for (const double value : metric) {
    if (!(value >= 0 && value <= kLargestMetric)) {
      throw ConfigError(
          message("query metric: expected values of 0 to ", kLargestMetric, ", found ", value));
    }
    mean += value / static_cast<double>(metric.size());
  }
  std::vector<double> out(metric.begin(), metric.end());
  // Without queries every channel counts alike.
  const double least = mean > 1 / kLargestMetric ? kLeastShare * mean : 1;
  for (double& value : out) value += least;
  return out;
}

}  // namespace

KeyStatistics::KeyStatistics(int dim) : deviations_(dim) {}

void KeyStatistics::add_page(ConstMat rows) { deviations_.add(rows, finite_mean(rows)); }

Matrix KeyStatistics::covariance() const {
  Matrix out = deviations_.matrix();
  for (double& value : out.values) value /= static_cast<double>(std::max<int64_t>(1, count()));
  return out;
}

Klt klt_basis(const KeyStatistics& keys, std::span<const double> metric) {
  const int dim = keys.dim();
  const auto n = static_cast<size_t>(dim);
  if (metric.size() != n) {
    throw ConfigError(message("query metric: expected ", dim, " values, found ", metric.size()));
  }
  const std::vector<double> weight = weights(metric);
  Matrix weighted = keys.covariance();
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < n; ++j) weighted.values[i * n + j] *= std::sqrt(weight[i] * weight[j]);
  }
  Eigen eigen = symmetric_eigen(std::move(weighted));
  Klt out;
  out.basis.dim = out.basis.width = out.basis.block = out.basis.block_width = dim;
  for (size_t j = 0; j < n; ++j) {
    for (size_t c = 0; c < n; ++c) {
      const double vector = eigen.vectors.values[c * n + j];
      out.basis.lift.push_back(static_cast<float>(vector / std::sqrt(weight[j])));
    }
    out.basis.row.push_back(static_cast<float>(weight[j]));
  }
  out.eigenvalues = std::move(eigen.values);
  for (double& value : out.eigenvalues) value = std::max(0.0, value);
  return out;
}

Klt klt_basis(std::span<const float> vectors, std::span<const float> eigenvalues,
              std::span<const float> weights) {
  const size_t n = weights.size();
  KVE_ASSERT(vectors.size() == n * n && eigenvalues.size() == n);
  Klt out;
  out.basis.dim = out.basis.width = static_cast<int>(n);
  out.basis.block = out.basis.block_width = static_cast<int>(n);
  for (size_t j = 0; j < n; ++j) {
    for (size_t c = 0; c < n; ++c) {
      out.basis.lift.push_back(vectors[c * n + j] / std::sqrt(weights[j]));
    }
  }
  out.basis.row.assign(weights.begin(), weights.end());
  out.eigenvalues.assign(eigenvalues.begin(), eigenvalues.end());
  return out;
}

void average_pairs(std::span<double> metric, int n_pairs, bool interleaved) {
  KVE_ASSERT(2 * static_cast<size_t>(n_pairs) <= metric.size());
  for (int pair = 0; pair < n_pairs; ++pair) {
    const auto first = static_cast<size_t>(interleaved ? 2 * pair : pair);
    const auto second = first + static_cast<size_t>(interleaved ? 1 : n_pairs);
    metric[first] = metric[second] = (metric[first] + metric[second]) / 2;
  }
}

}  // namespace kve
