#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "kernels/backend.h"

namespace kve {
namespace {

class LayerNorm : public ::testing::TestWithParam<int64_t> {};

TEST_P(LayerNorm, IsWhatItsDefinitionSays) {
  const int64_t rows = GetParam();
  constexpr int64_t kCols = 83;
  std::mt19937 random(3);
  std::normal_distribution<float> normal(5, 2);  // far from zero
  const auto draw = [&](int64_t n) {
    std::vector<float> values(static_cast<size_t>(n));
    for (float& value : values) value = normal(random);
    return values;
  };
  std::vector<float> x = draw(rows * kCols);
  const std::vector<float> weight = draw(kCols);
  const std::vector<float> bias = draw(kCols);
  std::vector<double> expected(x.size());
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = x.data() + r * kCols;
    double mean = 0, variance = 0;
    for (int64_t c = 0; c < kCols; ++c) mean += row[c] / double{kCols};
    for (int64_t c = 0; c < kCols; ++c) variance += (row[c] - mean) * (row[c] - mean) / kCols;
    for (int64_t c = 0; c < kCols; ++c) {
      expected[static_cast<size_t>(r * kCols + c)] =
          (row[c] - mean) / std::sqrt(variance + 1e-3) * weight[static_cast<size_t>(c)] +
          bias[static_cast<size_t>(c)];
    }
  }
  const auto backend = make_cpu_backend(2);
  std::vector<float> plain(x.size());
  backend->layer_norm({x.data(), rows, kCols}, weight.data(), nullptr, 1e-3f,
                      {plain.data(), rows, kCols});
  const Mat in_place(x.data(), rows, kCols);
  backend->layer_norm(in_place, weight.data(), bias.data(), 1e-3f, in_place);
  for (size_t i = 0; i < x.size(); ++i) {
    // f32 rounding of values of up to 30.
    EXPECT_NEAR(x[i], expected[i], 2e-5);
    EXPECT_NEAR(plain[i], expected[i] - bias[i % kCols], 2e-5);
  }
}

INSTANTIATE_TEST_SUITE_P(Rows, LayerNorm, ::testing::Values(1, 8, 16, 33));

}  // namespace
}  // namespace kve
