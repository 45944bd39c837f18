#include "engine/pass_length.h"

#include <algorithm>

namespace kve {
namespace {

constexpr double kHalfBits = 16;
constexpr int64_t kStep = 64;  // tokens, the rows of a page

double codec_share(const CodecSpec& codec) {
  return codec.is_float() ? 1.0 : codec.coding.bits / kHalfBits;
}

// Of all tiers; scales are left out.
double side_share(const SideSpec& side) {
  using Kind = ProjectorSpec::Kind;
  const Kind kind = side.projector.kind;
  const bool keeps_width =
      kind == Kind::none || kind == Kind::hadamard || kind == Kind::rotation || kind == Kind::klt;
  if (!keeps_width) return 0;
  double least = 1;
  for (int tier = 0; tier < side.n_tiers(); ++tier) {
    least = std::min(least, codec_share(side.codec_of(tier)));
  }
  return least;
}

}  // namespace

double sealed_share(const CacheSpec& cache, std::span<const LayerShape> layers) {
  const auto keeps_rows = [](const LayerShape& layer) {
    return layer.window == 0 && layer.latents == nullptr;
  };
  if (cache.selector.kind != SelectorSpec::Kind::full) return 0;
  if (!std::ranges::all_of(layers, keeps_rows)) return 0;
  double least = std::min(side_share(cache.k), side_share(cache.v));
  for (const LayerRule& rule : cache.rules) {
    if (rule.k) least = std::min(least, side_share(*rule.k));
    if (rule.v) least = std::min(least, side_share(*rule.v));
  }
  return least;
}

int64_t pass_tokens(int64_t n_batch, double share, int64_t left) {
  for (int64_t more = n_batch / kStep * kStep; more > 0; more -= kStep) {
    const int64_t behind = left - n_batch - more;
    if (behind > 0 && static_cast<double>(more) <= share * static_cast<double>(behind)) {
      return n_batch + more;
    }
  }
  return std::min(n_batch, left);
}

}  // namespace kve
