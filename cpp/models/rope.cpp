#include "models/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace kve {
namespace {

// YaRN (arXiv:2309.00071, section 3.2): the (fractional) pair that turns `rotations` times within
// the original context.
double yarn_pair(const RopeSpec& rope, double rotations) {
  const double turns = rope.original_ctx / (rotations * 2 * std::numbers::pi);
  return rope.rotary_dim * std::log(turns) / (2 * std::log(static_cast<double>(rope.theta)));
}

// Share of extrapolation (the original frequency) for a pair: 1 for fast pairs, 0 for slow ones,
// linear in between.
double yarn_ramp(const RopeSpec& rope, int pair) {
  const double low = std::max(0.0, std::floor(yarn_pair(rope, rope.beta_fast)));
  const double high = std::min(rope.rotary_dim - 1.0, std::ceil(yarn_pair(rope, rope.beta_slow)));
  const double y = (pair - low) / std::max(0.001, high - low);
  return 1 - std::clamp(y, 0.0, 1.0);
}

double scaled_frequency(const RopeSpec& rope, int pair) {
  double frequency = std::pow(static_cast<double>(rope.theta), -2.0 * pair / rope.rotary_dim);
  if (!rope.freq_factors.empty()) frequency /= rope.freq_factors[static_cast<size_t>(pair)];
  switch (rope.scaling) {
    case RopeSpec::Scaling::none:
      return frequency;
    case RopeSpec::Scaling::linear:
      return frequency / rope.factor;
    case RopeSpec::Scaling::yarn: {
      const double share = yarn_ramp(rope, pair) * rope.ext_factor;
      return frequency / rope.factor * (1 - share) + frequency * share;
    }
  }
  return frequency;
}

}  // namespace

RopeTable::RopeTable(const RopeSpec& spec, MemorySource& memory)
    : layout_(spec.layout), memory_(memory) {
  frequencies_.resize(static_cast<size_t>(spec.rotary_dim / 2));
  for (size_t i = 0; i < frequencies_.size(); ++i) {
    frequencies_[i] = scaled_frequency(spec, static_cast<int>(i));
  }
  if (spec.scaling == RopeSpec::Scaling::yarn) {
    magnitude_ = spec.attn_factor;
    if (spec.ext_factor != 0) magnitude_ *= 1 + 0.1 * std::log(static_cast<double>(spec.factor));
  }
}

void RopeTable::set_positions(std::span<const int32_t> positions) {
  const size_t half = frequencies_.size();
  n_positions_ = static_cast<int64_t>(positions.size());
  const size_t n = positions.size() * half;
  cos_ = memory_.get<float>(2 * n);
  sin_ = cos_ + n;
  for (size_t row = 0; row < positions.size(); ++row) {
    for (size_t i = 0; i < half; ++i) {
      const double angle = positions[row] * frequencies_[i];
      cos_[row * half + i] = static_cast<float>(std::cos(angle) * magnitude_);
      sin_[row * half + i] = static_cast<float>(std::sin(angle) * magnitude_);
    }
  }
}

ConstMat RopeTable::cos() const {
  return {cos_, n_positions_, static_cast<int64_t>(frequencies_.size())};
}
ConstMat RopeTable::sin() const {
  return {sin_, n_positions_, static_cast<int64_t>(frequencies_.size())};
}

}  // namespace kve
