// KVzip (arXiv 2505.23416): a token is worth the largest weight that any query gives it while the
// model repeats the prompt, whatever will be asked about it later on. Heads and layers differ in
// how much they need for that, and get it: all their rows compete for one budget.
#include <algorithm>

#include "cache/select/selectors.h"

namespace kve {
namespace {

class Kvzip : public Selector {
 public:
  using Selector::Selector;
  bool repeats_prompt() const override { return true; }
  void score(const LayerPlace& /*place*/, std::span<const HeadRows> heads,
             std::span<const std::span<float>> out) const override {
    for (size_t h = 0; h < heads.size(); ++h) std::ranges::copy(heads[h].mass, out[h].begin());
  }
};

}  // namespace

std::unique_ptr<Selector> make_kvzip(const SelectorSpec& spec) {
  return std::make_unique<Kvzip>(spec);
}

}  // namespace kve
