#include <gtest/gtest.h>

#include "base/half.h"
#include "kernels/kernel_testing.h"

namespace kve {
namespace {

using test::available_isas;
using test::Random;

// Sizes around the widths of vectors.
const int64_t kSizes[] = {1, 3, 8, 15, 16, 17, 33, 64, 100, 577};

class Elementwise : public ::testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Backend> backend_ = make_cpu_backend(2, GetParam());
};

TEST_P(Elementwise, RmsNorm) {
  for (const int64_t n : kSizes) {
    for (const int64_t rows : {1, 300}) {
      Random random(static_cast<uint64_t>(n));
      const std::vector<float> x = random.normals(rows * n, 3.0f);
      const std::vector<float> weight = random.normals(n);
      std::vector<double> expected(x.size());
      for (int64_t r = 0; r < rows; ++r) {
        double squares = 0;
        for (int64_t i = 0; i < n; ++i) squares += std::pow(x[static_cast<size_t>(r * n + i)], 2);
        const double factor = 1 / std::sqrt(squares / static_cast<double>(n) + 1e-5);
        for (int64_t i = 0; i < n; ++i) {
          const auto at = static_cast<size_t>(r * n + i);
          expected[at] = x[at] * factor * static_cast<double>(weight[static_cast<size_t>(i)]);
        }
      }
      std::vector<float> out(x.size());
      backend_->rms_norm(ConstMat(x.data(), rows, n), weight.data(), 1e-5f,
                         Mat(out.data(), rows, n));
      EXPECT_LT(test::relative_error(out, expected), 1e-6) << n;
      std::vector<float> in_place = x;
      const Mat same(in_place.data(), rows, n);
      backend_->rms_norm(same, weight.data(), 1e-5f, same);
      EXPECT_TRUE(test::same_bits(in_place, out));
    }
  }
}

TEST_P(Elementwise, AddAndRmsNormAreBothInOne) {
  for (const int64_t rows : {1, 9, 70}) {
    for (const int64_t n : {1, 15, 64, 577}) {
      Random random(static_cast<uint64_t>(rows + n));
      std::vector<float> x = random.normals(rows * n);
      const std::vector<float> y = random.normals(rows * n);
      const std::vector<float> weight = random.normals(n);
      std::vector<float> sum = x;
      std::vector<float> expected(x.size());
      backend_->add(Mat(sum.data(), rows, n), ConstMat(y.data(), rows, n));
      backend_->rms_norm(ConstMat(sum.data(), rows, n), weight.data(), 1e-5f,
                         Mat(expected.data(), rows, n));
      std::vector<float> out(x.size());
      backend_->add_rms_norm(Mat(x.data(), rows, n), ConstMat(y.data(), rows, n), weight.data(),
                             1e-5f, Mat(out.data(), rows, n));
      EXPECT_TRUE(test::same_bits(x, sum)) << rows << " x " << n;
      EXPECT_TRUE(test::same_bits(out, expected)) << rows << " x " << n;
    }
  }
}

TEST_P(Elementwise, RopeBothLayoutsAndPartial) {
  for (const int head_dim : {32, 64, 80, 96, 128, 256}) {
    for (const int rotary_dim : {head_dim, head_dim / 2, 10}) {
      for (const RopeLayout layout : {RopeLayout::interleaved, RopeLayout::half_split}) {
        const int64_t rows = 7;
        const int64_t heads = 3;
        const int64_t half = rotary_dim / 2;
        Random random(static_cast<uint64_t>(head_dim));
        const std::vector<float> x = random.normals(rows * heads * head_dim);
        std::vector<float> cos(static_cast<size_t>(rows * half));
        std::vector<float> sin(cos.size());
        for (size_t i = 0; i < cos.size(); ++i) {
          const float angle = random.uniform(-3, 3);
          cos[i] = std::cos(angle);
          sin[i] = std::sin(angle);
        }
        std::vector<double> expected(x.begin(), x.end());
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t h = 0; h < heads; ++h) {
            for (int64_t i = 0; i < half; ++i) {
              const int64_t base = (r * heads + h) * head_dim;
              const bool pairs = layout == RopeLayout::interleaved;
              const auto a = static_cast<size_t>(base + (pairs ? 2 * i : i));
              const auto b = static_cast<size_t>(base + (pairs ? 2 * i + 1 : i + half));
              const double c = cos[static_cast<size_t>(r * half + i)];
              const double s = sin[static_cast<size_t>(r * half + i)];
              expected[a] = x[a] * c - x[b] * s;
              expected[b] = x[a] * s + x[b] * c;
            }
          }
        }
        std::vector<float> out = x;
        backend_->rope(Mat(out.data(), rows, heads * head_dim), head_dim, layout,
                       ConstMat(cos.data(), rows, half), ConstMat(sin.data(), rows, half));
        EXPECT_LT(test::relative_error(out, expected), 3e-7);
        // The rest of each head is untouched.
        for (size_t i = 0; i < x.size(); ++i) {
          if (static_cast<int>(i) % head_dim >= rotary_dim) {
            EXPECT_EQ(out[i], x[i]);
          }
        }
      }
    }
  }
}

