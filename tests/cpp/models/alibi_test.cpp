#include "models/arch/alibi.h"

#include <gtest/gtest.h>

#include <cmath>

namespace kve {
namespace {

void expect_powers(const std::vector<float>& slopes, const std::vector<double>& powers) {
  ASSERT_EQ(slopes.size(), powers.size());
  for (size_t i = 0; i < slopes.size(); ++i) {
    EXPECT_FLOAT_EQ(slopes[i], static_cast<float>(std::pow(2.0, -powers[i]))) << i;
  }
}

// arXiv:2108.12409, section 3: 1/2, 1/4, ... for 8 heads.
TEST(Alibi, PowersOfTwo) {
  expect_powers(alibi_slopes(8, 8), {1, 2, 3, 4, 5, 6, 7, 8});
  expect_powers(alibi_slopes(4, 4), {1, 2, 3, 4});
  expect_powers(alibi_slopes(1, 8), {8});
}

// As build_alibi_tensor of transformers has them.
TEST(Alibi, OtherNumbersOfHeads) {
  expect_powers(alibi_slopes(12, 8), {1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5});
  expect_powers(alibi_slopes(6, 8), {2, 4, 6, 8, 1, 3});
  expect_powers(alibi_slopes(3, 8), {4, 8, 2});
  expect_powers(alibi_slopes(7, 4), {1, 2, 3, 4, 0.5, 1.5, 2.5});
}

}  // namespace
}  // namespace kve
