// Groups at the edges of what group codings take: ties, constants, extremes; and many at once.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "formats/cache/group_code.h"
#include "formats/cache/group_testing.h"
#include "formats/cache/row_groups.h"

namespace kve::testing {
namespace {

TEST(GroupCode, TiesRoundAsEachCodingPrescribes) {
  const std::vector<float> x = {0, 15, 0.5, 1.5, 2.5, 3.5, 13.5, 14.5};
  EXPECT_EQ(ints(Group(make_coding(Coding::asym, 4), x).codes),
            (std::vector<int>{0, 15, 0, 2, 2, 4, 14, 14}));
  std::vector<float> block(32, 0.0f);
  block[0] = 127;
  block[1] = 0.5;
  block[2] = -2.5;
  const Group away(make_coding(Coding::q8_0, 8), block);
  EXPECT_EQ(away.codes[1], 129);
  EXPECT_EQ(away.codes[2], 125);
  // 1 + 1/16 and 1 + 3/16 of e4m3 lie between two codes; the even one is below and above.
  const std::vector<float> floats = {1.75, 1 + 0.0625f, 1 + 0.1875f, -1 - 0.0625f};
  const Group even(make_coding(Coding::e4m3, 8), floats);
  EXPECT_EQ(even.decode(), (std::vector<double>{1.75, 1, 1.25, -1}));
}

TEST(GroupCode, ConstantGroupsAreExactWhereTheyHaveAZero) {
  for (int bits = 1; bits <= 8; ++bits) {
    for (const Fit fit : {Fit::range, Fit::search}) {
      for (const float value : {3.0f, 0.0f, -0.1f, 1e-9f, 7e4f, -3e38f}) {
        const Group group(make_coding(Coding::asym, bits, fit), std::vector<float>(33, value));
        EXPECT_EQ(ints(group.codes), std::vector<int>(33, 0));
        EXPECT_EQ(group.params.scale, 0);
        EXPECT_EQ(group.params.zero, saturate_to_half(value));
      }
    }
  }
}

TEST(GroupCode, GroupsOfZerosDecodeToZero) {
  for (const GroupCoding& coding : all_codings()) {
    const Group group(coding, std::vector<float>(32, 0.0f));
    EXPECT_EQ(group.decode(), std::vector<double>(32, 0.0)) << name_of(coding);
    if (coding.coding == Coding::sym || coding.coding == Coding::lloyd) {
      EXPECT_EQ(group.codes[5], 1 << (coding.bits - 1)) << name_of(coding);
    }
  }
}

TEST(GroupCode, ExtremeValuesSaturate) {
  constexpr float kMost = std::numeric_limits<float>::max();
  constexpr float kLeast = std::numeric_limits<float>::denorm_min();
  const std::vector<float> pairs[] = {
      {kMost, -kMost}, {-kMost, kMost}, {kMost, 0},        {kLeast, -kLeast}, {0, kLeast},
      {1e30f, -1e30f}, {65505, 70000},  {1e13f, 0.5f},     {1e-20f, 1e-30f},  {1e18f, 1e19f},
      {1e30f, 1},      {-1e30f, 1},     {3e-39f, -1e-39f}, {1e-7f, -3e-8f},   {3e9f, 2.9e9f},
  };
  for (const GroupCoding& coding : all_codings()) {
    for (const std::vector<float>& pair : pairs) {
      for (const size_t n : {size_t{1}, size_t{2}, size_t{37}}) {
        std::vector<float> x(n, pair[1]);
        x[0] = pair[0];
        const Group group(coding, x);
        for (const double value : group.decode()) {
          EXPECT_TRUE(std::isfinite(value)) << name_of(coding) << " of " << pair[0];
        }
        for (const uint8_t code : group.codes) EXPECT_LT(code, 1 << coding.bits);
        EXPECT_LE(group.params.scale & 0x7fff, 0x7bff) << name_of(coding);
        EXPECT_LE(group.params.zero & 0x7fff, 0x7bff) << name_of(coding);
      }
    }
  }
}

TEST(GroupCode, GroupsSideBySideHaveTheBitsOfSingleOnes) {
  constexpr int kGroups = 37;  // vectors of any width and a rest
  constexpr int kSize = 64;
  constexpr int kStride = 41;
  std::vector<float> x = normal_values(kSize * kStride, 5, 0.1f);
  for (int i = 0; i < kSize; ++i) {
    float* row = x.data() + i * kStride;
    row[3] = 0;
    row[4] = -2.5f;
    row[5] *= 1e30f;
    row[6] *= 1e-12f;
    row[7] += 100;
  }
  for (const GroupCoding& coding : all_codings()) {
    std::vector<uint8_t> codes(kSize * kStride, 0xee);
    std::vector<GroupParams> params(kGroups);
    encode_groups(coding, {x.data(), kStride, kSize, codes.data(), kStride}, kGroups,
                  params.data());
    for (int g = 0; g < kGroups; ++g) {
      std::vector<float> values;
      std::vector<uint8_t> column;
      for (int i = 0; i < kSize; ++i) {
        values.push_back(x[static_cast<size_t>(i * kStride + g)]);
        column.push_back(codes[static_cast<size_t>(i * kStride + g)]);
      }
      const Group single(coding, values);
      ASSERT_EQ(ints(column), ints(single.codes)) << name_of(coding) << " group " << g;
      EXPECT_EQ(params[static_cast<size_t>(g)].scale, single.params.scale) << name_of(coding);
      EXPECT_EQ(params[static_cast<size_t>(g)].zero, single.params.zero) << name_of(coding);
    }
    for (int i = 0; i < kSize; ++i) {
      EXPECT_EQ(codes[static_cast<size_t>(i * kStride + kGroups)], 0xee) << name_of(coding);
    }
  }
}

TEST(GroupCode, RunsOfValuesHaveTheBitsOfSingleOnes) {
  for (const GroupCoding& coding : all_codings()) {
    for (const size_t n : {1, 7, 8, 16, 31, 64, 192}) {
      for (uint64_t kind = 0; kind < 6; ++kind) {
        std::vector<float> x = normal_values(n, kind + n, kind == 1 ? 30.0f : 0.0f);
        for (size_t i = 0; i < n; ++i) {
          if (kind == 2) x[i] = i % 3 == 1 ? 0.0f : -0.0f;
          if (kind == 3) x[i] = i % 5 == 4 ? -0.0f : std::fabs(x[i]) * static_cast<float>(i % 2);
          if (kind == 4) x[i] = i % 2 == 0 ? 2.5f : -2.5f;  // the first of equal magnitudes counts
          if (kind == 5) x[i] *= 1e37f;
        }
        const Group single(coding, x);
        std::vector<uint8_t> codes(n);
        const GroupParams params = encode_run(coding, x.data(), static_cast<int>(n), codes.data());
        ASSERT_EQ(ints(codes), ints(single.codes)) << name_of(coding) << " kind " << kind;
        ASSERT_EQ(params.scale, single.params.scale) << name_of(coding) << " kind " << kind;
        ASSERT_EQ(params.zero, single.params.zero) << name_of(coding) << " kind " << kind;
      }
    }
  }
}

}  // namespace
}  // namespace kve::testing
