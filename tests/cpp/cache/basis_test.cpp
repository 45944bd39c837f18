#include "cache/basis.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "base/half.h"
#include "cache/anchor.h"
#include "cache/project/hadamard.h"
#include "cache/project/klt.h"
#include "cache/project/low_rank.h"
#include "cache/project/mpo.h"
#include "cache/projector_fixtures.h"
#include "models/rope.h"

namespace kve {
namespace {

// Every projector at full width, for rows of 32 values.
std::vector<BasisData> full_bases() {
  const Rows keys(192, 32, read_projector_fixture<float>("keys.f32"));
  KeyStatistics statistics(32);
  statistics.add_page(keys.view());
  const std::vector<double> metric = read_projector_fixture<double>("queries.f64");
  return {hadamard_basis(32),         rotation_basis(32, 3),
          mpo_basis(keys.view(), 16), low_rank_basis(keys.view(), 32),
          mpo_basis(keys.view(), 4),  klt_basis(statistics, metric).basis};
}

BasisData small_basis() {
  BasisData data;
  data.dim = 6;
  data.width = 4;
  data.block = 3;
  data.block_width = 2;
  data.lift = {1, 0.5, -0.25, 2, 0, 1};
  data.row = {1, 2, 0.5};
  data.column = {0.25, 0.125};
  data.strip_bits = {3};
  return data;
}

BasisData int8_basis() {
  BasisData data = small_basis();
  data.column.clear();
  data.int8 = true;
  return data;
}

TEST(Basis, FollowsTheDefinitionOfTheView) {
  const auto basis = make_basis(small_basis());
  const BasisView view = basis->view();
  EXPECT_EQ(view.anchor, 0);
  EXPECT_EQ(view.frequencies, nullptr);
  EXPECT_EQ(basis->strip_bits().size(), 1u);
  const Rows values(1, 6, {1, 2, 3, 4, 5, 6});
  // By hand: .25 (1*1*1 - .25*2*2 + 0) = 0; .125 (.5*1*1 + 2*2*2 + 1*.5*3) = 1.25; ...
  EXPECT_EQ(project(view, values).values, (std::vector<float>{0, 1.25f, 0.375f, 3.125f}));
  // 1*1 + .5*2, -.25*1 + 2*2, 0*1 + 1*2; ...
  const Rows coefficients(1, 4, {1, 2, 3, 4});
  EXPECT_EQ(lift(view, coefficients).values, (std::vector<float>{2, 3.75f, 2, 5, 7.25f, 4}));
  std::vector<float> query(4);
  project_query(view, values.values.data(), query.data());
  EXPECT_EQ(query, (std::vector<float>{0.5f, 7.5f, 2.75f, 18}));
}

TEST(Basis, ProjectingThenLiftingChangesNothingAtFullWidth) {
  for (const BasisData& data : full_bases()) {
    const Rows keys(192, 32, read_projector_fixture<float>("keys.f32"));
    const auto basis = make_basis(data);
    const Rows back = lift(basis->view(), project(basis->view(), keys));
    // Entries of the lift are rounded to 11 bits (2^-12 relative): the product of the two maps
    // differs from the identity by about 2^-12 in norm.
    EXPECT_LE(relative_error(back.values, keys.values), 6e-4) << data.block;
  }
}

TEST(Basis, ScoresNeedNoValues) {
  const Rows keys(192, 32, read_projector_fixture<float>("keys.f32"));
  const Rows query = normal_rows(1, 32, 4);
  for (const BasisData& data : full_bases()) {
    const auto basis = make_basis(data);
    const Rows coefficients = project(basis->view(), keys);
    const Rows values = lift(basis->view(), coefficients);
    std::vector<float> projected(static_cast<size_t>(data.width));
    project_query(basis->view(), query.values.data(), projected.data());
    for (int r = 0; r < keys.n_rows; ++r) {
      double expected = 0;
      double size = 0;
      double found = 0;
      for (size_t j = 0; j < 32; ++j) {
        expected += query.values[j] * values.view().row(r)[j];
        size += std::abs(query.values[j] * values.view().row(r)[j]);
      }
      for (size_t c = 0; c < projected.size(); ++c) {
        found += projected[c] * coefficients.view().row(r)[c];
        size += std::abs(projected[c] * coefficients.view().row(r)[c]);
      }
      EXPECT_NEAR(found, expected, 1e-6 * size);  // both are rounded to float32 in between
    }
  }
}

TEST(Basis, ASingleComponentSurvivesTheRoundingOfTheLift) {
  // 1/sqrt(128) is no binary16 number; the other direction makes up for it.
  for (const BasisData& data : {hadamard_basis(128), rotation_basis(80, 1)}) {
    const auto basis = make_basis(data);
    for (int c = 0; c < data.width; ++c) {
      Rows one(1, data.width);
      one.values[static_cast<size_t>(c)] = 1;
      const Rows back = project(basis->view(), lift(basis->view(), one));
      EXPECT_NEAR(back.values[static_cast<size_t>(c)], 1, 3e-7);
    }
  }
  // All entries of Hadamard matrices are rounded alike: the inverse is exact.
  const auto hadamard = make_basis(hadamard_basis(128));
  const Rows rows = normal_rows(16, 128, 6);
  EXPECT_LE(
      relative_error(lift(hadamard->view(), project(hadamard->view(), rows)).values, rows.values),
      1e-6);
  EXPECT_EQ(make_basis(hadamard_basis(64))->view().column, nullptr);  // 1/8 is exact
}

TEST(Basis, LiftsThatBinary16CannotHoldAreScaled) {
  for (const float size : {1e-30f, 1e-6f, 1e6f, 1e30f}) {
    Rows rows = normal_rows(64, 32, 5);
    for (float& value : rows.values) value *= size;
    const auto basis = make_basis(mpo_basis(rows.view(), 16));
    const Rows back = lift(basis->view(), project(basis->view(), rows));
    for (size_t i = 0; i < rows.values.size(); ++i) {
      EXPECT_NEAR(back.values[i] / size, rows.values[i] / size, 5e-3) << size;
    }
  }
}

TEST(Basis, CountsItsBytes) {
  const auto counter = std::make_shared<MemoryCounter>();
  {
    const auto basis = Basis::make(small_basis(), counter);
    EXPECT_EQ(counter->live(), static_cast<int64_t>(basis->bytes()));
    EXPECT_GE(basis->bytes(), 6 * 2 + 3 * 4 + 2 * 4 + 1 + sizeof(Basis));
    const BasisView view = basis->view();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(view.lift) % kCacheLine, 0u);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(view.row) % kCacheLine, 0u);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(view.column) % kCacheLine, 0u);
  }
  EXPECT_EQ(counter->live(), 0);
}

