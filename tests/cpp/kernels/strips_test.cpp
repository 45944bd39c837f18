#include <gtest/gtest.h>

#include "kernels/strip_testing.h"

namespace kve {
namespace {

using test::Random;
using test::StripCase;
using test::StripPages;

// Every result is compared with float64 on the decoded values, with a bound of its own: the folded
// query or weight of one term is off by half a unit (its largest over 127, or that over 254 with
// two planes), times the distance of the level from the middle; a table's level is off by half a
// step of its bytes. f32 sums add kFloatError of the size of the terms.
constexpr double kFloatError = 3e-6;

double half_unit(double largest, int planes) {
  // A hair more than half: the scaled number is rounded too.
  return largest / 127 * 0.501 / (planes == 2 ? 254 : 1);
}

class Strips : public ::testing::TestWithParam<std::string> {
 protected:
  const Kernels& kernels_ = find_kernels(GetParam());

  void check_scores(const StripCase& c, int n_vectors) const {
    constexpr int kPages = 6;  // more than the kernels take at a time
    const StripPages pages(c, kPages, static_cast<uint64_t>(c.width * 9 + c.bits));
    const std::vector<float> q = Random(5).normals(int64_t{n_vectors} * c.width);
    std::vector<float> scores(static_cast<size_t>(kPages * n_vectors * 64), NAN);
    Scratch scratch;
    kernels_.score_strips(
        {&pages.side(), pages.pages(), kPages, q.data(), c.width, n_vectors, scores.data(),
         scratch.get<std::byte>(kernels_.strip_scratch(pages.side(), n_vectors))});
    for (const int p : {0, 4, 5}) {
      for (int v = 0; v < n_vectors; ++v) {
        for (int t = p; t < 64; t += 3) {
          const float found = scores[static_cast<size_t>((p * n_vectors + v) * 64 + t)];
          expect_score(pages, c, q.data() + v * c.width, p, t, double{found}, v);
          if (HasFailure()) return;
        }
      }
    }
  }

  void expect_score(const StripPages& pages, const StripCase& c, const float* q, int p, int t,
                    double found, int v) const {
    double wanted = 0;
    double size = 0;
    double bound = 0;
    for (int d = 0; d < c.width; ++d) {
      // The largest of what is rounded together.
      const int first = c.per_channel ? 0 : d / c.group * c.group;
      const int end = c.per_channel ? c.width : std::min(first + c.group, c.width);
      double largest = 0;
      for (int e = first; e < end; ++e) {
        const bool empty = pages.bits_of(e / 4) == 0;
        const double scale = c.per_channel ? (empty ? 0 : std::abs(pages.scale(p, t, e))) : 1;
        largest = std::max(largest, std::abs(double{q[e]}) * scale);
      }
      const double scale = std::abs(pages.scale(p, t, d));
      const double lane = c.per_channel ? 1 : scale;
      wanted += double{q[d]} * pages.value(p, t, d);
      size += std::abs(double{q[d]}) * (scale * 2 * pages.off_middle(p, t, d) +
                                        scale * (1 << c.bits) + std::abs(pages.zero(p, t, d)));
      bound += half_unit(largest, c.planes) * lane * pages.off_middle(p, t, d) +
               std::abs(double{q[d]}) * scale * pages.table_error() * 1.01;
    }
    EXPECT_NEAR(found, wanted, bound + kFloatError * size)
        << c.name() << ", page " << p << ", vector " << v << ", token " << t;
  }

