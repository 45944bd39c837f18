// Blocks of gate, up and down that are computed at once, beside their parts.
#include <gtest/gtest.h>

#include "kernels/kernel_testing.h"

namespace kve {
namespace {

using test::available_isas;
using test::make_weight;
using test::Random;
using test::TestWeight;

constexpr int64_t kCols = 256;
constexpr int64_t kWidth = 512;
constexpr int64_t kRows = 37;

class GatedBlocks : public ::testing::TestWithParam<std::string> {
 protected:
  void make(WeightType type, int64_t n) {
    gate_ = make_weight(type, kWidth, kCols, 1);
    up_ = make_weight(type, kWidth, kCols, 2);
    down_ = make_weight(type, kRows, kWidth, 3);
    for (TestWeight* weight : {&gate_, &up_, &down_}) test::repack(*backend_, weight);
    n_ = n;
    x_ = Random(4).normals(n * kCols);
    // Groups of columns that int8 hurts, in the input and in what becomes of it.
    for (int64_t i = 0; i < n * kCols; i += 7 * kCols) x_[static_cast<size_t>(i + 40)] *= 40;
    bias_ = Random(5).normals(kWidth);
    for (float& each : bias_) each *= 0.1f;
    bias_[100] = 30;
    for (auto* y : {&gated_, &upped_}) y->assign(static_cast<size_t>(n * kWidth), 0.0f);
  }
  GatedBlock block(Activation activation, std::vector<float>* y) {
    y->assign(static_cast<size_t>(n_ * kRows), NAN);
    return {activation,
            {&gate_.weight, Mat(gated_.data(), n_, kWidth), bias_.data()},
            {&up_.weight, Mat(upped_.data(), n_, kWidth), bias_.data()},
            {&down_.weight, Mat(y->data(), n_, kRows), bias_.data()}};
  }
  ConstMat x() const { return {x_.data(), n_, kCols}; }
  std::vector<float> in_parts(Activation activation, Precision in, Precision out) {
    std::vector<float> y;
    const GatedBlock whole = block(activation, &y);
    const Product both[] = {whole.gate, whole.up};
    backend_->matmul(x(), both, in);
    backend_->gated(activation, whole.gate.y, whole.up.y);
    backend_->matmul(whole.gate.y, {&whole.down, 1}, out);
    return y;
  }

  std::unique_ptr<Backend> backend_ = make_cpu_backend(2, GetParam());
  TestWeight gate_, up_, down_;
  int64_t n_ = 0;
  std::vector<float> x_, bias_, gated_, upped_;
};

// Codes of second planes are rounded from differences that are computed in another order: one in
// 254 of a step of int8 at the most, which is 4e-5 of the largest of its group.
TEST_P(GatedBlocks, AreWhatTheirPartsAre) {
  for (const WeightType type : {WeightType::q4_1, WeightType::q8_0, WeightType::q4_k,
                                WeightType::q6_k, WeightType::mxfp4}) {
    for (const int64_t n : {33, 36, 50}) {
      make(type, n);
      for (const Activation activation : {Activation::silu, Activation::gelu_tanh}) {
        const auto parts = in_parts(activation, Precision::fast, Precision::fast);
        std::vector<float> y;
        const GatedBlock whole = block(activation, &y);
        ASSERT_TRUE(backend_->fused_block(x(), whole, Precision::fast, Precision::fast));
        const std::vector<double> expected(parts.begin(), parts.end());
        EXPECT_LT(test::relative_error(y, expected), 1e-4)
            << format(type).name << ", " << n << " inputs";
      }
    }
  }
}

TEST_P(GatedBlocks, DoNotDependOnThreads) {
  make(WeightType::q4_1, 45);
  std::vector<float> two;
  ASSERT_TRUE(
      backend_->fused_block(x(), block(Activation::silu, &two), Precision::fast, Precision::mixed));
  for (const int threads : {1, 3}) {
    backend_ = make_cpu_backend(threads, GetParam());
    std::vector<float> y;
    ASSERT_TRUE(
        backend_->fused_block(x(), block(Activation::silu, &y), Precision::fast, Precision::mixed));
    EXPECT_EQ(y, two) << threads << " threads";
  }
}

TEST_P(GatedBlocks, NumbersThatAreNoneReachTheirOwnResults) {
  make(WeightType::q8_0, 40);
  x_[static_cast<size_t>(17 * kCols + 5)] = INFINITY;
  std::vector<float> y;
  ASSERT_TRUE(
      backend_->fused_block(x(), block(Activation::silu, &y), Precision::fast, Precision::fast));
  for (int64_t t = 0; t < n_; ++t) {
    EXPECT_EQ(std::isfinite(y[static_cast<size_t>(t * kRows)]), t != 17) << t;
  }
}

TEST_P(GatedBlocks, AreLeftToTheirPartsWhereThatIsFaster) {
  std::vector<float> y;
  make(WeightType::q4_1, 3);
  EXPECT_FALSE(
      backend_->fused_block(x(), block(Activation::silu, &y), Precision::fast, Precision::fast));
  make(WeightType::q4_1, 40);
  EXPECT_FALSE(
      backend_->fused_block(x(), block(Activation::silu, &y), Precision::exact, Precision::exact));
  EXPECT_TRUE(std::isnan(y[0]));
}

INSTANTIATE_TEST_SUITE_P(AllIsas, GatedBlocks, ::testing::ValuesIn(available_isas()),
                         [](const auto& made) { return made.param; });

}  // namespace
}  // namespace kve
