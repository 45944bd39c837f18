// TOVA (arXiv 2401.06104): the weights that the newest query gives, averaged over all heads of the
// layer, so that all keep the same tokens.
#include <vector>

#include "base/error.h"
#include "cache/select/selectors.h"

namespace kve {
namespace {

class Tova : public Selector {
 public:
  using Selector::Selector;
  unsigned needs() const override { return mass; }
  bool scores_rows_alone() const override { return true; }
  int voters() const override { return 1; }
  void score(const LayerPlace& /*place*/, std::span<const HeadRows> heads,
             std::span<const std::span<float>> out) const override {
    std::vector<double> sums(out.empty() ? 0 : out[0].size());
    for (const HeadRows& head : heads) {
      KVE_ASSERT(head.mass.size() == sums.size());
      for (size_t r = 0; r < sums.size(); ++r) sums[r] += double{head.mass[r]};
    }
    for (const std::span<float> scores : out) {
      for (size_t r = 0; r < sums.size(); ++r) scores[r] = static_cast<float>(sums[r]);
    }
  }
};

}  // namespace

std::unique_ptr<Selector> make_tova(const SelectorSpec& spec) {
  return std::make_unique<Tova>(spec);
}

}  // namespace kve
