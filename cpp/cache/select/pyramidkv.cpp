// PyramidKV (arXiv 2406.02069): SnapKV's votes, with budgets that fall from layer to layer; in all
// they are those of equal budgets.
#include <algorithm>
#include <cmath>

#include "cache/select/pool_votes.h"
#include "cache/select/selectors.h"

namespace kve {
namespace {

class PyramidKv : public Selector {
 public:
  using Selector::Selector;
  unsigned needs() const override { return mass; }
  int voters() const override { return spec_.window; }
  bool is_too_short(int n_tokens) const override { return n_tokens <= spec_.window; }
  int budget(const LayerPlace& place, int /*head*/) const override {
    const double n = place.n_budget_tokens;
    const double window = spec_.window;
    const double kept = spec_.tokens > 0 ? std::min<double>(spec_.tokens, n) : n * spec_.share;
    double least = kept / spec_.beta;
    double most = 2 * kept - least;
    if (most >= n - window) {
      most = n - window;
      least = 2 * kept - most;
    }
    // A pyramid that does not fit: equal budgets.
    const bool fits = n >= most && most >= least && least >= window;
    const double step = fits && place.n_layers > 1 ? (most - least) / (place.n_layers - 1) : 0;
    const double budget = fits ? most - place.layer * step : kept;
    return std::max(1, static_cast<int>(std::nearbyint(budget)));
  }
  void score(const LayerPlace& place, std::span<const HeadRows> heads,
             std::span<const std::span<float>> out) const override {
    for (size_t h = 0; h < heads.size(); ++h) {
      pool_votes(place, heads[h], spec_.window, spec_.kernel, out[h]);
    }
  }
};

}  // namespace

std::unique_ptr<Selector> make_pyramidkv(const SelectorSpec& spec) {
  return std::make_unique<PyramidKv>(spec);
}

}  // namespace kve
