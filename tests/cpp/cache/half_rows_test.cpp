#include "cache/half_rows.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace kve {
namespace {

TEST(HalfRows, EveryHalfBecomesItsFloat) {
  // An odd count, so that some are converted one by one.
  std::vector<uint16_t> halves(65536 + 3);
  std::iota(halves.begin(), halves.end(), uint16_t{0});
  std::vector<float> floats(halves.size());
  halves_to_floats(halves.data(), floats.data(), static_cast<int>(halves.size()));
  for (size_t i = 0; i < halves.size(); ++i) {
    ASSERT_EQ(bits_of_float(floats[i]), bits_of_float(half_to_float(halves[i]))) << halves[i];
  }
}

}  // namespace
}  // namespace kve
