// Oracles: float64 definitions and the gguf package (tests/oracle/make_codec_golden.py), and the
// vectors of the method specification.
#include "formats/cache_codecs.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include "base/random.h"
#include "formats/cache/int_group.h"

namespace kve {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr int kWidth = 64;  // of the golden rows

std::vector<char> read_fixture(const std::string& name) {
  std::ifstream file(std::string(KVE_TEST_FIXTURES) + "/codecs/" + name, std::ios::binary);
  EXPECT_TRUE(file.good()) << "missing fixture " << name;
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::vector<float> read_floats(const std::string& name) {
  const std::vector<char> bytes = read_fixture(name);
  std::vector<float> out(bytes.size() / sizeof(float));
  std::memcpy(out.data(), bytes.data(), out.size() * sizeof(float));
  return out;
}

// One page, with bytes that nobody wrote set to `fill`.
struct Page {
  Page(const CodecSpec& spec_, int width_, unsigned char fill = 0xa5)
      : spec(spec_), width(width_), bytes(page_bytes(spec_, width_), std::byte{fill}) {}

  bool encode(const std::vector<float>& rows, int first_row = 0) {
    const int n = static_cast<int>(rows.size()) / width;
    return codec(spec.id).encode(rows.data(), width, bytes.data(), first_row, n, width, spec.group);
  }
  std::vector<float> decode(int first_row, int n) const {
    std::vector<float> out(static_cast<size_t>(n * width));
    codec(spec.id).decode(bytes.data(), first_row, n, width, spec.group, out.data(), width);
    return out;
  }

  CodecSpec spec;
  int width;
  std::vector<std::byte> bytes;
};

// Every codec, with every group it may have.
std::vector<CodecSpec> all_specs() {
  std::vector<CodecSpec> out;
  for (const CacheCodec& entry : cache_codecs()) {
    if (!entry.group_is_free) {
      out.push_back({entry.id, entry.default_group});
      continue;
    }
    for (const int group : kCacheGroups) out.push_back({entry.id, group});
  }
  return out;
}

std::string name_of(const CodecSpec& spec) {
  return std::string(codec(spec.id).name) + " group " + std::to_string(spec.group);
}

TEST(CacheCodecs, PagesEqualTheGoldenBytes) {
  const std::vector<float> values = read_floats("values.f32");
  ASSERT_EQ(values.size(), static_cast<size_t>(kPageTokens * kWidth));
  const struct {
    const char* name;
    CodecSpec spec;
  } goldens[] = {
      {"f16", {CodecId::f16, 0}},        {"bf16", {CodecId::bf16, 0}},
      {"q8_0", {CodecId::q8_0, 32}},     {"q4_0", {CodecId::q4_0, 32}},
      {"int8_g8", {CodecId::int8, 8}},   {"int8_g32", {CodecId::int8, 32}},
      {"int4_g32", {CodecId::int4, 32}}, {"int4_g64", {CodecId::int4, 64}},
  };
  for (const auto& golden : goldens) {
    SCOPED_TRACE(golden.name);
    Page page(golden.spec, kWidth);
    ASSERT_TRUE(page.encode(values));
    const std::vector<char> bytes = read_fixture(std::string(golden.name) + ".page");
    ASSERT_EQ(page.bytes.size(), bytes.size());
    for (size_t i = 0; i < bytes.size(); ++i) {
      ASSERT_EQ(static_cast<int>(page.bytes[i]), static_cast<unsigned char>(bytes[i]))
          << "byte " << i;
    }
    EXPECT_EQ(page.decode(0, kPageTokens), read_floats(std::string(golden.name) + ".f32"));
  }
}

TEST(CacheCodecs, F32KeepsEveryBit) {
  const std::vector<float> values = read_floats("values.f32");
  Page page({CodecId::f32, 0}, kWidth);
  ASSERT_TRUE(page.encode(values));
  EXPECT_EQ(page.decode(0, kPageTokens), values);
}

// Section 17.1 of the method specification: x = [0, 0.5, -1, 2, 3.5, -0.25, 1.25, -2].
TEST(CacheCodecs, Asym4VectorOfTheSpecification) {
  const std::vector<float> x = {0, 0.5, -1, 2, 3.5, -0.25, 1.25, -2};
  Page page({CodecId::int4, 8}, 8);
  ASSERT_TRUE(page.encode(x));
  // Codes 5 7 3 11 15 5 9 0, even channels in low nibbles.
  const unsigned char codes[] = {0x75, 0xb3, 0x5f, 0x09};
  EXPECT_EQ(std::memcmp(page.bytes.data(), codes, sizeof(codes)), 0);
  uint16_t scale_and_min[2];
  std::memcpy(scale_and_min, page.bytes.data() + 64 * 4, sizeof(scale_and_min));
  // 5.5 / 15 = 0.3666667 in binary16 is 0.36669922.
  EXPECT_EQ(half_to_float(scale_and_min[0]), 0.36669921875f);
  EXPECT_EQ(half_to_float(scale_and_min[1]), -2.0f);
  const std::vector<float> decoded = page.decode(0, 1);
  double squares = 0;
  for (size_t i = 0; i < x.size(); ++i) squares += std::pow(double{decoded[i]} - double{x[i]}, 2);
  // The specification's error is that of an unrounded scale; 15 * 3.3e-5 of shift at most.
  EXPECT_NEAR(squares / 8, 0.0065972, 2e-4);
}

TEST(CacheCodecs, Q4_0VectorOfTheSpecification) {
  for (const float first : {4.0f, -4.0f}) {
    std::vector<float> x(32, 0.0f);
    x[0] = first;
    Page page({CodecId::q4_0, 32}, 32);
    ASSERT_TRUE(page.encode(x));
    uint16_t d = 0;
    std::memcpy(&d, page.bytes.data(), sizeof(d));
    EXPECT_EQ(half_to_float(d), first / -8);
    EXPECT_EQ(page.bytes[2], std::byte{0x80});  // code 0, and 8 for value 16
    EXPECT_EQ(page.bytes[3], std::byte{0x88});
    EXPECT_EQ(page.decode(0, 1), x);
  }
}

TEST(CacheCodecs, ConstantGroupsDecodeToTheirMinimum) {
  for (const CodecId id : {CodecId::int8, CodecId::int4}) {
    for (const float value : {3.0f, 0.0f, -0.1f, 1e-9f, 7e4f, -3e38f}) {
      Page page({id, 32}, 32);
      ASSERT_TRUE(page.encode(std::vector<float>(32, value)));
      const float stored = half_to_float(saturate_to_half(value));
      EXPECT_EQ(page.decode(0, 1), std::vector<float>(32, stored)) << value;
    }
  }
}

TEST(CacheCodecs, ZeroBlocksDecodeToZero) {
  for (const CodecSpec& spec : all_specs()) {
    Page page(spec, 128);
    ASSERT_TRUE(page.encode(std::vector<float>(128, 0.0f)));
    EXPECT_EQ(page.decode(0, 1), std::vector<float>(128, 0.0f)) << name_of(spec);
  }
}

TEST(CacheCodecs, TiesRoundToEven) {
  // Minimum 0 and scale 1, so that the halves are ties.
  std::vector<float> x = {0, 15, 0.5, 1.5, 2.5, 3.5, 13.5, 14.5};
  Page four({CodecId::int4, 8}, 8);
  ASSERT_TRUE(four.encode(x));
  EXPECT_EQ(four.decode(0, 1), (std::vector<float>{0, 15, 0, 2, 2, 4, 14, 14}));
  x[1] = 255;
  Page eight({CodecId::int8, 8}, 8);
  ASSERT_TRUE(eight.encode(x));
  EXPECT_EQ(eight.decode(0, 1), (std::vector<float>{0, 255, 0, 2, 2, 4, 14, 14}));
  // The ggml blocks round halves away from zero (q8_0) and up (q4_0).
  std::vector<float> block(32, 0.0f);
  block[0] = 127;
  block[1] = 0.5;
  block[2] = -2.5;
  Page q8({CodecId::q8_0, 32}, 32);
  ASSERT_TRUE(q8.encode(block));
  EXPECT_EQ(q8.decode(0, 1)[1], 1.0f);
  EXPECT_EQ(q8.decode(0, 1)[2], -3.0f);
  block[0] = -8;
  Page q4({CodecId::q4_0, 32}, 32);
  ASSERT_TRUE(q4.encode(block));
  EXPECT_EQ(q4.decode(0, 1)[1], 1.0f);
  EXPECT_EQ(q4.decode(0, 1)[2], -2.0f);
}

TEST(CacheCodecs, NonFiniteValuesAreRefusedWhereverTheyStand) {
  for (const CodecSpec& spec : all_specs()) {
    for (const float bad : {kNan, -kNan, kInf, -kInf}) {
      for (const int at : {0, 31, 77, 127}) {
        std::vector<float> x(2 * 128, 1.0f);
        x[static_cast<size_t>(128 + at)] = bad;
        Page page(spec, 128);
        EXPECT_FALSE(page.encode(x)) << name_of(spec) << " value " << bad << " at " << at;
      }
    }
  }
}

TEST(CacheCodecs, HugeAndTinyFiniteValuesSaturateWithoutNan) {
  const float most = std::numeric_limits<float>::max();
  const float least = std::numeric_limits<float>::denorm_min();
  const std::vector<float> extremes[] = {
      {most, -most}, {-most, most}, {most, 0}, {least, -least}, {1e6f, -1e6f}, {65505, 70000},
  };
  for (const CodecSpec& spec : all_specs()) {
    for (const std::vector<float>& pair : extremes) {
      std::vector<float> x(128);
      for (size_t i = 0; i < x.size(); ++i) x[i] = pair[i % 2];
      Page page(spec, 128);
      ASSERT_TRUE(page.encode(x)) << name_of(spec);
      for (const float value : page.decode(0, 1)) {
        EXPECT_TRUE(std::isfinite(value)) << name_of(spec) << " of " << pair[0];
      }
    }
  }
  Page half({CodecId::f16, 0}, 32);
  std::vector<float> x(32, 65504);
  x[1] = 65519;
  x[2] = 65520;
  x[3] = -1e30f;
  ASSERT_TRUE(half.encode(x));
  const std::vector<float> decoded = half.decode(0, 1);
  EXPECT_EQ(decoded[1], 65504.0f);
  EXPECT_EQ(decoded[2], 65504.0f);
  EXPECT_EQ(decoded[3], -65504.0f);
}

// A scale that does not fit binary16 must still give the nearest codes of the one that is stored.
TEST(CacheCodecs, SaturatedScalesKeepSmallValuesNearZero) {
  std::vector<float> x(32, 65504.0f);
  x[0] = 1e9f;
  Page page({CodecId::q8_0, 32}, 32);
  ASSERT_TRUE(page.encode(x));
  const std::vector<float> decoded = page.decode(0, 1);
  EXPECT_EQ(decoded[0], 127 * 65504.0f);
  EXPECT_EQ(decoded[1], 65504.0f);
  Page four({CodecId::q4_0, 32}, 32);
  ASSERT_TRUE(four.encode(x));
  EXPECT_EQ(four.decode(0, 1)[0], 8 * 65504.0f);
  EXPECT_EQ(four.decode(0, 1)[1], 65504.0f);
}

// Error of a value: half a step, plus what rounding scale and minimum to binary16 (2^-11 relative)
// shifts the top code by.
TEST(CacheCodecs, ErrorsAreWithinHalfAStep) {
  Random random(7);
  std::vector<float> x(128 * 16);
  for (float& value : x) value = static_cast<float>(random.uniform() * 20 - 8);
  for (const CodecSpec& spec : all_specs()) {
    Page page(spec, 128);
    ASSERT_TRUE(page.encode(x));
    const std::vector<float> decoded = page.decode(0, 16);
    float worst = 0;
    for (size_t i = 0; i < x.size(); ++i) worst = std::max(worst, std::fabs(x[i] - decoded[i]));
    const auto step = [&]() -> float {
      switch (spec.id) {
        case CodecId::f32:
          return 0;
        case CodecId::f16:
          return 8 * 0x1p-10f;
        case CodecId::bf16:
          return 8 * 0x1p-7f;
        case CodecId::q8_0:
          return 12.0f / 127;
        case CodecId::q4_0:
          return 12.0f / 8;
        case CodecId::int8:
          return 20.0f / 255;
        case CodecId::int4:
          return 20.0f / 15;
      }
      return 0;
    };
    const bool is_float = codec(spec.id).is_float();
    // The largest positive q4_0 value may lose a whole step: its code would be 16.
    const float share = spec.id == CodecId::q4_0 ? 1.0f : 0.5f;
    EXPECT_LE(worst, share * step() + (is_float ? 0.0f : 20 * 0x1p-11f)) << name_of(spec);
    // Not so exact that the test could not tell the codecs apart.
    EXPECT_GE(worst, 0.05f * step()) << name_of(spec);
  }
}

TEST(CacheCodecs, RowsAreIndependentAndOthersUntouched) {
  Random random(3);
  std::vector<float> x(128 * kPageTokens);
  for (float& value : x) value = static_cast<float>(random.uniform() - 0.5);
  for (const CodecSpec& spec : all_specs()) {
    Page whole(spec, 128);
    ASSERT_TRUE(whole.encode(x));
    Page parts(spec, 128, 0x5a);
    // Backwards, in pieces, from a source with a wider stride.
    for (int first = kPageTokens; first > 0;) {
      const int n = std::min(first, 7);
      first -= n;
      std::vector<float> wide(static_cast<size_t>(n) * 131, kNan);
      for (int r = 0; r < n; ++r) {
        std::copy_n(x.begin() + (first + r) * 128, 128, wide.begin() + r * 131);
      }
      ASSERT_TRUE(
          codec(spec.id).encode(wide.data(), 131, parts.bytes.data(), first, n, 128, spec.group));
    }
    EXPECT_EQ(whole.bytes, parts.bytes) << name_of(spec);
    // Decoding into a wider stride leaves the gaps alone.
    std::vector<float> out(3 * 130, -7.0f);
    codec(spec.id).decode(whole.bytes.data(), 11, 3, 128, spec.group, out.data(), 130);
    const std::vector<float> expected = whole.decode(11, 3);
    for (int r = 0; r < 3; ++r) {
      EXPECT_TRUE(std::equal(expected.begin() + r * 128, expected.begin() + (r + 1) * 128,
                             out.begin() + r * 130));
      EXPECT_EQ(out[static_cast<size_t>(r * 130 + 129)], -7.0f);
    }
  }
}

TEST(CacheCodecs, SizesAndNames) {
  const struct {
    CodecSpec spec;
    double bits;
  } expected[] = {
      {{CodecId::f32, 0}, 32},    {{CodecId::f16, 0}, 16},    {{CodecId::bf16, 0}, 16},
      {{CodecId::q8_0, 32}, 8.5}, {{CodecId::q4_0, 32}, 4.5}, {{CodecId::int8, 32}, 9},
      {{CodecId::int4, 32}, 5},   {{CodecId::int4, 64}, 4.5}, {{CodecId::int4, 8}, 8},
  };
  for (const auto& [spec, bits] : expected) EXPECT_EQ(bits_per_value(spec), bits) << name_of(spec);
  EXPECT_EQ(page_bytes({CodecId::int4, 32}, 64), 64u * (32 + 8));
  for (const CacheCodec& entry : cache_codecs()) {
    EXPECT_EQ(&codec(entry.id), &entry);
    EXPECT_EQ(find_codec(entry.name), &entry);
  }
  EXPECT_EQ(find_codec("q9_0"), nullptr);
  EXPECT_EQ(find_codec(""), nullptr);
  EXPECT_EQ(codec(CodecId::int4).default_tail, 64);
  EXPECT_EQ(codec(CodecId::q4_0).default_tail, 0);
}

}  // namespace
}  // namespace kve
