#include "base/half.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

namespace kve {
namespace {

// The value of a binary16 number by its definition, in double precision.
double half_by_definition(uint16_t bits) {
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  if (exponent == 31) return mantissa != 0 ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

TEST(Half, WidensEveryNumber) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const double expected = half_by_definition(static_cast<uint16_t>(bits));
    const float found = half_to_float(static_cast<uint16_t>(bits));
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(found)) << bits;
    } else {
      EXPECT_EQ(found, expected) << bits;
      EXPECT_EQ(std::signbit(found), std::signbit(expected)) << bits;
    }
  }
}

TEST(Half, NarrowsEveryHalfToItself) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = half_to_float(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(half_to_float(float_to_half(value)))) << bits;
    } else {
      EXPECT_EQ(float_to_half(value), bits);
    }
  }
}

// Between two neighbouring halves the nearer one wins, and the even one at the midpoint.
TEST(Half, RoundsToNearestEven) {
  for (uint32_t bits = 0; bits < 0x7bff; ++bits) {
    const float low = half_to_float(static_cast<uint16_t>(bits));
    const float high = half_to_float(static_cast<uint16_t>(bits + 1));
    const float middle = low + (high - low) / 2;  // exact: one more bit
    const uint32_t even = bits % 2 == 0 ? bits : bits + 1;
    EXPECT_EQ(float_to_half(middle), even);
    EXPECT_EQ(float_to_half(std::nextafter(middle, low)), bits);
    EXPECT_EQ(float_to_half(std::nextafter(middle, high)), bits + 1);
    EXPECT_EQ(float_to_half(-middle), even | 0x8000);
  }
}

TEST(Half, OverflowsToInfinityAtTheRoundingBorder) {
  EXPECT_EQ(float_to_half(65519.996f), 0x7bff);
  EXPECT_EQ(float_to_half(65520.0f), 0x7c00);
  EXPECT_EQ(float_to_half(-1e30f), 0xfc00);
  EXPECT_EQ(float_to_half(INFINITY), 0x7c00);
  EXPECT_EQ(float_to_half(1e-30f), 0);
}

TEST(Bfloat16, RoundsToNearestEven) {
  for (uint32_t bits = 0; bits < 0x7f7f; ++bits) {
    const float low = bf16_to_float(static_cast<uint16_t>(bits));
    const float high = bf16_to_float(static_cast<uint16_t>(bits + 1));
    EXPECT_EQ(float_to_bf16(low), bits);
    const float middle = std::bit_cast<float>((bits << 16) | 0x8000u);
    EXPECT_EQ(float_to_bf16(middle), bits % 2 == 0 ? bits : bits + 1);
    EXPECT_EQ(float_to_bf16(std::nextafter(middle, low)), bits);
    EXPECT_EQ(float_to_bf16(std::nextafter(middle, high)), bits + 1);
  }
  EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(NAN))));
  EXPECT_EQ(float_to_bf16(INFINITY), 0x7f80);
}

}  // namespace
}  // namespace kve
