// The scores of a function that the caller of the engine gives, for research.
#include "base/error.h"
#include "cache/select/selectors.h"

namespace kve {
namespace {

class Custom : public Selector {
 public:
  Custom(const SelectorSpec& spec, RowScorer scorer) : Selector(spec), scorer_(std::move(scorer)) {
    if (!scorer_) {
      throw ConfigError("cache: custom: expected a session with a scorer, found none");
    }
  }
  unsigned needs() const override { return keys | values | mass | queries; }
  int voters() const override { return spec_.window; }
  bool is_thread_safe() const override { return false; }
  void score(const LayerPlace& place, std::span<const HeadRows> heads,
             std::span<const std::span<float>> out) const override {
    for (size_t h = 0; h < heads.size(); ++h) {
      scorer_({place.layer, static_cast<int>(h)}, heads[h], out[h]);
    }
  }

 private:
  RowScorer scorer_;
};

}  // namespace

std::unique_ptr<Selector> make_custom(const SelectorSpec& spec, RowScorer scorer) {
  return std::make_unique<Custom>(spec, std::move(scorer));
}

}  // namespace kve