  void check_sums(const StripCase& c, int n_vectors, int last_rows) const {
    constexpr int kPages = 6;  // more than the kernels take at a time
    const StripPages pages(c, kPages, static_cast<uint64_t>(c.width * 9 + c.bits));
    std::vector<float> weights(static_cast<size_t>(kPages * n_vectors * 64));
    Random random(3);
    for (size_t i = 0; i < weights.size(); ++i) {
      const bool past = i / 64 >= static_cast<size_t>(n_vectors * (kPages - 1)) &&
                        i % 64 >= static_cast<size_t>(last_rows);
      weights[i] = past ? 0 : std::exp2(random.uniform(-12, 2));
    }
    std::vector<float> sums(static_cast<size_t>(n_vectors * c.width), 0.5f);
    Scratch scratch;
    kernels_.add_strips({&pages.side(), pages.pages(), kPages, last_rows, weights.data(), n_vectors,
                         sums.data(),
                         scratch.get<std::byte>(kernels_.strip_scratch(pages.side(), n_vectors))});
    for (int v = 0; v < n_vectors; ++v) {
      for (int d = 0; d < c.width; ++d) {
        double wanted = 0.5;
        double size = 0.5;
        double bound = 0;
        for (int p = 0; p < kPages; ++p) {
          const float* w = weights.data() + (p * n_vectors + v) * 64;
          add_expected(pages, c, w, p, d, &wanted, &size, &bound);
        }
        EXPECT_NEAR(double{sums[static_cast<size_t>(v * c.width + d)]}, wanted,
                    bound + kFloatError * size)
            << c.name() << ", vector " << v << ", channel " << d;
      }
      if (HasFailure()) return;
    }
  }

  static void add_expected(const StripPages& pages, const StripCase& c, const float* w, int p,
                           int d, double* wanted, double* size, double* bound) {
    double largest = 0;
    for (int t = 0; t < 64; ++t) {
      const double scale = c.per_channel ? 1 : std::abs(pages.scale(p, t, d));
      largest = std::max(largest, std::abs(double{w[t]}) * scale);
    }
    for (int t = 0; t < 64; ++t) {
      const double weight = double{w[t]};
      const double scale = std::abs(pages.scale(p, t, d));
      *wanted += weight * pages.value(p, t, d);
      *size += weight * (scale * (3 << c.bits) + std::abs(pages.zero(p, t, d)));
      *bound +=
          half_unit(largest, c.planes) * (c.per_channel ? scale : 1) * pages.off_middle(p, t, d) +
          weight * scale * pages.table_error() * 1.01;
    }
  }

