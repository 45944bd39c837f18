#include "models/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

namespace kve {
namespace {

RopeSpec plain(int rotary_dim) {
  RopeSpec spec;
  spec.rotary_dim = rotary_dim;
  return spec;
}

TEST(Rope, AnglesFollowTheDefinition) {
  RopeTable table(plain(8));
  const std::vector<int32_t> positions = {0, 1, 7, 100000};
  table.set_positions(positions);
  for (size_t row = 0; row < positions.size(); ++row) {
    for (int pair = 0; pair < 4; ++pair) {
      const double angle = positions[row] * std::pow(10000.0, -2.0 * pair / 8);
      // Stored as f32: half a unit in the last place of numbers up to 1.
      EXPECT_NEAR(table.cos().row(static_cast<int64_t>(row))[pair], std::cos(angle), 6e-8);
      EXPECT_NEAR(table.sin().row(static_cast<int64_t>(row))[pair], std::sin(angle), 6e-8);
    }
  }
}

TEST(Rope, LinearScalingStretchesPositions) {
  RopeSpec spec = plain(8);
  spec.scaling = RopeSpec::Scaling::linear;
  spec.factor = 4;
  const RopeTable stretched(spec);
  const RopeTable original(plain(8));
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_DOUBLE_EQ(stretched.frequencies()[i], original.frequencies()[i] / 4);
  }
}

TEST(Rope, FrequencyFactorsDivide) {
  RopeSpec spec = plain(8);
  spec.freq_factors = {1, 2, 4, 8};
  const RopeTable scaled(spec);
  const RopeTable original(plain(8));
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_DOUBLE_EQ(scaled.frequencies()[i], original.frequencies()[i] / spec.freq_factors[i]);
  }
}

// arXiv:2309.00071: pairs that turn more than beta_fast times within the original context keep
// their frequency, those that turn less than beta_slow times are interpolated.
TEST(Rope, YarnKeepsFastPairsAndInterpolatesSlowOnes) {
  RopeSpec spec = plain(128);
  spec.scaling = RopeSpec::Scaling::yarn;
  spec.factor = 16;
  spec.original_ctx = 4096;
  const RopeTable yarn(spec);
  const RopeTable original(plain(128));
  for (size_t i = 0; i < 64; ++i) {
    const double turns = 4096 * original.frequencies()[i] / (2 * std::numbers::pi);
    const double share = yarn.frequencies()[i] / original.frequencies()[i];
    if (turns > 40) {
      EXPECT_DOUBLE_EQ(share, 1) << i;
    }
    if (turns < 0.8) {
      EXPECT_NEAR(share, 1.0 / 16, 1e-12) << i;
    }
    EXPECT_GE(share, 1.0 / 16 - 1e-12);
    EXPECT_LE(share, 1 + 1e-12);
    if (i > 0) {
      EXPECT_LE(yarn.frequencies()[i], yarn.frequencies()[i - 1]);
    }
  }
  EXPECT_DOUBLE_EQ(yarn.magnitude(), 0.1 * std::log(16.0) + 1);
}

}  // namespace
}  // namespace kve
