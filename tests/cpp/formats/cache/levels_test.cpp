#include "formats/cache/levels.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/random.h"
#include "formats/cache/group_scale.h"

namespace kve {
namespace {

// OFP8's definition: sign, exponent with bias 7 or 15, mantissa.
TEST(Levels, OfEightBitFloatsFollowTheirDefinition) {
  for (unsigned code = 0; code < 256; ++code) {
    for (const int mantissa_bits : {3, 2}) {
      const int bias = mantissa_bits == 3 ? 7 : 15;
      const int exponent = static_cast<int>((code & 127u) >> mantissa_bits);
      const double mantissa =
          (code & ((1u << mantissa_bits) - 1)) / static_cast<double>(1 << mantissa_bits);
      const double number = exponent == 0 ? std::ldexp(mantissa, 1 - bias)
                                          : std::ldexp(1 + mantissa, exponent - bias);
      const double scaled = std::ldexp(number, mantissa_bits == 3 ? -8 : -15);
      const Coding coding = mantissa_bits == 3 ? Coding::e4m3 : Coding::e5m2;
      EXPECT_EQ(double{level(coding, 8, code)}, code < 128 ? scaled : -scaled) << code;
    }
  }
}

TEST(Levels, AscendWithTheirCodes) {
  for (int c = 0; c <= static_cast<int>(Coding::nf4); ++c) {
    const auto coding = static_cast<Coding>(c);
    for (int bits = 1; bits <= 8; ++bits) {
      if (!is_valid_bits(coding, bits)) continue;
      for (unsigned code = 1; code < 1u << bits; ++code) {
        EXPECT_LT(level(coding, bits, code - 1), level(coding, bits, code)) << c << ' ' << bits;
      }
    }
  }
}

// Centroids are the means of normal numbers between the middles: the condition of Lloyd and Max.
TEST(Levels, OfLloydAreMeansOfTheirCells) {
  const auto density = [](double t) { return std::exp(-t * t / 2) / std::sqrt(2 * M_PI); };
  const auto below = [](double t) { return std::erfc(-t / std::sqrt(2)) / 2; };
  for (int bits = 1; bits <= 4; ++bits) {
    const unsigned n = 1u << bits;
    const auto at = [&](unsigned k) { return double{level(Coding::lloyd, bits, k)}; };
    for (unsigned k = 0; k < n; ++k) {
      const double from = k == 0 ? -40 : (at(k - 1) + at(k)) / 2;
      const double to = k + 1 == n ? 40 : (at(k) + at(k + 1)) / 2;
      EXPECT_NEAR(at(k), (density(from) - density(to)) / (below(to) - below(from)), 1e-6);
    }
  }
}

TEST(GroupScale, Log8CoversItsRangeWithinASixteenth) {
  EXPECT_EQ(decode_scale(ScaleFormat::log8, 0), 0.0f);
  EXPECT_EQ(decode_scale(ScaleFormat::log8, 1), 0x1.2p-18f);
  EXPECT_EQ(decode_scale(ScaleFormat::log8, 18 * 8), 1.0f);
  EXPECT_EQ(decode_scale(ScaleFormat::log8, 255), 15360.0f);
  for (unsigned code = 0; code < 256; ++code) {
    const float value = decode_scale(ScaleFormat::log8, static_cast<uint16_t>(code));
    EXPECT_EQ(store_scale(ScaleFormat::log8, value), code);
  }
  for (float value = 0x1.2p-18f; value < 15360; value *= 1.0137f) {
    const float decoded = decode_scale(ScaleFormat::log8, store_scale(ScaleFormat::log8, value));
    EXPECT_NEAR(decoded, value, value / 16);
    EXPECT_EQ(round_to_scale(ScaleFormat::log8, value), decoded);
  }
  EXPECT_EQ(store_scale(ScaleFormat::log8, 3e38f), 255);
  EXPECT_EQ(store_scale(ScaleFormat::log8, 1e-30f), 0);
}

TEST(GroupScale, RoundToHalfIsWhatBinary16Stores) {
  Random random(9);
  for (int i = 0; i < 200000; ++i) {
    const auto bits = static_cast<uint32_t>(random.uniform() * 4294967296.0);
    const float value = float_from_bits(bits);
    if (!is_finite(value)) continue;
    const uint16_t nearest = float_to_half(value);
    const bool overflows = (nearest & 0x7fffu) == 0x7c00u;
    ASSERT_EQ(saturate_to_half(value), overflows ? nearest - 1 : nearest) << value;
    ASSERT_EQ(bits_of_float(round_to_half(value)),
              bits_of_float(half_to_float(saturate_to_half(value))))
        << value;
  }
}

}  // namespace
}  // namespace kve