double activation_of(Activation activation, double x) {
  switch (activation) {
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::gelu_erf:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case Activation::relu:
      return std::max(x, 0.0);
  }
  return NAN;
}

TEST_P(Elementwise, GatedActivations) {
  for (const Activation activation :
       {Activation::silu, Activation::gelu_tanh, Activation::gelu_erf, Activation::relu}) {
    std::vector<float> x;
    for (int i = -40000; i <= 40000; ++i) x.push_back(static_cast<float>(i) * 5e-4f);
    const auto n = static_cast<int64_t>(x.size());
    const std::vector<float> up(x.size(), 1.0f);
    std::vector<float> out = x;
    backend_->gated(activation, Mat(out.data(), 1, n), ConstMat(up.data(), 1, n));
    for (size_t i = 0; i < x.size(); ++i) {
      const double expected = activation_of(activation, x[i]);
      // A few units in the last place of the result; in the negative tail the exponent of a large
      // argument is rounded, which is relative to |x| (and the result itself is negligible).
      const double bound = 5e-7 * std::abs(expected) + (x[i] < -1 ? 2e-7 : 1e-37);
      ASSERT_NEAR(out[i], expected, bound) << static_cast<int>(activation) << " of " << x[i];
    }
    const std::vector<float> edges = {-INFINITY, -1e30f, -100, -0.0f, 0, 1e-40f, 100, 1e30f};
    std::vector<float> limits = edges;
    const std::vector<float> ones(edges.size(), 1.0f);
    const auto n_edges = static_cast<int64_t>(edges.size());
    backend_->gated(activation, Mat(limits.data(), 1, n_edges), ConstMat(ones.data(), 1, n_edges));
    for (size_t i = 1; i < edges.size(); ++i) {
      EXPECT_NEAR(limits[i], edges[i] > 0 ? edges[i] : 0.0f, 1e-38f + 1e-6f * std::abs(limits[i]));
    }
    std::vector<float> nan = {NAN};
    backend_->gated(activation, Mat(nan.data(), 1, 1), ConstMat(ones.data(), 1, 1));
    EXPECT_TRUE(std::isnan(nan[0]));
  }
}

TEST_P(Elementwise, GatedMultipliesAndAdds) {
  for (const int64_t n : kSizes) {
    for (const int64_t rows : {1, 300}) {
      Random random(static_cast<uint64_t>(n + rows));
      const std::vector<float> gate = random.normals(rows * n);
      const std::vector<float> up = random.normals(rows * n);
      std::vector<float> product = gate;
      std::vector<float> total = gate;
      backend_->gated(Activation::relu, Mat(product.data(), rows, n), ConstMat(up.data(), rows, n));
      backend_->add(Mat(total.data(), rows, n), ConstMat(up.data(), rows, n));
      for (size_t i = 0; i < gate.size(); ++i) {
        ASSERT_EQ(product[i], std::max(gate[i], 0.0f) * up[i]);
        ASSERT_EQ(total[i], gate[i] + up[i]);
      }
    }
  }
}

TEST_P(Elementwise, Softcap) {
  std::vector<float> x;
  for (int i = -3000; i <= 3000; ++i) x.push_back(static_cast<float>(i) * 0.1f);
  x.insert(x.end(), {1e-6f, -1e-6f, 1e30f, -1e30f, INFINITY, -INFINITY});
  std::vector<float> out = x;
  backend_->softcap(30.0f, Mat(out.data(), 1, static_cast<int64_t>(x.size())));
  for (size_t i = 0; i < x.size(); ++i) {
    const double expected = 30.0 * std::tanh(static_cast<double>(x[i]) / 30.0);
    ASSERT_NEAR(out[i], expected, 4e-7 * std::abs(expected)) << x[i];
  }
}