TEST(Basis, Int8HalvesTheLift) {
  BasisData data = rotation_basis(64, 1);
  const auto half = make_basis(data);
  data.int8 = true;
  const auto basis = make_basis(data);
  // Half of 64 * 64 * 2 bytes; factors of rows take the place of factors of columns.
  EXPECT_EQ(half->bytes() - basis->bytes(), size_t{64 * 64});
  const Rows rows = normal_rows(64, 64, 9);
  const Rows back = lift(basis->view(), project(basis->view(), rows));
  // Entries are up to 0.4 and rounded to 1 / 254 of their row's largest at most, 0.0009 in the mean
  // square: the product of the two maps is off by sqrt(2 * 64) times that, about 0.01, where rows
  // are projected once, and by the square of it where twice.
  EXPECT_LE(relative_error(back.values, rows.values), 3e-4);
  EXPECT_GE(relative_error(back.values, rows.values), 1e-6);  // it is int8 indeed
}

TEST(Basis, Int8RowsOfZerosStayZeros) {
  BasisData data = int8_basis();
  std::fill(data.lift.begin(), data.lift.end(), 0.0f);
  const auto basis = make_basis(data);
  for (const float value : lift(basis->view(), normal_rows(2, data.width, 3)).values) {
    EXPECT_EQ(value, 0);
  }
}

TEST(BasisState, LoadsWhatWasSaved) {
  std::vector<BasisData> all = full_bases();
  all.push_back(small_basis());
  all.push_back(int8_basis());
  for (const BasisData& data : all) {
    const auto basis = make_basis(data);
    const std::vector<std::byte> saved = basis->save();
    const auto counter = std::make_shared<MemoryCounter>();
    const auto loaded = Basis::load(saved, counter);
    EXPECT_EQ(counter->live(), static_cast<int64_t>(loaded->bytes()));
    EXPECT_EQ(loaded->save(), saved);
    EXPECT_EQ(loaded->bytes(), basis->bytes());
    const Rows rows = normal_rows(3, data.dim, 8);
    EXPECT_EQ(project(loaded->view(), rows).values, project(basis->view(), rows).values);
    EXPECT_TRUE(std::equal(loaded->strip_bits().begin(), loaded->strip_bits().end(),
                           basis->strip_bits().begin(), basis->strip_bits().end()));
  }
}

template <class T>
std::vector<std::byte> with(std::vector<std::byte> bytes, size_t at, T value) {
  std::memcpy(bytes.data() + at, &value, sizeof(value));
  return bytes;
}

