#include <algorithm>

#include "cache/select/pool_votes.h"
#include "cache/select/selectors.h"

namespace kve {

void pool_votes(const LayerPlace& place, const HeadRows& rows, int window, int kernel,
                std::span<float> out) {
  const int n = static_cast<int>(out.size());
  const int32_t first_voter = place.n_tokens - window;
  int n_before = 0;
  while (n_before < n && rows.positions[static_cast<size_t>(n_before)] < first_voter) ++n_before;
  const double votes = double{1} * kernel * std::max(1, rows.n_queries) * rows.group;
  const int reach = kernel / 2;
  for (int r = 0; r < n; ++r) {
    if (r >= n_before) {
      out[static_cast<size_t>(r)] = kAlwaysKept;
      continue;
    }
    double sum = 0;
    const int last = std::min(r - reach + kernel, n_before);
    for (int i = std::max(0, r - reach); i < last; ++i) {
      sum += double{rows.mass[static_cast<size_t>(i)]};
    }
    out[static_cast<size_t>(r)] = static_cast<float>(sum / votes);
  }
}

namespace {

class SnapKv : public Selector {
 public:
  using Selector::Selector;
  unsigned needs() const override { return mass; }
  int voters() const override { return spec_.window; }
  bool is_too_short(int n_tokens) const override { return n_tokens <= spec_.window; }
  void score(const LayerPlace& place, std::span<const HeadRows> heads,
             std::span<const std::span<float>> out) const override {
    for (size_t h = 0; h < heads.size(); ++h) {
      pool_votes(place, heads[h], spec_.window, spec_.kernel, out[h]);
    }
  }
};

}  // namespace

std::unique_ptr<Selector> make_snapkv(const SelectorSpec& spec) {
  return std::make_unique<SnapKv>(spec);
}

}  // namespace kve
