// Pages as the presets of KVarN code them, against the published method in float64.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "cache/spec.h"
#include "formats/cache/group_testing.h"
#include "formats/cache_codecs.h"

namespace kve::testing {
namespace {

constexpr int kWidth = 32;

double rms(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::pow(double{a[i]} - double{b[i]}, 2);
  return std::sqrt(sum / static_cast<double>(a.size()));
}

std::vector<float> decoded(const PageFormat& format, const std::vector<float>& tile) {
  std::vector<std::byte> page(page_bytes(format));
  std::vector<std::byte> scratch(encode_scratch(format));
  EXPECT_TRUE(
      encode_rows(format, tile.data(), kWidth, page.data(), 0, kPageTokens, scratch.data()));
  std::vector<float> out(tile.size());
  decode_rows(format, page.data(), 0, kPageTokens, 0, kWidth, out.data(), kWidth);
  return out;
}

// The engine chooses codes for parameters as they are stored, the method before they are rounded to
// binary16, which moves values by up to 2^-12 of 15 scales and of the zero, less than 1 % of a
// step: so many may be nearer to another code. All others differ by what binary16 loses (2^-11 of
// the largest value of a line, for each of scale, zero and factor).
TEST(KVarN, PagesDecodeAsThePublishedMethodDoes) {
  const std::vector<float> tile = read_codec_golden<float>("kvarn.f32");
  ASSERT_EQ(tile.size(), size_t{kPageTokens * kWidth});
  for (const int bits : {2, 4}) {
    const CacheSpec spec = CacheSpec::parse("kvarn" + std::to_string(bits));
    for (const bool values : {false, true}) {
      const PageFormat format = page_format((values ? spec.v : spec.k).codec, kWidth, values);
      const std::vector<float> found = decoded(format, tile);
      const std::vector<float> golden = read_codec_golden<float>(
          std::string("kvarn_") + (values ? "values" : "keys") + std::to_string(bits) + ".f32");
      ASSERT_EQ(golden.size(), tile.size());
      const double loss = rms(golden, tile);
      EXPECT_NEAR(rms(found, tile), loss, 0.002 * loss) << bits << " bits";
      size_t others = 0;
      for (size_t i = 0; i < tile.size(); ++i) {
        const size_t line = values ? i / kWidth : i % kWidth;
        double most = 0;
        for (size_t k = 0; k < tile.size(); ++k) {
          if ((values ? k / kWidth : k % kWidth) == line) {
            most = std::max(most, std::abs(double{tile[k]}));
          }
        }
        others += std::abs(double{found[i]} - double{golden[i]}) > 0x1p-9 * most ? 1 : 0;
      }
      EXPECT_LE(others, tile.size() / 100) << bits << " bits, " << (values ? "values" : "keys");
    }
  }
}

// The lines that share a scale are channels of keys and tokens of values.
TEST(KVarN, KeysAreCodedByChannelAndValuesByToken) {
  const CacheSpec spec = CacheSpec::parse("kvarn3");
  EXPECT_EQ(spec.k.codec.per, Per::channel);
  EXPECT_EQ(spec.v.codec.per, Per::token);
  for (const SideSpec* side : {&spec.k, &spec.v}) {
    EXPECT_EQ(side->projector.kind, ProjectorSpec::Kind::hadamard);
    EXPECT_EQ(side->codec.channels, Channels::scaled);
    // Codes, a scale and a zero for each line, a factor for each of the other axis.
    EXPECT_EQ(bits_per_value(side->codec, 64, 64, side == &spec.v), 3 + 3 * 16.0 / 64);
  }
}

}  // namespace
}  // namespace kve::testing
