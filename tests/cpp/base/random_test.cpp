#include "base/random.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>

namespace kve {
namespace {

using Block = std::array<uint32_t, 4>;

// Published vectors: Random123, tests/kat_vectors, lines "philox4x32 10".
TEST(Random, MatchesThePublishedVectors) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Random, DrawIsAFunctionOfSeedStreamAndIndex) {
  Random random(0x299f31d0a4093822, 0x0370734413198a2e);
  for (uint64_t i = 0; i < 100; ++i) {
    EXPECT_EQ(random.index(), i);
    const Block block =
        philox4x32({static_cast<uint32_t>(i), 0, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0});
    EXPECT_EQ(random.bits(), (static_cast<uint64_t>(block[1]) << 32 | block[0]));
  }
  EXPECT_NE(Random(1).bits(), Random(2).bits());
  EXPECT_NE(Random(1, 0).bits(), Random(1, 1).bits());
}

TEST(Random, UniformFillsTheUnitInterval) {
  Random random(7);
  constexpr int kBins = 64;
  constexpr int kDraws = 64 * 1024;
  std::array<int, kBins> counts{};
  for (int i = 0; i < kDraws; ++i) {
    const double u = random.uniform();
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    ++counts[static_cast<size_t>(u * kBins)];
  }
  double chi2 = 0;
  for (const int n : counts) chi2 += (n - 1024.0) * (n - 1024.0) / 1024.0;
  // 63 degrees of freedom: mean 63, deviation 11.2. The seed is fixed, so this cannot flicker.
  EXPECT_LT(chi2, 63 + 4 * 11.2);
  EXPECT_GT(chi2, 63 - 4 * 11.2);
}

}  // namespace
}  // namespace kve
