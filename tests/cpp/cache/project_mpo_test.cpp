// Oracles: the vectors of the method specification, and numpy's singular value decomposition.
#include "cache/project/mpo.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "cache/projector_fixtures.h"

namespace kve {
namespace {

Rows specification_rows() {
  return Rows(4, 4,
              {1.2f, -3.1f, 2.7f, -0.4f, 0.5f, 0.8f, -1.2f, 1.7f,  //
               -2.1f, 0.3f, 3.5f, -1.5f, 0.6f, -0.7f, 1.9f, -2.2f});
}

// The coefficients after symmetric codes of `bits` with a scale per row.
std::vector<double> quantized(std::vector<double> coefficients, int width, int bits) {
  const int top = (1 << (bits - 1)) - 1;
  for (size_t first = 0; first < coefficients.size(); first += static_cast<size_t>(width)) {
    double largest = 0;
    for (size_t i = first; i < first + static_cast<size_t>(width); ++i) {
      largest = std::max(largest, std::abs(coefficients[i]));
    }
    const double scale = largest / top;
    for (size_t i = first; i < first + static_cast<size_t>(width); ++i) {
      coefficients[i] = std::nearbyint(coefficients[i] / scale) * scale;
    }
  }
  return coefficients;
}

// T_L T_S before T_S is rounded.
std::vector<double> product(const BasisData& data, const std::vector<double>& coefficients) {
  std::vector<double> out(coefficients.size());
  const auto block = static_cast<size_t>(data.block);
  for (size_t i = 0; i < out.size(); ++i) {
    const size_t first = i / block * block;
    for (size_t c = 0; c < block; ++c) {
      out[i] += data.lift[i % block * block + c] * coefficients[first + c];
    }
  }
  return out;
}

double distance(const std::vector<double>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(sum);
}

TEST(MpoBasis, VectorsOfTheMethodSpecification) {
  const Rows rows = specification_rows();
  const BasisData data = mpo_basis(rows.view(), 2);
  EXPECT_EQ(data.dim, 4);
  EXPECT_EQ(data.width, 4);
  EXPECT_EQ(data.block, 2);
  // T_S, of which the lift is the transpose.
  const std::vector<double> small = {2.060866, 1.016211, -1.536476, 1.363037};
  for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(data.lift[i], small[i], 1e-5);
  EXPECT_NEAR(1 / data.column[0], 6.607926, 1e-5);
  EXPECT_NEAR(1 / data.column[1], 2.890556, 1e-5);
  const std::vector<double> large = {
      1.095066,  -1.039925, 0.935078, 0.760599, -0.030077, 0.553020,  -0.769538, 0.379758,
      -0.724699, -0.596817, 1.440353, 0.523146, 0.349891,  -0.119146, 1.104112,  -0.369438};
  const std::vector<double> found = exact_coefficients(data, rows);
  for (size_t i = 0; i < large.size(); ++i) EXPECT_NEAR(found[i], large[i], 1e-5);
  EXPECT_LE(distance(product(data, found), rows.values), 1e-6);
  const std::pair<int, double> errors[] = {
      {8, 0.018166}, {4, 0.367102}, {3, 0.830453}, {2, 2.740282}};
  for (const auto& [bits, error] : errors) {
    EXPECT_NEAR(distance(product(data, quantized(found, 4, bits)), rows.values), error, 1e-5);
  }
}

TEST(MpoBasis, AgreesWithNumpy) {
  const Rows keys(192, 32, read_projector_fixture<float>("keys.f32"));
  const BasisData data = mpo_basis(keys.view(), 16);
  const std::vector<double> values = read_projector_fixture<double>("mpo_values.f64");
  ASSERT_EQ(values.size(), size_t{16});
  for (size_t c = 0; c < 16; ++c) EXPECT_NEAR(1 / data.column[c], values[c], 1e-5 * values[c]);
  std::vector<double> magnitudes = exact_coefficients(data, keys);
  for (double& value : magnitudes) value = std::abs(value);
  // Small components are what remains of large keys in float32: the lift is rounded to 24 bits.
  EXPECT_LE(relative_error(magnitudes, read_projector_fixture<float>("mpo_rows.f32")), 1e-4);
}

TEST(MpoBasis, LargeTensorHasTheSingularValuesAsSquares) {
  const Rows rows = normal_rows(40, 48, 3);
  const BasisData data = mpo_basis(rows.view(), 8);
  const std::vector<double> large = exact_coefficients(data, rows);
  for (size_t a = 0; a < 8; ++a) {
    for (size_t b = 0; b < 8; ++b) {
      double sum = 0;
      for (size_t first = 0; first < large.size(); first += 8)
        sum += large[first + a] * large[first + b];
      const double expected = a == b ? 1 / data.column[a] : 0;
      EXPECT_NEAR(sum, expected, 1e-5 / data.column[0]);
    }
  }
}

// Inner tensors of sizes b1 and b2, by two decompositions in a row: M [n, b1 b2] = L R as for two
// tensors, then R, cut along b1, again. Only the last step of the field's procedure differs from
// two tensors with a block of b1 b2, so T_L is the same.
TEST(MpoBasis, ThreeTensorsQuantizeWhatTwoDo) {
  constexpr int kFirst = 4;
  constexpr int kSecond = 2;
  const Rows rows = normal_rows(32, 32, 11);
  const BasisData two = mpo_basis(rows.view(), kFirst * kSecond);
  const std::vector<double> large = exact_coefficients(two, rows);
  // The second split: R [b, b1 * b2] seen as [b * b1, b2].
  Rows right(kFirst * kSecond * kFirst, kSecond);
  for (int c = 0; c < kFirst * kSecond; ++c) {
    for (int j = 0; j < kFirst * kSecond; ++j) {
      right.values[static_cast<size_t>(c * kFirst * kSecond + j)] =
          two.lift[static_cast<size_t>(j * kFirst * kSecond + c)];
    }
  }
  const BasisData inner = mpo_basis(right.view(), kSecond);
  const std::vector<double> middle = exact_coefficients(inner, right);
  const std::vector<double> small = product(inner, middle);
  // T_1 quantized to 3 bits, times T_2 T_3, is what two tensors give.
  const std::vector<double> coded = quantized(large, 32, 3);
  const std::vector<double> expected = product(two, coded);
  std::vector<double> found(expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    const size_t first = i / 8 * 8;
    for (size_t c = 0; c < 8; ++c) found[i] += coded[first + c] * small[c * 8 + i % 8];
  }
  EXPECT_LE(relative_error(found, expected), 1e-6);
  EXPECT_GT(distance(expected, rows.values), 1);  // codes of 3 bits do lose something
}

// T_L T_2 T_3 and T_L T_2 T_3 T_4 with truncated bonds, by numpy.
TEST(MpoBasis, TruncatedChainsAgreeWithNumpy) {
  const Rows keys(192, 32, read_projector_fixture<float>("keys.f32"));
  const std::pair<MpoChain, const char*> cases[] = {
      {{.sizes = {4, 4}, .bonds = {10, 3}}, "mpo_chain3.f32"},
      {{.sizes = {4, 4}, .bonds = {0, 3}}, "mpo_chain3_inner.f32"},
      {{.sizes = {2, 2, 4}, .bonds = {9, 6, 3}}, "mpo_chain4.f32"},
      {{.sizes = {16}, .bonds = {7}}, "mpo_bond7.f32"}};
  std::vector<std::vector<double>> rebuilt;
  for (const auto& [chain, file] : cases) {
    SCOPED_TRACE(file);
    const BasisData data = mpo_basis(keys.view(), chain);
    const int width = chain.bonds[0] > 0 ? chain.bonds[0] : 16;
    EXPECT_EQ(data.block_width, width);
    EXPECT_EQ(data.width, 2 * width);
    const std::vector<double> large = exact_coefficients(data, keys);
    std::vector<double>& rows = rebuilt.emplace_back(keys.values.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      const size_t piece = i / 16 * static_cast<size_t>(width);
      for (int c = 0; c < width; ++c) {
        rows[i] += double{data.lift[i % 16 * static_cast<size_t>(width) + static_cast<size_t>(c)]} *
                   large[piece + static_cast<size_t>(c)];
      }
    }
    // Small components are what remains of large keys in float32.
    EXPECT_LE(relative_error(rows, read_projector_fixture<float>(file)), 1e-5);
  }
  // Truncating an inner bond makes a difference that truncating the first one does not.
  std::vector<float> other(rebuilt[3].begin(), rebuilt[3].end());
  EXPECT_GT(relative_error(rebuilt[1], other), 1e-3);
}

// Without truncation, more tensors are what two are with their product.
TEST(MpoBasis, ChainsWithoutTruncationAreTwoTensors) {
  const Rows rows = normal_rows(40, 32, 5);
  const BasisData two = mpo_basis(rows.view(), 16);
  for (const std::vector<int>& sizes : {std::vector{4, 4}, {2, 8}, {2, 2, 4}}) {
    const BasisData many =
        mpo_basis(rows.view(), MpoChain{.sizes = sizes, .bonds = std::vector<int>(sizes.size())});
    EXPECT_EQ(many.lift, two.lift);
    EXPECT_EQ(many.column, two.column);
  }
}

TEST(MpoBasis, ArrivesAtTheSameBasisInSteps) {
  const Rows rows = normal_rows(64, 32, 4);
  Gram pieces(16);
  add_mpo_pieces(rows.view().block(0, 10), &pieces);
  add_mpo_pieces(rows.view().block(10, 54), &pieces);
  EXPECT_EQ(pieces.count(), 128);
  const BasisData steps = mpo_basis(pieces, 32, {});
  const BasisData whole = mpo_basis(rows.view(), 16);
  EXPECT_LE(relative_error(steps.lift, whole.lift), 1e-6);
  EXPECT_LE(relative_error(steps.column, whole.column), 1e-6);
}

TEST(MpoBasis, RowsWithoutContentAreNoTrouble) {
  const Rows zero(8, 32);
  for (const float value : mpo_basis(zero.view(), 16).lift) EXPECT_EQ(value, 0);
  const auto zero_basis = make_basis(mpo_basis(zero.view(), 16));
  EXPECT_EQ(lift(zero_basis->view(), project(zero_basis->view(), zero)).values, zero.values);

  Rows constant(8, 32);
  std::fill(constant.values.begin(), constant.values.end(), 3.0f);
  const BasisData data = mpo_basis(constant.view(), 16);
  EXPECT_GT(data.column[0], 0);
  for (size_t c = 1; c < 16; ++c) EXPECT_EQ(data.column[c], 0);  // rank 1
  const auto basis = make_basis(data);
  EXPECT_LE(
      relative_error(lift(basis->view(), project(basis->view(), constant)).values, constant.values),
      1e-3);

  Rows broken = constant;
  broken.values[40] = std::numeric_limits<float>::quiet_NaN();
  for (const float value : mpo_basis(broken.view(), 16).lift) EXPECT_TRUE(std::isfinite(value));
  Rows huge = constant;
  for (float& value : huge.values) value = std::numeric_limits<float>::max();
  for (const float value : mpo_basis(huge.view(), 16).lift) EXPECT_TRUE(std::isfinite(value));
}

TEST(MpoBasis, RefusesBlocksThatDoNotFit) {
  const Rows rows = normal_rows(4, 24, 1);
  EXPECT_THROW(mpo_basis(rows.view(), 16), ConfigError);
  EXPECT_THROW(mpo_basis(rows.view(), 0), ConfigError);
  EXPECT_NO_THROW(mpo_basis(rows.view(), 24));
}

}  // namespace
}  // namespace kve
