#include "sampling/weights.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/random.h"

namespace kve {
namespace {

TEST(Weights, ExpIsWithinItsBoundOfTheLibrary) {
  EXPECT_EQ(exp_weight(0.0), 1.0);
  Random random(1);
  for (int i = 0; i < 200000; ++i) {
    // Half of the points near zero, where most of the mass is.
    const double x = -random.uniform() * (i % 2 == 0 ? 2.0 : 690.0);
    const double exact = std::exp(x);
    ASSERT_LE(std::fabs(exp_weight(x) - exact), exact * 0x1p-28) << "x = " << x;
  }
}

TEST(Weights, ExpOfTheFarLeftIsZero) {
  EXPECT_GT(exp_weight(-689.9), 0.0);
  EXPECT_EQ(exp_weight(-690.1), 0.0);
  EXPECT_EQ(exp_weight(-1e300), 0.0);
  EXPECT_EQ(exp_weight(-std::numeric_limits<double>::infinity()), 0.0);
}

TEST(Weights, ExpTimesAFloatIsExact) {
  Random random(2);
  for (int i = 0; i < 20000; ++i) {
    const double w = exp_weight(-random.uniform() * 30);
    const float x = static_cast<float>(random.uniform() * 30);
    ASSERT_EQ(std::fma(w, static_cast<double>(x), -(w * x)), 0.0);
  }
}

TEST(Weights, LogIsWithinTwoUlpsOfTheLibrary) {
  EXPECT_EQ(log_weight(1.0), 0.0);
  Random random(3);
  for (int i = 0; i < 100000; ++i) {
    const double x = 1 + std::ldexp(random.uniform(), i % 40);
    const double exact = std::log(x);
    // 2^-52 absolutely for the rounding of (m - 1) / (m + 1) after the exponent was taken out.
    ASSERT_LE(std::fabs(log_weight(x) - exact), 0x1p-51 * std::fmax(exact, 1.0)) << "x = " << x;
  }
}

// Exact bits: these must hold with every compiler and instruction set.
TEST(Weights, GoldenBits) {
  EXPECT_EQ(exp_weight(-0.5), 0x1.368b2fcp-1);
  EXPECT_EQ(exp_weight(-20.25), 0x1.b93de1ep-30);
  EXPECT_EQ(log_weight(3.0), 0x1.193ea7aad030ap+0);
  EXPECT_EQ(log_weight(151936.5), 0x1.7dcc8995c190ep+3);
}

}  // namespace
}  // namespace kve
