// The newest tokens, and with StreamingLLM (arXiv 2309.17453) the first few as well. Sinks are kept
// by choose_rows().
#include "cache/select/selectors.h"

namespace kve {
namespace {

class Window : public Selector {
 public:
  using Selector::Selector;
  bool scores_rows_alone() const override { return true; }
  void score(const LayerPlace& /*place*/, std::span<const HeadRows> heads,
             std::span<const std::span<float>> out) const override {
    for (size_t h = 0; h < heads.size(); ++h) {
      // Rows are oldest first; their numbers are exact in float32 for 16 million of them.
      for (size_t r = 0; r < out[h].size(); ++r) out[h][r] = static_cast<float>(r);
    }
  }
};

}  // namespace

std::unique_ptr<Selector> make_window(const SelectorSpec& spec) {
  return std::make_unique<Window>(spec);
}

}  // namespace kve