TEST(BasisState, RefusesWhatNoBasisSaves) {
  const auto counter = std::make_shared<MemoryCounter>();
  const std::vector<std::byte> good = make_basis(small_basis())->save();
  const size_t header = 36;
  const size_t row = header + 12;
  const size_t column = row + 12;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<std::vector<std::byte>> bad = {
      with<uint32_t>(good, 0, 1),            // version
      with<int32_t>(good, 4, 0),             // dim
      with<int32_t>(good, 4, -6),            //
      with<int32_t>(good, 4, 1 << 30),       //
      with<int32_t>(good, 4, 7),             // no whole number of blocks
      with<int32_t>(good, 8, 5),             // width
      with<int32_t>(good, 12, 0),            // block
      with<int32_t>(good, 12, -3),           //
      with<int32_t>(good, 16, 4),            // block width
      with<int32_t>(good, 16, 0),            //
      with<uint32_t>(good, 20, 2),           // marks
      with<uint32_t>(good, 20, 1),           // another size of lift
      with<uint32_t>(good, 24, 2),           //
      with<uint32_t>(good, 24, 0),           // rows that are there
      with<uint32_t>(good, 28, 7),           //
      with<uint32_t>(good, 32, 2),           // strips
      with<uint32_t>(good, 32, ~0u),         //
      with<uint16_t>(good, header, 0x7c00),  // infinite lift
      with<float>(good, row, nan),           //
      with<float>(good, column, nan),        //
      with<uint8_t>(good, good.size() - 1, 9),
  };
  EXPECT_NO_THROW(Basis::load(good, counter));
  const std::vector<std::byte> int8 = make_basis(int8_basis())->save();
  EXPECT_NO_THROW(Basis::load(int8, counter));
  EXPECT_THROW(Basis::load(with<uint32_t>(int8, 20, 0), counter), FormatError);
  EXPECT_THROW(Basis::load(with<uint32_t>(int8, 28, 1), counter), FormatError);
  EXPECT_THROW(Basis::load(with<float>(int8, header + 6, nan), counter), FormatError);
  for (size_t i = 0; i < bad.size(); ++i) {
    EXPECT_THROW(Basis::load(bad[i], counter), FormatError) << i;
  }
  // A large basis that is not there.
  auto large = with<int32_t>(with<int32_t>(good, 4, 1 << 20), 12, 1 << 20);
  large = with<int32_t>(with<int32_t>(large, 8, 1 << 20), 16, 1 << 20);
  EXPECT_THROW(Basis::load(with<uint32_t>(large, 32, 0), counter), FormatError);
  for (size_t size = 0; size < good.size(); ++size) {
    EXPECT_THROW(Basis::load(std::span(good).first(size), counter), FormatError) << size;
  }
  auto longer = good;
  longer.push_back(std::byte{0});
  EXPECT_THROW(Basis::load(longer, counter), FormatError);
  EXPECT_EQ(counter->live(), 0);
  EXPECT_LT(counter->peak(), 4096);
}

BasisView rotary_view(const std::vector<double>& frequencies, bool interleaved) {
  BasisView view;
  view.frequencies = frequencies.data();
  view.n_pairs = static_cast<int32_t>(frequencies.size());
  view.interleaved = interleaved;
  return view;
}

TEST(Anchor, RotatesAsTheMethodSpecificationSays) {
  const std::vector<double> frequencies = {1, 0.01};
  const Rows x(1, 4, {1, 2, 3, 4});
  Rows half_split = x;
  rotate(half_split.view(), rotary_view(frequencies, false), 7, 1);
  const std::vector<double> at7 = {-1.217058, 1.715331, 2.918693, 4.130090};
  for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(half_split.values[i], at7[i], 1e-6);
  rotate(half_split.view(), rotary_view(frequencies, false), 5, -1);
  const std::vector<double> at2 = {-3.144039, 1.919605, -0.339143, 4.039197};
  for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(half_split.values[i], at2[i], 1e-6);

  // The same pairs in the other layout: (1, 3) and (2, 4) lie side by side.
  Rows interleaved(1, 4, {1, 3, 2, 4});
  rotate(interleaved.view(), rotary_view(frequencies, true), 7, 1);
  EXPECT_NEAR(interleaved.values[0], at7[0], 1e-6);
  EXPECT_NEAR(interleaved.values[1], at7[2], 1e-6);
  EXPECT_NEAR(interleaved.values[2], at7[1], 1e-6);
  EXPECT_NEAR(interleaved.values[3], at7[3], 1e-6);
}

TEST(Anchor, UndoesTheRotationOfTheModelsAtAnyPosition) {
  RopeSpec spec;
  spec.rotary_dim = 16;
  const RopeTable table(spec);
  const std::vector<double> frequencies(table.frequencies().begin(), table.frequencies().end());
  for (const bool interleaved : {false, true}) {
    const BasisView view = rotary_view(frequencies, interleaved);
    const Rows rows = normal_rows(5, 20, 3);  // the last 4 values take no part
    const std::vector<int32_t> positions = {0, 1, 63, 40'000, 1'000'000};
    Rows turned = rows;
    rotate(turned.view(), view, positions, 1);
    for (int r = 0; r < 5; ++r) {
      for (int j = 16; j < 20; ++j) EXPECT_EQ(turned.view().row(r)[j], rows.view().row(r)[j]);
    }
    EXPECT_GT(relative_error(turned.values, rows.values), 0.1);
    // To an anchor 63 before: what is left is the rotation by the difference.
    Rows anchored = turned;
    rotate(anchored.view(), view, 937, -1);
    Rows expected = rows;
    std::vector<int32_t> differences = positions;
    for (int32_t& position : differences) position -= 937;
    rotate(expected.view(), view, differences, 1);
    EXPECT_LE(relative_error(anchored.values, expected.values), 3e-7);
    rotate(turned.view(), view, positions, -1);
    EXPECT_LE(relative_error(turned.values, rows.values), 3e-7);
  }
}

}  // namespace
}  // namespace kve
