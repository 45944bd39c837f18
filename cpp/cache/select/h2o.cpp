// H2O (arXiv 2306.14048): the attention that a token got from all queries so far, those of the
// prompt included, summed over the query heads that share it; and the newest tokens, half of the
// budget unless the spec says how many. What was dropped is gone, with its score.
#include <algorithm>

#include "cache/select/selectors.h"

namespace kve {
namespace {

class H2o : public Selector {
 public:
  using Selector::Selector;
  unsigned needs() const override { return mass; }
  bool scores_rows_alone() const override { return true; }
  int recent(const LayerPlace& place, int head) const override {
    return spec_.recent >= 0 ? spec_.recent : budget(place, head) / 2;
  }
  void score(const LayerPlace& /*place*/, std::span<const HeadRows> heads,
             std::span<const std::span<float>> out) const override {
    for (size_t h = 0; h < heads.size(); ++h) std::ranges::copy(heads[h].mass, out[h].begin());
  }
};

}  // namespace

std::unique_ptr<Selector> make_h2o(const SelectorSpec& spec) { return std::make_unique<H2o>(spec); }

}  // namespace kve
