#include "cache/select/h2o_bench.h"

#include <algorithm>

#include "base/error.h"
#include "cache/select/selectors.h"

namespace kve {

std::vector<uint8_t> h2o_bench_step(std::span<const float> weights, int heavy, int recent,
                                    std::span<float> scores) {
  const int n = static_cast<int>(weights.size());
  KVE_ASSERT(weights.size() == scores.size());
  for (size_t j = 0; j < weights.size(); ++j) scores[j] += weights[j];
  std::vector<uint8_t> mask(weights.size() + 1);
  // The newest `recent` of n + 1 keys, and the heaviest of those before the newest `recent` of n:
  // the key between them is in neither.
  for (int j = std::max(0, n + 1 - recent); j <= n; ++j) mask[static_cast<size_t>(j)] = 1;
  const auto older = static_cast<size_t>(std::max(0, n - recent));
  for (const int32_t row : top_rows(scores.first(older), heavy)) {
    mask[static_cast<size_t>(row)] = 1;
  }
  for (size_t j = 0; j < older; ++j) scores[j] *= static_cast<float>(mask[j]);
  return mask;
}

namespace {

// Everything stays: the cache masks rows by h2o_bench_step().
class H2oBench : public Selector {
 public:
  using Selector::Selector;
  unsigned needs() const override { return mass; }
  int voters() const override { return 1; }
  int budget(const LayerPlace& /*place*/, int /*head*/) const override { return INT32_MAX; }
  void score(const LayerPlace& /*place*/, std::span<const HeadRows> /*heads*/,
             std::span<const std::span<float>> out) const override {
    for (const std::span<float> scores : out) std::ranges::fill(scores, kAlwaysKept);
  }
};

}  // namespace

std::unique_ptr<Selector> make_h2o_bench(const SelectorSpec& spec) {
  return std::make_unique<H2oBench>(spec);
}

}  // namespace kve
