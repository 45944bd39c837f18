// Knorm (arXiv 2406.11430): keys of a small norm attract attention.
#include <cmath>

#include "cache/select/selectors.h"

namespace kve {
namespace {

class Knorm : public Selector {
 public:
  using Selector::Selector;
  unsigned needs() const override { return keys; }
  void score(const LayerPlace& /*place*/, std::span<const HeadRows> heads,
             std::span<const std::span<float>> out) const override {
    for (size_t h = 0; h < heads.size(); ++h) {
      for (size_t r = 0; r < out[h].size(); ++r) {
        double squares = 0;
        for (const float value : heads[h].keys.row_span(static_cast<int64_t>(r))) {
          squares += double{value} * double{value};
        }
        out[h][r] = static_cast<float>(-std::sqrt(squares));
      }
    }
  }
};

}  // namespace

std::unique_ptr<Selector> make_knorm(const SelectorSpec& spec) {
  return std::make_unique<Knorm>(spec);
}

}  // namespace kve
