#include "cache/select/h2o_bench.h"

#include <algorithm>

#include "base/error.h"
#include "cache/select/selector.h"

namespace kve {

void H2oBench::step(std::span<const float> weights) {
  const int n = static_cast<int>(weights.size());
  KVE_ASSERT(weights.size() > scores_.size());
  if (heavy_ < 0) {
    heavy_ = static_cast<int>(heavy_share_ * n);
    recent_ = static_cast<int>(recent_share_ * n);
  }
  scores_.resize(weights.size());
  for (size_t j = 0; j < weights.size(); ++j) scores_[j] += weights[j];
  mask_.assign(weights.size() + 1, 0);
  // The newest `recent` of n + 1 keys, and the heaviest of those before the newest `recent` of n:
  // the key between them is in neither.
  for (int j = std::max(0, n + 1 - recent_); j <= n; ++j) mask_[static_cast<size_t>(j)] = 1;
  const auto older = static_cast<size_t>(std::max(0, n - recent_));
  for (const int32_t row : top_rows(std::span(scores_).first(older), heavy_)) {
    mask_[static_cast<size_t>(row)] = 1;
  }
  for (size_t j = 0; j < older; ++j) scores_[j] *= static_cast<float>(mask_[j]);
}

}  // namespace kve
