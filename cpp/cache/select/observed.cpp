// Observed attention: the attention that a token got from all queries, over the number of queries
// that could see it. A sum alone (H2O) favours old tokens, which more queries see.
#include <algorithm>

#include "cache/select/selectors.h"

namespace kve {
namespace {

class Observed : public Selector {
 public:
  using Selector::Selector;
  unsigned needs() const override { return mass; }
  void score(const LayerPlace& place, std::span<const HeadRows> heads,
             std::span<const std::span<float>> out) const override {
    for (size_t h = 0; h < heads.size(); ++h) {
      const HeadRows& rows = heads[h];
      for (size_t r = 0; r < out[h].size(); ++r) {
        const int seen_by = std::max(1, place.n_tokens - rows.positions[r]);
        out[h][r] = rows.mass[r] / static_cast<float>(seen_by * rows.group);
      }
    }
  }
};

}  // namespace

std::unique_ptr<Selector> make_observed(const SelectorSpec& spec) {
  return std::make_unique<Observed>(spec);
}

}  // namespace kve