  // All bits and levels of one geometry.
  template <class Check>
  static void for_codes(StripCase c, const Check& check) {
    for (int bits = 1; bits <= 8; ++bits) {
      c.bits = bits;
      for (const StripLevels levels :
           {StripLevels::code, StripLevels::centred, StripLevels::table}) {
        if (levels == StripLevels::table && bits > 4) continue;
        c.levels = levels;
        c.planes = bits == 8 ? 2 : 1;
        c.scale_bytes = bits % 3 == 2 ? 1 : 2;
        check(c);
      }
    }
  }
  template <class Check>
  static void for_geometries(bool keys, const Check& check) {
    for (const int width : {16, 40, 64, 80, 96, 128, 256}) {
      StripCase c;
      c.keys = keys;
      c.width = width;
      c.per_channel = true;
      for (const int group : {32, 64}) {
        c.group = group;
        check(c);
      }
      c.per_channel = false;
      for (const int group : {16, 32, 64, 128, width}) {
        if (group > width || width % group != 0) continue;
        c.group = group;
        check(c);
      }
    }
  }
};

TEST_P(Strips, Scores) {
  for_geometries(true, [&](const StripCase& geometry) {
    int n_vectors = 0;
    for_codes(geometry, [&](const StripCase& c) { check_scores(c, 1 + n_vectors++ % 5); });
  });
}

TEST_P(Strips, Sums) {
  for_geometries(false, [&](const StripCase& geometry) {
    int n = 0;
    for_codes(geometry, [&](const StripCase& c) {
      ++n;
      check_sums(c, 1 + n % 5, n % 3 == 0 ? 64 : 1 + n * 7 % 64);
    });
  });
}

TEST_P(Strips, EitherPrecisionOfQueriesAndWeights) {
  for (const int planes : {1, 2}) {
    for (int n_vectors = 1; n_vectors <= 13; ++n_vectors) {
      for (const bool per_channel : {false, true}) {
        StripCase c;
        c.planes = planes;
        c.per_channel = per_channel;
        c.group = per_channel ? 32 : 16;
        c.bits = n_vectors % 2 == 0 ? 4 : 8;
        check_scores(c, n_vectors);
        c.keys = false;
        check_sums(c, n_vectors, 50);
      }
    }
  }
}

TEST_P(Strips, StripsOfDifferentBits) {
  for (const bool per_channel : {false, true}) {
    for (const StripLevels levels : {StripLevels::code, StripLevels::centred}) {
      for (const int width : {36, 64, 128}) {
        StripCase c;
        c.width = width;
        c.per_channel = per_channel;
        c.group = per_channel ? 64 : (width == 128 ? 32 : width);
        c.levels = levels;
        c.bits = 8;  // the most
        for (int s = 0; s < key_strips(width); ++s) {
          c.strip_bits.push_back(static_cast<uint8_t>((s * 5 + 8) % 9));
        }
        check_scores(c, 3);
        for (uint8_t& bits : c.strip_bits) bits = std::min<uint8_t>(bits, 7);
        check_scores(c, 2);
      }
    }
  }
}

TEST_P(Strips, VectorsDoNotAffectEachOther) {
  StripCase c;
  const StripPages pages(c, 2, 1);
  const std::vector<float> q = Random(5).normals(7 * c.width);
  const auto run = [&](int first, int n) {
    std::vector<float> scores(static_cast<size_t>(2 * n * 64));
    Scratch scratch;
    kernels_.score_strips({&pages.side(), pages.pages(), 2, q.data() + first * c.width, c.width, n,
                           scores.data(),
                           scratch.get<std::byte>(kernels_.strip_scratch(pages.side(), n))});
    return scores;
  };
  const std::vector<float> together = run(0, 7);
  for (int v = 0; v < 7; ++v) {
    const std::vector<float> alone = run(v, 1);
    const auto row = together.begin() + (7 + v) * 64;
    EXPECT_TRUE(test::same_bits({alone.begin() + 64, alone.end()}, {row, row + 64})) << v;
  }
}

TEST_P(Strips, NotANumberStaysInItsVector) {
  for (const bool per_channel : {false, true}) {
    for (const StripLevels levels : {StripLevels::code, StripLevels::centred}) {
      StripCase c;
      c.per_channel = per_channel;
      c.levels = levels;
      const StripPages pages(c, 1, 1);
      std::vector<float> q = Random(5).normals(3 * c.width);
      q[70] = NAN;
      std::vector<float> scores(3 * 64);
      Scratch scratch;
      kernels_.score_strips({&pages.side(), pages.pages(), 1, q.data(), c.width, 3, scores.data(),
                             scratch.get<std::byte>(kernels_.strip_scratch(pages.side(), 3))});
      for (int i = 0; i < 192; ++i) {
        EXPECT_EQ(std::isnan(scores[static_cast<size_t>(i)]), i / 64 == 1) << c.name() << i;
      }
    }
  }
}

// ---- bases ----

struct TestBasis {
  TestBasis(int dim, int block, int block_width, bool int8, Random& random) {
    for (int j = 0; j < block; ++j) {
      lift8_scale.push_back(0.004f + 0.002f * random.normal());
      for (int c = 0; c < block_width; ++c) {
        const float value = random.normal() / std::sqrt(static_cast<float>(block));
        lift.push_back(float_to_half(value));
        lift8.push_back(static_cast<int8_t>(std::clamp(254 * value, -127.0f, 127.0f)));
      }
    }
    view.dim = dim;
    view.block = block;
    view.block_width = block_width;
    view.width = dim / block * block_width;
    if (int8) {
      view.lift8 = lift8.data();
      view.lift8_scale = lift8_scale.data();
    } else {
      view.lift = lift.data();
    }
  }
  void anchored(int n_pairs, bool interleaved) {
    for (int i = 0; i < n_pairs; ++i)
      frequencies.push_back(std::pow(10000.0, -double{i * 1.0} / n_pairs));
    view.anchor = 64;
    view.frequencies = frequencies.data();
    view.n_pairs = n_pairs;
    view.interleaved = interleaved;
  }
  // Cosines, then sines.
  std::vector<float> angles(int position) const {
    std::vector<float> out;
    for (const double f : frequencies) out.push_back(static_cast<float>(std::cos(position * f)));
    for (const double f : frequencies) out.push_back(static_cast<float>(std::sin(position * f)));
    return out;
  }
  // lift^T R(-position) query
  std::vector<double> project(const float* query, int position) const {
    std::vector<double> turned(query, query + view.dim);
    for (int i = 0; view.anchor != 0 && i < view.n_pairs; ++i) {
      const int x = view.interleaved ? 2 * i : i;
      const int y = view.interleaved ? 2 * i + 1 : view.n_pairs + i;
      const double angle = position * frequencies[static_cast<size_t>(i)];
      const double a = double{query[x]};
      const double b = double{query[y]};
      turned[static_cast<size_t>(x)] = a * std::cos(angle) + b * std::sin(angle);
      turned[static_cast<size_t>(y)] = b * std::cos(angle) - a * std::sin(angle);
    }
    std::vector<double> out(static_cast<size_t>(view.width));
    for (int c = 0; c < view.width; ++c) {
      const int b = c / view.block_width;
      for (int j = 0; j < view.block; ++j) {
        out[static_cast<size_t>(c)] +=
            at(j, c % view.block_width) * turned[static_cast<size_t>(b * view.block + j)];
      }
    }
    return out;
  }
  double at(int j, int c) const {
    const auto i = static_cast<size_t>(j * view.block_width + c);
    return view.lift8 == nullptr ? double{half_to_float(lift[i])}
                                 : double{lift8_scale[static_cast<size_t>(j)]} * lift8[i];
  }
  std::vector<uint16_t> lift;
  std::vector<int8_t> lift8;
  std::vector<float> lift8_scale;
  std::vector<double> frequencies;
  BasisView view;
};

struct BasisShape {
  int dim, block, width;
};

void check_projection(const Kernels& kernels, const BasisShape& shape, int anchored, bool int8,
                      Random& random) {
  TestBasis basis(shape.dim, shape.block, shape.width, int8, random);
  if (anchored > 0) basis.anchored(shape.dim / 2 - (anchored == 2 ? 2 : 0), anchored == 2);
  std::vector<int32_t> positions = {0};
  // More of them than one product of the tile unit has rows.
  if (anchored > 0) positions = {0, 64, 128, 192, 256, 320, 7000, 7064, 7128, 131012, 1000000};
  const int n_vectors = 3;
  const int n_positions = static_cast<int>(positions.size());
  const std::vector<float> q = random.normals(n_vectors * shape.dim);
  const int64_t stride = (basis.view.width + 15) / 16 * 16;
  std::vector<std::vector<float>> turns;
  std::vector<const float*> angles;
  for (const int32_t position : positions) turns.push_back(basis.angles(position));
  for (const std::vector<float>& turn : turns) angles.push_back(turn.data());
  for (const bool rounded : {false, true}) {
    std::vector<float> found(static_cast<size_t>(n_positions * n_vectors * stride));
    Scratch scratch;
    kernels.project_queries(
        {&basis.view, angles.data(), n_positions, q.data(), shape.dim, n_vectors, rounded,
         found.data(), stride,
         scratch.get<std::byte>(kernels.projection_scratch(basis.view, n_positions, n_vectors))});
    std::vector<double> wanted;
    std::vector<float> packed;
    for (int p = 0; p < n_positions; ++p) {
      for (int v = 0; v < n_vectors; ++v) {
        const std::vector<double> row =
            basis.project(q.data() + v * shape.dim, positions[static_cast<size_t>(p)]);
        wanted.insert(wanted.end(), row.begin(), row.end());
        const auto from = found.begin() + (p * n_vectors + v) * stride;
        packed.insert(packed.end(), from, from + basis.view.width);
      }
    }
    // bf16 rounds both factors by 2^-9 at most, with random signs over the terms of a sum.
    EXPECT_LT(test::relative_error(packed, wanted), rounded ? 0.008 : 3e-6)
        << shape.dim << " / " << shape.block << " to " << shape.width << ", anchored " << anchored
        << ", int8 " << int8 << ", rounded " << rounded;
  }
}

TEST_P(Strips, QueriesInABasis) {
  Random random(11);
  for (const BasisShape& shape :
       {BasisShape{64, 64, 64}, BasisShape{64, 64, 36}, BasisShape{80, 16, 16},
        BasisShape{96, 32, 20}, BasisShape{128, 128, 128}, BasisShape{15, 15, 15},
        BasisShape{21, 7, 4}}) {
    for (const int anchored : {0, 1, 2}) {
      for (const bool int8 : {false, true}) {
        check_projection(kernels_, shape, anchored, int8, random);
      }
    }
  }
}

TEST_P(Strips, QueriesWithoutNumbersLeaveOthersAlone) {
  Random random(13);
  TestBasis basis(64, 64, 64, true, random);
  basis.anchored(32, false);
  const int n_vectors = 3;
  const std::vector<float> turn = basis.angles(640);
  const float* angles[] = {turn.data(), turn.data()};
  std::vector<float> q = random.normals(n_vectors * 64);
  const auto project = [&] {
    std::vector<float> found(static_cast<size_t>(2 * n_vectors * 64));
    Scratch scratch;
    kernels_.project_queries(
        {&basis.view, angles, 2, q.data(), 64, n_vectors, true, found.data(), 64,
         scratch.get<std::byte>(kernels_.projection_scratch(basis.view, 2, n_vectors))});
    return found;
  };
  const std::vector<float> before = project();
  q[64 + 5] = std::numeric_limits<float>::infinity();
  const std::vector<float> after = project();
  for (size_t row = 0; row < 6; ++row) {
    const std::span<const float> found(after.data() + row * 64, 64);
    if (row % 3 == 1) {
      EXPECT_TRUE(std::ranges::none_of(found, [](float x) { return std::isfinite(x); })) << row;
    } else {
      EXPECT_TRUE(std::equal(found.begin(), found.end(), before.data() + row * 64)) << row;
    }
  }
}

TEST_P(Strips, LiftsSums) {
  Random random(12);
  for (const auto& [width, int8] : {std::pair(64, false), {36, false}, {64, true}, {36, true}}) {
    const TestBasis basis(128, 64, width, int8, random);
    const int n_vectors = 6;
    const int64_t stride = 160;
    const std::vector<float> x = random.normals(n_vectors * stride);
    std::vector<float> found(static_cast<size_t>(n_vectors * 128));
    kernels_.lift_values({&basis.view, x.data(), stride, n_vectors, found.data(), 128});
    std::vector<double> wanted;
    for (int v = 0; v < n_vectors; ++v) {
      for (int d = 0; d < 128; ++d) {
        double sum = 0;
        for (int c = 0; c < width; ++c) {
          sum +=
              basis.at(d % 64, c) * double{x[static_cast<size_t>(v * stride + d / 64 * width + c)]};
        }
        wanted.push_back(sum);
      }
    }
    EXPECT_LT(test::relative_error(found, wanted), 1e-6);
  }
}

INSTANTIATE_TEST_SUITE_P(Isa, Strips, ::testing::ValuesIn(test::available_isas()),
                         [](const auto& isa) { return isa.param; });

}  // namespace
}  // namespace kve
