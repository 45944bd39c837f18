#include "engine/pass_length.h"

#include <gtest/gtest.h>

#include <vector>

#include "engine/tiny_model.h"

namespace kve::test {
namespace {

double share(std::string_view cache, int window = 0) {
  const std::vector<LayerShape> layers = {{.n_kv_heads = 1, .key_dim = 64, .value_dim = 64},
                                          {1, 64, 64, window}};
  return sealed_share(CacheSpec::parse(cache), layers);
}

TEST(PassLength, ShareOfTheLeastSide) {
  EXPECT_EQ(share("int4"), 0.25);
  EXPECT_EQ(share("best4"), 0.25);
  EXPECT_EQ(share("best2"), 0.125);
  EXPECT_EQ(share("q8_0"), 0.5);
  EXPECT_EQ(share("v=int8"), 0.5);
  EXPECT_EQ(share("best42"), 0.125);
  EXPECT_EQ(share("f16+int4:first=1"), 0.25);
}

TEST(PassLength, NoShareWhereRowsAreFewerOrDropped) {
  EXPECT_EQ(share("int4", 100), 0);
  EXPECT_EQ(share("h2o:keep=0.5,prompt=chunked"), 0);
  EXPECT_EQ(share("mpo:block=8+sym4:group=row"), 0);
}

// Sealed rows and those of the pass that is read, in rows of binary16, are never more than at the
// end of a prompt whose last pass is one of 256.
TEST(PassLength, ThePeakIsThatOfShortPasses) {
  for (const double share : {0.0625, 0.125, 0.25, 0.5, 1.0}) {
    for (const int64_t total : {1, 256, 257, 700, 1300, 5000, 32768}) {
      const double peak = share * static_cast<double>(total - 256) + 256;
      int64_t longest = 0;
      for (int64_t done = 0; done < total;) {
        const int64_t n = pass_tokens(256, share, total - done);
        ASSERT_GE(n, std::min<int64_t>(256, total - done));
        ASSERT_LE(n, std::min<int64_t>(512, total - done));
        const double held = share * static_cast<double>(done) + static_cast<double>(n);
        if (total > 256) {
          EXPECT_LE(held, peak) << total << " tokens, share " << share;
        }
        longest = std::max(longest, n);
        done += n;
      }
      EXPECT_EQ(longest == 512, share * static_cast<double>(total - 512) >= 256)
          << total << " tokens, share " << share;
    }
  }
}

TEST(PassLength, NoShareNoLongerPasses) {
  EXPECT_EQ(pass_tokens(256, 0, 100000), 256);
  EXPECT_EQ(pass_tokens(32, 0, 100), 32);
  EXPECT_EQ(pass_tokens(512, 0, 100), 100);
}

}  // namespace
}  // namespace kve::test
