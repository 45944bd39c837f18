#include <gtest/gtest.h>

#include <tuple>

#include "kernels/kernel_testing.h"

namespace kve {
namespace {

using test::available_isas;
using test::make_weight;
using test::Random;
using test::TestWeight;

std::vector<float> multiply(Backend& backend, const std::vector<float>& x, int64_t n,
                            const TestWeight& w, Precision precision, const float* bias = nullptr) {
  std::vector<float> y(static_cast<size_t>(n * w.weight.rows), NAN);
  const Product product = {&w.weight, Mat(y.data(), n, w.weight.rows), bias};
  backend.matmul(ConstMat(x.data(), n, w.weight.cols), {&product, 1}, precision);
  return y;
}

std::vector<WeightType> coded_types() {
  std::vector<WeightType> types;
  for (const WeightFormat& fmt : weight_formats()) {
    if (fmt.unpack != nullptr) types.push_back(fmt.type);
  }
  return types;
}

// Every instruction set, with weights as in the file and repacked.
class Matmul : public ::testing::TestWithParam<std::tuple<std::string, bool>> {
 protected:
  static std::string isa() { return std::get<0>(GetParam()); }
  // Whether so many inputs are multiplied as bf16 numbers where others multiply int8.
  static bool rounds_to_bf16(int64_t n) { return isa() == "amx" && n > 16; }
  TestWeight weight(WeightType type, int64_t rows, int64_t cols, uint64_t seed, size_t guard = 0) {
    TestWeight w = make_weight(type, rows, cols, seed, guard);
    if (std::get<1>(GetParam())) test::repack(*backend_, &w);
    return w;
  }
  std::unique_ptr<Backend> backend_ = make_cpu_backend(2, isa());
};

// Bounds on the largest error over the largest result. exact: rounding of f32 sums. fine: 15-bit
// activations. fast: 8-bit activations with a scale per 32, about 0.5 % rms per product (see the
// error table of the design's kernel notes); the largest of many errors is a few times that.
constexpr double kExactBound = 2e-6;
constexpr double kFineBound = 2e-4;
constexpr double kFastBound = 3e-2;

TEST_P(Matmul, EveryCodedTypeInEveryPrecision) {
  for (const WeightType type : coded_types()) {
    // Odd counts do not divide into any tile; one guard byte unaligns the rows.
    const TestWeight w = weight(type, 37, 512, static_cast<uint64_t>(type) + 1, 1);
    for (const int64_t n : {1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 40}) {
      const std::vector<float> x = Random(static_cast<uint64_t>(n)).normals(n * 512);
      const auto expected = test::reference_matmul(x, n, w);
      const auto check = [&](Precision precision, double bound) {
        const auto y = multiply(*backend_, x, n, w, precision);
        EXPECT_LT(test::relative_error(y, expected), bound)
            << format(type).name << ", " << n << " tokens";
      };
      check(Precision::exact, kExactBound);
      check(Precision::fine, kFineBound);
      const bool all_fine = w.weight.repacked == nullptr && n <= 3;
      check(Precision::mixed, all_fine ? kFineBound : kFastBound);
      check(Precision::fast, kFastBound);
    }
  }
}

TEST_P(Matmul, ExactUsesTheValuesThatTheTypesDefine) {
  for (const WeightFormat& fmt : weight_formats()) {
    if (fmt.unpack == nullptr && fmt.encode == nullptr) continue;
    const TestWeight w = weight(fmt.type, 5, 256, 41, 1);
    // Inputs with a single one pick out single weights.
    for (const int64_t n : {1, 256}) {
      std::vector<float> x(static_cast<size_t>(n * 256));
      for (int64_t t = 0; t < n; ++t) x[static_cast<size_t>(t * 256 + (n == 1 ? 77 : t))] = 1;
      const auto y = multiply(*backend_, x, n, w, Precision::exact);
      for (int64_t t = 0; t < n; ++t) {
        for (int64_t r = 0; r < 5; ++r) {
          const auto column = static_cast<size_t>(n == 1 ? 77 : t);
          ASSERT_EQ(y[static_cast<size_t>(t * 5 + r)],
                    w.values[static_cast<size_t>(r) * 256 + column])
              << fmt.name;
        }
      }
    }
  }
}

TEST_P(Matmul, BlockCountsThatDoNotFillAVector) {
  for (const WeightFormat& fmt : weight_formats()) {
    if (fmt.unpack == nullptr || fmt.block_values != 32) continue;
    for (const int64_t cols : {32, 64, 96, 160, 224, 288, 544}) {
      const TestWeight w = weight(fmt.type, 9, cols, 7, 3);
      for (const int64_t n : {1, 6, 9}) {
        const std::vector<float> x = Random(3).normals(n * cols);
        const auto expected = test::reference_matmul(x, n, w);
        EXPECT_LT(test::relative_error(multiply(*backend_, x, n, w, Precision::fine), expected),
                  kFineBound)
            << fmt.name << ", " << n << " x " << cols;
        EXPECT_LT(test::relative_error(multiply(*backend_, x, n, w, Precision::exact), expected),
                  kExactBound)
            << fmt.name << ", " << n << " x " << cols;
      }
    }
  }
}

TEST_P(Matmul, PlainTypesAreF32InEveryPrecision) {
  for (const WeightType type : {WeightType::f32, WeightType::f16, WeightType::bf16}) {
    for (const int64_t cols : {1, 7, 33, 100, 256, 600}) {
      const TestWeight w = weight(type, 70, cols, 5, 2);
      for (const int64_t n : {1, 4, 5, 40}) {
        const std::vector<float> x = Random(9).normals(n * cols);
        const auto expected = test::reference_matmul(x, n, w);
        for (const Precision precision :
             {Precision::exact, Precision::fine, Precision::mixed, Precision::fast}) {
          EXPECT_LT(test::relative_error(multiply(*backend_, x, n, w, precision), expected),
                    kExactBound)
              << format(type).name << ", " << n << " x " << cols;
        }
      }
    }
  }
}

TEST_P(Matmul, PrecisionsAreOrdered) {
  for (const WeightType type : {WeightType::q4_1, WeightType::q8_0, WeightType::q6_k}) {
    const TestWeight w = weight(type, 64, 1536, 11);
    for (const int64_t n : {1, 300}) {
      std::vector<float> x = Random(12).normals(n * 1536);
      for (size_t i = 0; i < x.size(); i += 128) x[i] *= 20;  // outlier channels
      const auto expected = test::reference_matmul(x, n, w);
      const double exact =
          test::rms_error(multiply(*backend_, x, n, w, Precision::exact), expected);
      const double fine = test::rms_error(multiply(*backend_, x, n, w, Precision::fine), expected);
      const double fast = test::rms_error(multiply(*backend_, x, n, w, Precision::fast), expected);
      EXPECT_LT(exact, 1e-6);
      EXPECT_LT(exact * 4, fine);
      if (rounds_to_bf16(n)) {
        EXPECT_LT(fine * 10, fast);
        EXPECT_LT(fast, 3e-3);  // two roundings to 8 bits, of 2^-9 / sqrt(3) each
      } else {
        EXPECT_LT(fine * 20, fast);
      }
      EXPECT_LT(fine, 2e-4);
      EXPECT_LT(fast, 3e-2);
    }
  }
}

// One group in 48 is twenty times as large, and with it its rounding errors: 400 of 447 parts of
// them. With a second plane the rest is left, about sqrt(447 / 47) = 3.1 times less. Few inputs and
// weights as in the file have one plane of every group, or two.
TEST_P(Matmul, GroupsThatInt8HurtsHaveASecondPlane) {
  const TestWeight in_file = make_weight(WeightType::q4_1, 64, 1536, 21);
  const TestWeight w = weight(WeightType::q4_1, 64, 1536, 21);
  const auto error = [&](const TestWeight& of, int64_t n, Precision precision) {
    std::vector<float> x = Random(22).normals(n * 1536);
    for (int64_t t = 0; t < n; ++t) {
      for (int64_t c = 0; c < 32; ++c) x[static_cast<size_t>(t * 1536 + t % 48 * 32 + c)] *= 20;
    }
    const auto expected = test::reference_matmul(x, n, of);
    return test::rms_error(multiply(*backend_, x, n, of, precision), expected);
  };
  const double int8 = error(in_file, 1, Precision::fast);
  EXPECT_LT(error(in_file, 1, Precision::mixed) * 50, int8);
  for (const int64_t n : {1, 3, 8, 16, 300}) {
    if (n < 300 && !std::get<1>(GetParam())) continue;
    if (rounds_to_bf16(n)) continue;  // no int8
    EXPECT_LT(error(w, n, Precision::fast) * 2, int8) << n;
    EXPECT_LT(error(w, n, Precision::mixed) * 2, int8) << n;
    if (n == 300) continue;  // sums that meet minima are rounded to int16
    EXPECT_LT(error(w, n, Precision::fine) * 50, int8) << n;
  }
}

// Inputs and weights are rounded to 8 bits of mantissa, to 2^-9 at the most each, so that every
// product is off by 2^-8 of itself and a little; the sums are those of f32.
TEST_P(Matmul, Bf16IsOffByItsRoundingOnly) {
  if (isa() != "amx") GTEST_SKIP() << "no products in bf16";
  const auto check = [&](WeightType type, int64_t rows, int64_t cols, int64_t n, bool biased) {
    const TestWeight w = weight(type, rows, cols, static_cast<uint64_t>(type) + 81);
    TestWeight sizes = make_weight(type, rows, cols, static_cast<uint64_t>(type) + 81);
    for (float& value : sizes.values) value = std::abs(value);
    const std::vector<float> biases = Random(83).normals(rows);
    const float* bias = biased ? biases.data() : nullptr;
    std::vector<float> x = Random(82).normals(n * cols);
    for (size_t i = 0; i < x.size(); i += 177) x[i] *= 20;
    const auto y = multiply(*backend_, x, n, w, Precision::fast, bias);
    const auto expected = test::reference_matmul(x, n, w, bias);
    for (float& value : x) value = std::abs(value);
    const auto size = test::reference_matmul(x, n, sizes);
    for (size_t i = 0; i < y.size(); ++i) {
      ASSERT_LE(std::abs(y[i] - expected[i]),
                size[i] * (0x1p-8 + 0x1p-14) + std::abs(expected[i]) * 0x1p-22)
          << format(type).name << ", " << n << " inputs of " << cols << ", result " << i;
    }
  };
  for (const WeightType type : coded_types()) {
    for (const int64_t rows : {33, 64, 79}) {
      for (const int64_t n : {17, 31, 32, 33, 48, 64}) check(type, rows, 512, n, true);
    }
  }
  // Several blocks of inputs, of columns, and chunks of rows; sums that are results at once or not.
  for (const bool biased : {false, true}) {
    check(WeightType::q4_1, 300, 2592, 300, biased);
    check(WeightType::q6_k, 64, 2816, 272, biased);
  }
}

// Inputs share packs, but which groups of one have a second plane is its own affair.
TEST_P(Matmul, InputsDoNotDependOnTheirNeighbours) {
  constexpr int64_t kTokens = 50;
  constexpr int64_t kCols = 544;
  const TestWeight w = weight(WeightType::q4_1, 37, kCols, 31);
  std::vector<float> x = Random(32).normals(kTokens * kCols);
  for (size_t i = 0; i < x.size(); i += 177) x[i] *= 20;
  for (const Precision precision : {Precision::fine, Precision::mixed, Precision::fast}) {
    const auto all = multiply(*backend_, x, kTokens, w, precision);
    for (const int64_t first : {1, 3, 20}) {
      const std::vector<float> rest(x.begin() + first * kCols, x.end());
      const auto y = multiply(*backend_, rest, kTokens - first, w, precision);
      EXPECT_TRUE(std::equal(y.begin(), y.end(), all.begin() + first * 37)) << first;
    }
  }
}

TEST_P(Matmul, SharesItsInputBetweenProductsAndAddsBias) {
  const TestWeight q = weight(WeightType::q4_0, 40, 256, 1);
  const TestWeight k = weight(WeightType::f16, 17, 256, 2);
  const TestWeight v = weight(WeightType::q6_k, 33, 256, 3);
  const std::vector<float> bias = Random(4).normals(40);
  for (const int64_t n : {1, 12}) {
    const std::vector<float> x = Random(5).normals(n * 256);
    // One wide output: the products write side by side, as q, k and v do.
    std::vector<float> y(static_cast<size_t>(n * 90), NAN);
    const Mat all(y.data(), n, 90);
    const Product products[] = {{&q.weight, all.columns(0, 40), bias.data()},
                                {&k.weight, all.columns(40, 17), nullptr},
                                {&v.weight, all.columns(57, 33), nullptr}};
    backend_->matmul(ConstMat(x.data(), n, 256), products, Precision::fast);
    const auto expect_columns = [&](const TestWeight& w, int64_t first, const float* b) {
      const std::vector<float> alone = multiply(*backend_, x, n, w, Precision::fast, b);
      for (int64_t t = 0; t < n; ++t) {
        for (int64_t r = 0; r < w.weight.rows; ++r) {
          EXPECT_EQ(y[static_cast<size_t>(t * 90 + first + r)],
                    alone[static_cast<size_t>(t * w.weight.rows + r)]);
        }
      }
      EXPECT_LT(test::relative_error(alone, test::reference_matmul(x, n, w, b)), kFastBound);
    };
    expect_columns(q, 0, bias.data());
    expect_columns(k, 40, nullptr);
    expect_columns(v, 57, nullptr);
  }
}

TEST_P(Matmul, DoesNotDependOnThreads) {
  for (const WeightType type : {WeightType::q4_1, WeightType::q6_k, WeightType::f16}) {
    const TestWeight w = weight(type, 301, 768, 21);
    for (const int64_t n : {1, 5, 64}) {
      const std::vector<float> x = Random(22).normals(n * 768);
      for (const Precision precision : {Precision::exact, Precision::fine, Precision::fast}) {
        const auto one = multiply(*make_cpu_backend(1, isa()), x, n, w, precision);
        for (const int threads : {2, 3, 8}) {
          const auto many = multiply(*make_cpu_backend(threads, isa()), x, n, w, precision);
          EXPECT_TRUE(test::same_bits(one, many)) << threads << " threads, " << n << " tokens";
        }
      }
    }
  }
}

TEST_P(Matmul, ExtremeInputs) {
  const TestWeight w = weight(WeightType::q4_1, 20, 256, 31);
  for (const int64_t n : {1, 9}) {
    std::vector<float> x(static_cast<size_t>(n * 256), 0.0f);
    for (const Precision precision : {Precision::exact, Precision::fine, Precision::fast}) {
      for (const float y : multiply(*backend_, x, n, w, precision)) EXPECT_EQ(y, 0.0f);
    }
    // Values whose inverse overflows count as zero in the integer modes.
    std::fill(x.begin(), x.end(), 1e-40f);
    for (const float y : multiply(*backend_, x, n, w, Precision::fast)) EXPECT_NEAR(y, 0, 1e-30);
    std::fill(x.begin(), x.end(), 1e30f);
    const auto expected = test::reference_matmul(x, n, w);
    EXPECT_LT(test::relative_error(multiply(*backend_, x, n, w, Precision::fast), expected),
              kFastBound);
    // What is not a number stays so, in its own row only.
    for (const float bad : {NAN, INFINITY}) {
      std::fill(x.begin(), x.end(), 1.0f);
      x[100] = bad;
      const auto y = multiply(*backend_, x, n, w, Precision::fast);
      for (size_t i = 0; i < y.size(); ++i) EXPECT_EQ(std::isfinite(y[i]), i >= 20);
    }
  }
}

// Integer sums become floats by way of larger numbers, which times such scales are infinite.
TEST_P(Matmul, ScalesNearTheLargestFloat) {
  TestWeight w = make_weight(WeightType::mxfp4, 20, 256, 71);
  for (size_t at = 0; at < w.bytes.size(); at += 17) w.bytes[at] = std::byte{235};  // exponents
  for (int64_t r = 0; r < 20; ++r) {
    format(WeightType::mxfp4).decode(w.bytes.data() + r * 8 * 17, w.values.data() + r * 256, 256);
  }
  if (std::get<1>(GetParam())) test::repack(*backend_, &w);
  for (const int64_t n : {1, 9, 40}) {
    std::vector<float> x = Random(72).normals(n * 256);
    for (float& value : x) value *= 1e-30f;
    const auto expected = test::reference_matmul(x, n, w);
    EXPECT_LT(test::relative_error(multiply(*backend_, x, n, w, Precision::fast), expected),
              kFastBound)
        << n << " tokens";
  }
}

// Speculative decoding relies on it: a token read together with others gets the same logits.
TEST_P(Matmul, RepackedRowsDoNotDependOnTheirBatch) {
  if (!std::get<1>(GetParam())) GTEST_SKIP() << "promised for repacked weights only";
  for (const WeightType type : coded_types()) {
    const TestWeight w = weight(type, 50, 512, 51);
    if (w.weight.repacked == nullptr) continue;
    for (const Precision precision : {Precision::fine, Precision::mixed, Precision::fast}) {
      constexpr int64_t kMost = 16;
      std::vector<float> x = Random(52).normals(kMost * 512);
      for (size_t i = 0; i < x.size(); i += 177) x[i] *= 20;  // groups with a second plane
      std::vector<float> alone;
      for (int64_t t = 0; t < kMost; ++t) {
        const std::vector<float> own(x.begin() + t * 512, x.begin() + (t + 1) * 512);
        const std::vector<float> y = multiply(*backend_, own, 1, w, precision);
        alone.insert(alone.end(), y.begin(), y.end());
      }
      for (int64_t n = 2; n <= kMost; ++n) {
        const std::vector<float> first(x.begin(), x.begin() + n * 512);
        const std::vector<float> expected(alone.begin(), alone.begin() + n * 50);
        EXPECT_TRUE(test::same_bits(multiply(*backend_, first, n, w, precision), expected))
            << format(type).name << ", " << n << " inputs";
      }
    }
  }
}

TEST_P(Matmul, RepackingTakesNoMoreThanThePaddingAllows) {
  for (const WeightType type : coded_types()) {
    const TestWeight w = make_weight(type, 64, 1024, 61);
    const size_t bytes = backend_->repacked_bytes(w.weight);
    // 6-bit scales and 8-bit exponents become whole and double bytes: 1/32 byte per value more.
    EXPECT_LE(bytes, w.weight.row_bytes * 64 + 64 * 1024 / 32) << format(type).name;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Isa, Matmul, ::testing::Combine(::testing::ValuesIn(available_isas()), ::testing::Bool()),
    [](const auto& made) {
      return std::get<0>(made.param) + (std::get<1>(made.param) ? "Repacked" : "AsInFile");
    });

}  // namespace
}  // namespace kve
