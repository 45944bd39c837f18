// The control: a number per layer, head and position, whatever the text.
#include "base/random.h"
#include "cache/select/selectors.h"

namespace kve {
namespace {

class RandomRows : public Selector {
 public:
  using Selector::Selector;
  void score(const LayerPlace& place, std::span<const HeadRows> heads,
             std::span<const std::span<float>> out) const override {
    const auto seed_low = static_cast<uint32_t>(spec_.seed);
    const auto seed_high = static_cast<uint32_t>(spec_.seed >> 32);
    for (size_t h = 0; h < heads.size(); ++h) {
      for (size_t r = 0; r < out[h].size(); ++r) {
        const auto block =
            philox4x32({static_cast<uint32_t>(heads[h].positions[r]),
                        static_cast<uint32_t>(place.layer), static_cast<uint32_t>(h), 0},
                       {seed_low, seed_high});
        out[h][r] = static_cast<float>(block[0] >> 8) * 0x1p-24f;
      }
    }
  }
};

}  // namespace

std::unique_ptr<Selector> make_random(const SelectorSpec& spec) {
  return std::make_unique<RandomRows>(spec);
}

}  // namespace kve