TEST_P(Elementwise, DotHalves) {
  for (const int64_t width : {2, 16, 34, 64, 128, 200}) {
    for (const int64_t n : {1, 5, 16, 130}) {
      for (const int64_t vectors : {1, 3, 6}) {
        Random random(static_cast<uint64_t>(width + n + vectors));
        const int64_t stride = (width + 15) / 16 * 16;
        const int64_t out_stride = (n + kHalfDotRows - 1) / kHalfDotRows * kHalfDotRows;
        const std::vector<float> x = random.normals(vectors * stride);
        std::vector<uint16_t> rows;
        for (const float value : random.normals(n * width)) rows.push_back(float_to_half(value));
        std::vector<float> out(static_cast<size_t>(vectors * out_stride));
        backend_->dot_halves(
            {rows.data(), n, width, x.data(), stride, vectors, out.data(), out_stride});
        for (int64_t v = 0; v < vectors; ++v) {
          for (int64_t r = 0; r < n; ++r) {
            double expected = 0;
            double size = 0;
            for (int64_t c = 0; c < width; ++c) {
              const double term = double{half_to_float(rows[static_cast<size_t>(r * width + c)])} *
                                  double{x[static_cast<size_t>(v * stride + c)]};
              expected += term;
              size += std::abs(term);
            }
            // Sums of `width` terms in f32.
            ASSERT_NEAR(out[static_cast<size_t>(v * out_stride + r)], expected, 2e-6 * size)
                << "width " << width << ", row " << r << ", vector " << v;
          }
        }
      }
    }
  }
}

// The bits of a loop over pieces and rows, and no others.
TEST_P(Elementwise, AddGram) {
  for (const int64_t block : {1, 2, 6, 8, 16, 24, 48, 64}) {
    for (const int64_t n : {1, 31, 32, 33, 200}) {
      Random random(static_cast<uint64_t>(100 * block + n));
      const int64_t width = 3 * block;
      const int64_t stride = width + 5;
      std::vector<uint16_t> rows;
      for (const float value : random.normals(n * stride, 30.0f)) {
        rows.push_back(float_to_half(value));
      }
      if (n > 32) {  // a number that is none, an infinity, and one beside the rows
        rows[static_cast<size_t>(3 * stride + block)] = 0x7e00;
        rows[static_cast<size_t>(32 * stride + 2 * block)] = 0xfc00;
        rows[static_cast<size_t>(7 * stride + width)] = 0x7c00;
      }
      std::vector<double> found(static_cast<size_t>(block * block), 0.25);
      std::vector<double> expected = found;
      int64_t count = 0;
      for (int64_t c = 0; c < width; c += block) {
        for (int64_t r = 0; r < n; ++r) {
          std::vector<double> piece;
          for (int64_t i = 0; i < block; ++i) {
            piece.push_back(half_to_float(rows[static_cast<size_t>(r * stride + c + i)]));
          }
          if (!std::ranges::all_of(piece, [](double x) { return std::isfinite(x); })) continue;
          ++count;
          for (size_t i = 0; i < piece.size(); ++i) {
            for (size_t j = i; j < piece.size(); ++j) {
              expected[i * piece.size() + j] += piece[i] * piece[j];
            }
          }
        }
      }
      ASSERT_EQ(backend_->add_gram({rows.data(), n, stride, width, block, found.data()}), count);
      ASSERT_EQ(found, expected) << "block " << block << ", " << n << " rows";
    }
  }
}

TEST_P(Elementwise, EmbedDecodesRowsOfEveryType) {
  for (const WeightFormat& fmt : weight_formats()) {
    if (fmt.unpack == nullptr && fmt.encode == nullptr) continue;
    const test::TestWeight table = test::make_weight(fmt.type, 11, 256, 3, 1);
    const Token tokens[] = {10, 0, 3, 3};
    std::vector<float> out(4 * 256);
    backend_->embed(table.weight, tokens, 2.5f, Mat(out.data(), 4, 256));
    for (size_t i = 0; i < out.size(); ++i) {
      const auto row = static_cast<size_t>(tokens[i / 256]);
      ASSERT_EQ(out[i], table.values[row * 256 + i % 256] * 2.5f) << fmt.name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, Elementwise, ::testing::ValuesIn(available_isas()),
                         [](const auto& isa) { return isa.param; });

}  // namespace
}  // namespace kve
