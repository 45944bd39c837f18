// The oracle is gguf.quants; tests/oracle/make_weight_golden.py writes the files read here.
#include "formats/weight_formats.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"

namespace kve {
namespace {

// Blocks and the values that they stand for.
struct Golden {
  int64_t n_values = 0;
  std::vector<std::byte> bytes;
  std::vector<float> values;
};

std::vector<char> read_fixture(const std::string& name) {
  std::ifstream file(std::string(KVE_TEST_FIXTURES) + "/weights/" + name, std::ios::binary);
  EXPECT_TRUE(file.good()) << "missing fixture " << name;
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// Files NAME.decode hold the bytes first, files NAME.encode the values.
Golden read_golden(const WeightFormat& format, const std::string& kind) {
  const std::vector<char> file = read_fixture(std::string(format.name) + "." + kind);
  Golden golden;
  uint32_t n_blocks = 0;
  if (file.size() < sizeof(n_blocks)) return golden;
  std::memcpy(&n_blocks, file.data(), sizeof(n_blocks));
  golden.n_values = static_cast<int64_t>(n_blocks) * format.block_values;
  golden.bytes.resize(row_bytes(format.type, golden.n_values));
  golden.values.resize(static_cast<size_t>(golden.n_values));
  const size_t value_bytes = golden.values.size() * sizeof(float);
  EXPECT_EQ(file.size(), sizeof(n_blocks) + golden.bytes.size() + value_bytes);
  const char* first = file.data() + sizeof(n_blocks);
  if (kind == "decode") {
    std::memcpy(golden.bytes.data(), first, golden.bytes.size());
    std::memcpy(golden.values.data(), first + golden.bytes.size(), value_bytes);
  } else {
    std::memcpy(golden.values.data(), first, value_bytes);
    std::memcpy(golden.bytes.data(), first + value_bytes, golden.bytes.size());
  }
  return golden;
}

// Equal bits, or both NaN: which NaN an operation gives depends on the order of its operands.
bool same(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b) || (a != a && b != b);
}

class EveryWeightFormat : public testing::TestWithParam<WeightFormat> {};

TEST_P(EveryWeightFormat, DecodesExactlyAsTheOracle) {
  const WeightFormat& format = GetParam();
  const Golden golden = read_golden(format, "decode");
  ASSERT_GE(golden.n_values, 12);
  std::vector<float> decoded(golden.values.size());
  format.decode(golden.bytes.data(), decoded.data(), golden.n_values);
  for (size_t i = 0; i < decoded.size(); ++i) {
    ASSERT_TRUE(same(decoded[i], golden.values[i]))
        << "value " << i << ": " << decoded[i] << " is not " << golden.values[i];
  }
}

TEST_P(EveryWeightFormat, DecodesFromAnyAddress) {
  const WeightFormat& format = GetParam();
  const Golden golden = read_golden(format, "decode");
  std::vector<float> aligned(golden.values.size()), shifted(golden.values.size());
  format.decode(golden.bytes.data(), aligned.data(), golden.n_values);
  std::vector<std::byte> storage(golden.bytes.size() + 1);
  std::memcpy(storage.data() + 1, golden.bytes.data(), golden.bytes.size());
  format.decode(storage.data() + 1, shifted.data(), golden.n_values);
  EXPECT_EQ(std::memcmp(aligned.data(), shifted.data(), aligned.size() * sizeof(float)), 0);
}

// The header promises that scale * code + min is exactly the value, each operation rounded to
// float32, so nothing needs a tolerance; only the sign of zero may differ where min is a +0 that
// decode does not add.
TEST_P(EveryWeightFormat, UnpackedCodesGiveTheDecodedValues) {
  const WeightFormat& format = GetParam();
  if (format.unpack == nullptr) return;  // ListsNumbersWithoutCodes says which ones
  const Golden golden = read_golden(format, "decode");
  const int64_t n_groups = golden.n_values / kGroupValues;
  std::vector<CodeGroup> groups(static_cast<size_t>(n_groups));
  format.unpack(golden.bytes.data(), 0, n_groups, groups.data());
  bool any_min = false;
  for (size_t i = 0; i < golden.values.size(); ++i) {
    const CodeGroup& group = groups[i / 32];
    const size_t part = i % 32 / 16;
    const volatile float product = group.scale[part] * static_cast<float>(group.codes[i % 32]);
    const float value = product + group.min[part];
    any_min |= group.min[part] != 0.0f;
    ASSERT_TRUE(same(value, golden.values[i]) || (value == 0.0f && golden.values[i] == 0.0f))
        << "value " << i << ": " << value << " is not " << golden.values[i];
  }
  EXPECT_EQ(any_min, format.has_min);
}

TEST_P(EveryWeightFormat, UnpacksAnyRangeOfGroups) {
  const WeightFormat& format = GetParam();
  if (format.unpack == nullptr) return;
  const Golden golden = read_golden(format, "decode");
  std::vector<CodeGroup> all(11), some(5);
  format.unpack(golden.bytes.data(), 0, 11, all.data());
  for (int64_t first = 0; first <= 6; ++first) {
    format.unpack(golden.bytes.data(), first, 5, some.data());
    EXPECT_EQ(std::memcmp(&all[static_cast<size_t>(first)], some.data(), 5 * sizeof(CodeGroup)), 0);
  }
}

TEST_P(EveryWeightFormat, ZeroValuesTouchNothing) {
  const WeightFormat& format = GetParam();
  format.decode(nullptr, nullptr, 0);
  if (format.encode != nullptr) format.encode(nullptr, nullptr, 0);
  if (format.unpack != nullptr) format.unpack(nullptr, 0, 0, nullptr);
  EXPECT_EQ(row_bytes(format.type, 0), 0u);
}

TEST_P(EveryWeightFormat, RowBytesCountsWholeBlocks) {
  const WeightFormat& format = GetParam();
  EXPECT_EQ(row_bytes(format.type, 3 * format.block_values),
            static_cast<size_t>(3 * format.block_bytes));
  EXPECT_THROW(row_bytes(format.type, -format.block_values), FormatError);
  if (format.block_values > 1) {
    EXPECT_THROW(row_bytes(format.type, 3 * format.block_values + 1), FormatError);
  }
}

INSTANTIATE_TEST_SUITE_P(Weights, EveryWeightFormat, testing::ValuesIn(weight_formats()),
                         [](const auto& each) { return std::string(each.param.name); });

TEST(WeightFormats, ListIsOrderedAndFindable) {
  EXPECT_EQ(weight_formats().size(), 31u);
  std::set<std::string_view> names;
  int64_t previous = -1;
  for (const WeightFormat& each : weight_formats()) {
    EXPECT_GT(static_cast<int64_t>(each.type), previous);
    previous = static_cast<int64_t>(each.type);
    EXPECT_TRUE(names.insert(each.name).second) << each.name;
    EXPECT_EQ(find_format(static_cast<uint32_t>(each.type)), &each);
    EXPECT_EQ(&format(each.type), &each);
  }
}

TEST(WeightFormats, ListsNumbersWithoutCodes) {
  const std::set<std::string_view> numbers = {"F32", "F16", "BF16", "F64",
                                              "I8",  "I16", "I32",  "I64"};
  for (const WeightFormat& each : weight_formats()) {
    EXPECT_EQ(each.unpack == nullptr, numbers.contains(each.name)) << each.name;
  }
}

TEST(WeightFormats, UnknownNumbersAreRefused) {
  for (const uint32_t number : {4u, 5u, 9u, 31u, 36u, 40u, 1000u, 0xffffffffu}) {
    EXPECT_EQ(find_format(number), nullptr) << number;
  }
  try {
    (void)format(static_cast<WeightType>(36));
    FAIL() << "expected an UnsupportedError";
  } catch (const UnsupportedError& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("36"), std::string::npos) << text;
    EXPECT_NE(text.find("IQ4_XS"), std::string::npos) << text;
  }
}

TEST(WeightFormats, RowBytesRefusesSizesThatOverflow) {
  EXPECT_THROW(row_bytes(WeightType::f64, int64_t{1} << 62), FormatError);
  EXPECT_EQ(row_bytes(WeightType::f64, int64_t{1} << 40), size_t{1} << 43);
}

TEST(WeightFormats, EncodesExactlyAsTheOracle) {
  for (const WeightType type :
       {WeightType::f16, WeightType::bf16, WeightType::q8_0, WeightType::q4_0, WeightType::q4_1,
        WeightType::q5_0, WeightType::q5_1}) {
    const WeightFormat& weights = format(type);
    const Golden golden = read_golden(weights, "encode");
    ASSERT_GT(golden.n_values, 1000);
    std::vector<std::byte> encoded(golden.bytes.size());
    weights.encode(golden.values.data(), encoded.data(), golden.n_values);
    for (size_t i = 0; i < encoded.size(); ++i) {
      ASSERT_EQ(encoded[i], golden.bytes[i])
          << weights.name << " block " << i / static_cast<size_t>(weights.block_bytes) << " byte "
          << i % static_cast<size_t>(weights.block_bytes);
    }
  }
}

}  // namespace
}  // namespace kve
